"""`compressor route`."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from compressor.cli.options import DryRun, Json
from compressor.cli.results import carry_out
from compressor.cli.terminal import Terminal
from compressor.report import units as written
from compressor.runs.jobs import RouteJob

if TYPE_CHECKING:
    from rich.table import Table

    from compressor.routing.units import Unit

HELP = (
    "Let each image run only the layers it needs: the network gets early exits, and a router that chooses one.\n\n"
    "The network is trained at all its depths, images are labelled with the cheapest depth that does as well as the "
    "whole network, and gates learn to predict that depth. Then the threshold is chosen on validation images: the "
    "cheapest that loses little of them, the best within --target-macs, or with --max-drop the cheapest that keeps "
    "that promise on fresh images.\n\n"
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
    if not list_units:
        carry_out(job, dry_run=dry_run, json=json)
        return
    terminal = Terminal(as_json=json)
    with terminal.progress() as tell:
        from compressor.runs import route as runs

        found = runs.list_units(job, tell)
    terminal.print_json({"units": [asdict(unit) for unit in found.units], "refused": found.refused})
    terminal.show(_units_table(found.units))
    terminal.say("", *(f"not skippable: {name}: {reason}" for name, reason in found.refused.items()))


def _units_table(units: "Sequence[Unit]") -> "Table":
    from compressor.report.tables import plain_table

    texts = ((title, "left") for title in ("module", "kind", "skipped through"))
    table = plain_table("unit", *texts, ("MACs", "right"))
    for unit in units:
        table.add_row(str(unit.index), unit.name, unit.kind, unit.instead, written.macs(unit.macs))
    return table
