"""`compressor verify`."""

from shlex import quote
from typing import Annotated

import typer

from compressor.cli.options import Json
from compressor.cli.terminal import Terminal

HELP = "Check a package: every file unchanged, nothing read from elsewhere, the outputs it had where it was exported."
EXAMPLE = "compressor verify deploy"


def verify(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="The folder that `compressor export` made.")],
    key: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Public ed25519 key (PEM) that the package has to be signed with."),
    ] = None,
    json: Json = False,
) -> None:
    terminal = Terminal(as_json=json)
    from compressor.exporting.run import fits_here
    from compressor.exporting.verify import verify_package
    from compressor.report.tables import exits_table

    manifest = verify_package(folder, key)
    if manifest.tuned is not None and not fits_here(manifest.tuned):
        terminal.say(
            f"note: tuned for another machine or ONNX Runtime; once there, run compressor tune {quote(folder)}"
        )
    terminal.print_json({"folder": folder, "whole": True, **manifest.to_json()})
    terminal.show(exits_table(manifest))
    words = {f"{folder}/{name}": f"{facts['bytes']:,} bytes, unchanged" for name, facts in manifest.files.items()}
    terminal.made(words, f"python {quote(f'{folder}/run.py')} IMAGE")
