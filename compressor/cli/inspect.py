"""`compressor inspect`."""

from pathlib import Path
from typing import Annotated

import typer

from compressor.cli.options import Json, as_typed, named
from compressor.cli.terminal import Terminal
from compressor.errors import UsageError
from compressor.runs.job import InspectJob

HELP = "Show which channels of a model belong together, which can be edited, and why others cannot."
EXAMPLE = "compressor inspect --arch torchvision:resnet18 --picture coupling.svg"
_PICTURES = (".svg", ".png", ".pdf")


def inspect(
    job: InspectJob,
    picture: Annotated[
        str | None, typer.Option("--picture", metavar="FILE", help="Draw the coupling: .svg, .png or .pdf.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
    json: Json = False,
) -> None:
    if picture is not None:
        _check_picture(Path(picture), overwrite)
    terminal = Terminal(as_json=json)
    from compressor.report.coupling import draw_coupling, groups_table

    with terminal.progress() as tell:
        from compressor.runs.inspect import inspect as run

        coupling = run(job, tell).to_json()
    coupling["notes"] = [as_typed(note) for note in coupling["notes"]]
    terminal.print_json(coupling)
    terminal.show(groups_table(coupling))
    if picture is not None:
        draw_coupling(coupling, Path(picture))
    made = {picture: "the coupling as a picture"} if picture is not None else {}
    terminal.made(made, f"compressor prune {named(job.model)} --dry-run")


def _check_picture(path: Path, overwrite: bool) -> None:
    if path.suffix not in _PICTURES:
        raise UsageError(f"--picture {path} has no known ending: use one of {', '.join(_PICTURES)}")
    if not path.parent.is_dir():
        raise UsageError(f"--picture {path}: the folder {path.parent} does not exist; make it first")
    if path.exists() and not overwrite:
        raise UsageError(f"--picture {path} exists; give another name or --overwrite")
