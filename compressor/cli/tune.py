"""`compressor tune`."""

from typing import Annotated

import typer

from compressor.cli.options import Json
from compressor.cli.terminal import Terminal

HELP = (
    "Make a package fast and small in memory on this machine: write a graph with the weights as this processor wants "
    "them beside the portable one. Run it on the device."
)
EXAMPLE = "compressor tune deploy"


def tune(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="The folder that `compressor export` made.")],
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="Of an operator, while it is timed.")] = 1,
    latency: Annotated[bool, typer.Option("--latency/--no-latency", help="Measure each exit before and after.")] = True,
    json: Json = False,
) -> None:
    """Parse, run, print."""
    terminal = Terminal(as_json=json)
    from compressor.exporting.tune import tune_package
    from compressor.report.exits import tuned_table
    from compressor.report.manifest import TUNED_MODEL, TUNED_WEIGHTS

    manifest = tune_package(folder, threads=threads, latency=latency)
    terminal.print_json({"folder": folder, **manifest.to_json()})
    if latency:
        terminal.show(tuned_table(manifest))
    words = {
        f"{folder}/{TUNED_MODEL}": "for this processor and this ONNX Runtime only: open it with ORT_DISABLE_ALL",
        f"{folder}/{TUNED_WEIGHTS}": "its weights, which sessions and processes share",
    }
    terminal.made(words, f"python {folder}/run_onnx.py IMAGE")
