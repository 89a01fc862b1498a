"""`compressor route`."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compressor.cli.options import DryRun, Json, needed
from compressor.cli.results import show_run
from compressor.cli.terminal import Terminal
from compressor.report import units as written
from compressor.runs.jobs import RouteJob

if TYPE_CHECKING:
    from rich.table import Table

    from compressor.routing.section import Findings
    from compressor.routing.units import Unit
    from compressor.runs.route import Planned, RoutedRun

HELP = (
    "Let each image run only the layers it needs: the network gets ways out, and a router that chooses one.\n\n"
    "The network is trained at all its depths, images are labelled with the cheapest depth that does as well as the "
    "whole network, and gates learn to tell. Then the threshold is chosen on validation images: the cheapest that "
    "loses little, or the best within --target-macs.\n\n"
    "--mode paper follows the paper instead: images are labelled by the layer that they activate most strongly, a "
    "small network predicts the label from the image, and layers beyond it are skipped."
)
EXAMPLE = "compressor route sample_models/digits_cnn.safetensors --data digits --epochs 10 --out runs/routed"


def route(
    job: RouteJob,
    list_units: Annotated[
        bool, typer.Option("--list", rich_help_panel="Routing", help="Print what can be skipped, and what that saves.")
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Parse, run, print."""
    terminal = Terminal(as_json=json)
    if not list_units and not dry_run:
        needed(job.data)
    from compressor.runs import route as runs

    with terminal.progress() as tell:
        if list_units:
            found = runs.list_units(job, tell)
        elif dry_run:
            report, planned = runs.dry_run(job, tell)
        else:
            done = runs.route(job, tell)
    if list_units:
        terminal.print_json({"units": [asdict(unit) for unit in found.units], "refused": found.refused})
        terminal.show(_units_table(found.units))
        terminal.say("", *(f"not skippable: {name}: {reason}" for name, reason in found.refused.items()))
    elif dry_run:
        terminal.show(_depths_table(planned))
        more = {"costs": asdict(planned.costs), "leave_after": list(planned.routed.layout.leave_after)}
        show_run(terminal, report, job.output.out, dry_run=True, trained=True, more=more)
    else:
        show_routed(terminal, done, job.output.out)


def show_routed(terminal: Terminal, done: "RoutedRun", out: str | None) -> None:
    """Every way of using the network, then what every run prints at its end."""
    terminal.show(_ways_table(done.findings))
    show_run(terminal, done.report, out, dry_run=False, trained=True, more=done.findings.to_json())


def _units_table(units: "Sequence[Unit]") -> "Table":
    table = _table("unit", "module", "kind", "skipped through", numbers=("MACs",))
    for unit in units:
        table.add_row(str(unit.index), unit.name, unit.kind, unit.instead, written.macs(unit.macs))
    return table


def _depths_table(planned: "Planned") -> "Table":
    table = _table("depth", "behind", numbers=("an image costs", "of the whole"))
    for depth, unit in enumerate(planned.routed.layout.leave_after):
        cost = planned.costs.routed[depth]
        share = written.ratio(planned.costs.whole, cost)
        table.add_row(str(depth), planned.units.units[unit].name, written.macs(cost), share)
    return table


def _ways_table(found: "Findings") -> "Table":
    table = _table("way of using the network", numbers=("mean MACs", "of the whole", "test top-1"))
    for way in found.ways:
        share = written.ratio(found.whole_macs, way.point.macs)
        table.add_row(way.name, written.macs(way.point.macs), share, written.percent(way.point.top1))
    return table


def _table(*texts: str, numbers: tuple[str, ...]) -> "Table":
    from rich import box
    from rich.table import Table

    style: dict[str, Any] = {"box": box.SIMPLE_HEAD, "show_edge": False, "pad_edge": False, "padding": (0, 1, 0, 0)}
    table = Table(header_style="bold", **style)
    for title in texts:
        table.add_column(title, overflow="fold")
    for title in numbers:
        table.add_column(title, justify="right", no_wrap=True)
    return table
