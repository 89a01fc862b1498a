"""The command line in a process that calls it hundreds of times."""

from functools import cache

import typer


def once() -> None:
    """Have Typer make the commands from their functions once; it does so for every line, which takes a tenth second."""
    typer.main.get_command = cache(typer.main.get_command)
