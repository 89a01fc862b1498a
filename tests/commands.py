"""The command line in a process that calls it hundreds of times."""

from functools import cache

import typer

from compressor.exporting import latency as exporting
from compressor.profiling import latency
from compressor.runs import estimate


def once() -> None:
    """Have Typer make the commands from their functions once; it does so for every line, which takes a tenth second."""
    typer.main.get_command = cache(typer.main.get_command)


def briefly() -> None:
    """Latency is measured for a tenth second and a dry run tries two steps; others test what such figures are worth."""
    for function in (latency.measure, latency.measure_in_turn):
        function.__kwdefaults__["seconds"] = 0.1
    latency._WARM_SECONDS = latency._SECONDS = exporting._PROFILED_SECONDS = exporting._SECONDS = 0.02
    estimate._SECONDS = 0.0
