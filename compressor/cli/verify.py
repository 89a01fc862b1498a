"""`compressor verify`."""

from typing import Annotated

import typer

from compressor.cli.options import Json
from compressor.cli.terminal import Terminal

HELP = "Check a package that was copied somewhere: every file there, unchanged, and nothing read from elsewhere."
EXAMPLE = "compressor verify deploy"


def verify(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="The folder that `compressor export` made.")],
    json: Json = False,
) -> None:
    """Parse, run, print."""
    terminal = Terminal(as_json=json)
    from compressor.exporting.run_onnx import fits_here
    from compressor.exporting.verify import verify_package
    from compressor.report.exits import exits_table

    manifest = verify_package(folder)
    if manifest.tuned is not None and not fits_here(manifest.tuned):
        terminal.say(f"note: tuned for another machine or ONNX Runtime; once there, run compressor tune {folder}")
    terminal.print_json({"folder": folder, "whole": True, **manifest.to_json()})
    terminal.show(exits_table(manifest))
    words = {f"{folder}/{name}": f"{facts['bytes']:,} bytes, unchanged" for name, facts in manifest.files.items()}
    terminal.made(words, f"python {folder}/run_onnx.py IMAGE")
