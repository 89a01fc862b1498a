"""`compressor detach`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compressor.cli.options import DryRun, Json
from compressor.cli.results import carry_out
from compressor.cli.terminal import Terminal
from compressor.report import units
from compressor.runs.jobs import DetachJob

if TYPE_CHECKING:
    from rich.table import Table

HELP = (
    "Make one network of several sizes: smaller sub-models that start inside it and share its weights.\n\n"
    "Each sub-model (an exit) is a small convolution of its own as input layer, then the network's layers from some "
    "point on. All are trained together. A program then runs whichever it has time for.\n\n"
    "Methods:\n\n"
    "  cnsn  any CNN; sub-models start where one feature map alone carries the flow\n"
    "  nsn   perceptrons as wide as their input; their layers come off one by one\n\n"
    "Training is as in the methods' papers unless flags say otherwise: the flags' defaults below are those of cnsn; "
    "nsn has a learning rate of 0.3 that falls to a third, batches of 128 and no weight decay."
)
EXAMPLE = (
    "compressor detach sample_models/digits_cnn.safetensors --exits 1 --data digits --epochs 20 --out runs/detached"
)


def detach(
    job: DetachJob,
    list_points: Annotated[
        bool,
        typer.Option(
            "--list", rich_help_panel="Sub-models", help="Print where the network may be cut, and what that costs."
        ),
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    if not list_points:
        carry_out(job, dry_run=dry_run, json=json)
        return
    terminal = Terminal(as_json=json)
    with terminal.progress() as tell:
        from compressor.runs import detach as runs

        found = runs.list_points(job, tell)
    terminal.print_json(found)
    terminal.show(_points_table(found))


def _points_table(found: Mapping[str, Any]) -> "Table":
    from compressor.report.tables import plain_table

    numbers = ((title, "right") for title in ("MACs", "of the base", "parameters", "own"))
    table = plain_table("starts at", ("feature map", "left"), *numbers)
    base = found["base"]
    table.add_row("(base)", "", units.macs(base["macs"]), "1.00x", units.amount(base["params"]), "")
    for point in found["points"]:
        table.add_row(
            point["at"],
            units.shape(point["shape"]),
            units.macs(point["macs"]),
            units.ratio(base["macs"], point["macs"]),
            units.amount(point["params"]),
            units.amount(point["own_params"]),
        )
    return table
