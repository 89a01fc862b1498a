"""`compressor resume`."""

from typing import Annotated

import typer

from compressor.cli.compare import show_comparison
from compressor.cli.options import Json
from compressor.cli.results import show_run
from compressor.cli.terminal import Terminal

HELP = (
    "Resume a run or a sweep from its last checkpoint, to the same result as without the interruption.\n\n"
    "The folder may have been moved; model and data have to be where they were."
)
EXAMPLE = "compressor resume runs/small"


def resume(
    run: Annotated[str, typer.Argument(metavar="RUN", rich_help_panel="Run", help="Folder of the run.")],
    trust: Annotated[
        bool, typer.Option("--trust", rich_help_panel="Run", help="Let the run's model file run code again.")
    ] = False,
    arch: Annotated[
        str | None,
        typer.Option(metavar="ARCH", rich_help_panel="Run", help="The run's architecture, where it is your own code."),
    ] = None,
    json: Json = False,
) -> None:
    """Parse, run, print as the run itself would have."""
    terminal = Terminal(as_json=json)
    with terminal.progress() as tell:
        from compressor.report.report import Report
        from compressor.runs.resume import resume as go_on

        found = go_on(run, tell, trust=trust, arch=arch)
    if isinstance(found, Report):
        show_run(terminal, found, run)
    else:
        show_comparison(terminal, found, run)
