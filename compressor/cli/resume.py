"""`compressor resume`."""

from typing import Annotated

import typer

from compressor.cli.compare import show_comparison
from compressor.cli.detach import show_detached
from compressor.cli.options import Json
from compressor.cli.results import show_run
from compressor.cli.route import show_routed
from compressor.cli.terminal import Terminal

HELP = (
    "Go on with a run or a sweep that was broken off, from its last checkpoint, to the result it would have had.\n\n"
    "The folder may have been moved; model and data have to be where they were."
)
EXAMPLE = "compressor resume runs/small"


def resume(
    run: Annotated[str, typer.Argument(metavar="RUN", rich_help_panel="Run", help="Folder of the run.")],
    trust: Annotated[
        bool, typer.Option("--trust", rich_help_panel="Run", help="Let the run's model file run code, as it did.")
    ] = False,
    arch: Annotated[
        str | None,
        typer.Option(metavar="ARCH", rich_help_panel="Run", help="The run's architecture, where it is code of yours."),
    ] = None,
    json: Json = False,
) -> None:
    """Parse, run, print as the run itself would have."""
    terminal = Terminal(as_json=json)
    from compressor.report.run_comparison import RunComparison
    from compressor.runs.detach import Detached
    from compressor.runs.resume import finish
    from compressor.runs.route import RoutedRun

    with terminal.progress() as tell:
        found = finish(run, tell, trust=trust, arch=arch)
    match found:
        case RunComparison():
            show_comparison(terminal, found, run)
        case Detached():
            show_detached(terminal, found, run)
        case RoutedRun():
            show_routed(terminal, found, run)
        case _:
            show_run(terminal, found, run, dry_run=False, trained=True)
