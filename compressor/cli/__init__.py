"""The command line: the only place that parses, prints and exits; one file a command."""

from compressor.cli.app import main

__all__ = ["main"]
