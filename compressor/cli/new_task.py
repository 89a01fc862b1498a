"""`compressor new-task`."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from compressor.cli.options import Json
from compressor.cli.terminal import Terminal
from compressor.errors import UsageError
from compressor.files.paths import write_whole

HELP = "Write a commented template of a task of your own, which runs as it is: data, loss, measure and inputs."
EXAMPLE = "compressor new-task mine.py"

_TEMPLATE = Path(__file__).parents[1] / "training" / "task_template.py"


def new_task(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The Python file to write.")],
    json: Json = False,
) -> None:
    """Parse, write, print."""
    terminal = Terminal(as_json=json)
    path = Path(file).expanduser()
    if path.suffix != ".py":
        raise UsageError(f"{file} is no Python file: give a name that ends in .py")
    if path.exists():
        raise UsageError(f"{file} exists: give another name")
    write_whole(path, _TEMPLATE.read_text(encoding="utf-8").replace("FILE.py", file))
    terminal.print_json({"file": file})
    terminal.made(
        {file: "a task, a data set and a small network; change what is yours"},
        f"compressor train --arch {quote(f'{file}:build')} --task {quote(f'{file}:Shapes')} --epochs 3 --batch-size 16 "
        "--out runs/shapes",
    )
