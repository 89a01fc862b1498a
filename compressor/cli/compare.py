"""`compressor compare`."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compressor.cli.options import Json, all_as_typed, unused, with_data
from compressor.cli.terminal import Terminal

if TYPE_CHECKING:
    from compressor.report.run_comparison import Point, RunComparison

HELP = (
    "Compare runs: cost and accuracy of every network, and the Pareto front.\n\n"
    "The networks that the runs started from are in the table, and so are the sub-models of runs that made some. "
    "--out also writes a page with accuracy against MACs, latency and file size."
)
EXAMPLE = "compressor compare runs/l1 runs/adapnet --out runs/compared"


def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", rich_help_panel="Runs", help="Folders of finished runs.")
    ],
    out: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", rich_help_panel="Output", show_default=False, help="Folder for the page."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", rich_help_panel="Output", help="Replace the comparison that is there.")
    ] = False,
    latency: Annotated[
        bool,
        typer.Option("--latency", rich_help_panel="Output", help="Time the runs' ONNX files again, in turn."),
    ] = False,
    json: Json = False,
) -> None:
    terminal = Terminal(as_json=json)
    with terminal.progress():
        from compressor.report.run_comparison import comparison_table
        from compressor.runs.compare import compare as run

        compared = run(runs, out, overwrite=overwrite, latency=latency)
    if out is not None:
        show_comparison(terminal, compared, out)
        return
    terminal.print_json(compared.to_json())
    terminal.show(comparison_table(compared))
    terminal.made({}, f"compressor compare {shlex.join(runs)} --out {unused('runs/compared')}")


def show_comparison(terminal: Terminal, compared: "RunComparison", out: str) -> None:
    """The table, the files that were made, and what to do with the best of them."""
    from compressor.report.run_comparison import comparison_table
    from compressor.runs.folder import MODEL, PACKAGE

    compared = replace(compared, failed=all_as_typed(compared.failed))
    terminal.print_json(compared.to_json())
    left = next((each for each in (Path(out) / MODEL, Path(out) / PACKAGE) if each.exists()), Path(out) / MODEL)
    if compared.certificate is not None:
        made = str(left) if left.exists() else compared.promised or "no network"
        terminal.answer(made, [(compared.certificate.words(), compared.certificate.kept)])
    terminal.show(comparison_table(compared))
    page, data = Path(out) / "comparison.html", Path(out) / "comparison.json"
    files = {str(left): f"the network of {compared.promised}"} if left.exists() else {}
    files |= {str(page): "the comparison, to look at in a browser", str(data): "the same as data"}
    most = max(point.macs or 0 for point in compared.points)
    smaller = [point for point in compared.points if (point.macs or 0) < most and (Path(point.run) / MODEL).exists()]
    best = compared.promised or (best_of(smaller).run if smaller else "RUN")
    if left.is_dir():
        terminal.made(files, f"compressor verify {shlex.quote(str(left))}")
        return
    given = "--data DATA" if compared.data is None else with_data(compared.data)
    model = shlex.quote(str(left if left.exists() else Path(best) / MODEL))
    terminal.made(files, f"compressor export {model} {given} --out {unused('deploy')}")


def best_of(points: "Sequence[Point]") -> "Point":
    """The network with the best figure, of several with it the one of the fewest multiply-adds."""

    def worth(point: "Point") -> tuple[float, float]:
        figure = float("-inf") if point.main is None else point.figure.drop(point.main, 0.0)
        return figure, -(point.macs or 0)

    return max(points, key=worth)
