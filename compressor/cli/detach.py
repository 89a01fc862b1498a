"""`compressor detach`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compressor.cli.options import DryRun, Json, needed
from compressor.cli.results import show_run
from compressor.cli.terminal import Terminal
from compressor.errors import UsageError
from compressor.report import units
from compressor.runs.jobs import DetachJob

if TYPE_CHECKING:
    from rich.table import Table

    from compressor.runs.detach import Detached
    from compressor.runs.exits import Row

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
    """Parse, run, print."""
    terminal = Terminal(as_json=json)
    if list_points and job.choice.method == "nsn":
        raise UsageError("--list is for cnsn: with nsn every hidden layer comes off, one by one")
    from compressor.runs import detach as runs

    if list_points:
        with terminal.progress() as tell:
            found = runs.list_points(job, tell)
        terminal.print_json(found)
        terminal.show(_points_table(found))
        return
    if not dry_run:
        needed(job.data)
    with terminal.progress() as tell:
        done = runs.dry_run(job, tell) if dry_run else runs.detach(job, tell)
    if not dry_run:
        show_detached(terminal, done, job.output.out)
        return
    terminal.show(_models_table(done.rows))
    terminal.print_json({"dry_run": dry_run, **done.to_json()})
    terminal.say("", "a dry run: nothing was changed and nothing written", "next: the same without --dry-run")


def show_detached(terminal: Terminal, done: "Detached", out: str | None) -> None:
    """A row for every model, then what every run prints at its end."""
    terminal.show(_models_table(done.rows))
    show_run(terminal, done.report, out, dry_run=False, trained=True, more=done.models())


def _points_table(found: Mapping[str, Any]) -> "Table":
    table = _table("starts at", "feature map", "MACs", "of the base", "parameters", "own")
    base = found["base"]
    table.add_row("(base)", "", units.macs(base["macs"]), "1.00x", units.amount(base["params"]), "")
    for point in found["points"]:
        table.add_row(
            point["at"],
            "x".join(str(size) for size in point["shape"]),
            units.macs(point["macs"]),
            units.ratio(base["macs"], point["macs"]),
            units.amount(point["params"]),
            units.amount(point["own_params"]),
        )
    return table


def _models_table(rows: "tuple[Row, ...]") -> "Table":
    alone = any(row.alone_top1 is not None for row in rows)
    table = _table("model", "starts at", "MACs", "params", "own", "latency", "top-1", *(["alone"] if alone else []))
    for row in rows:
        cost, timing = row.cost, (row.cost.latency_ms or {}).get("torch")
        cells = [
            f"exit {cost.exit}" if cost.exit else "base",
            cost.at or "",
            units.macs(cost.macs),
            units.amount(cost.params),
            units.amount(cost.own_params),
            units.milliseconds(timing["median"]) if timing else "–",
            "–" if row.top1 is None else units.percent(row.top1),
        ]
        if row.alone_top1 is not None:
            cells.append(units.percent(row.alone_top1))
        table.add_row(*cells)
    return table


def _table(first: str, second: str, *numbers: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold")
    table.add_column(second, overflow="fold")
    for title in numbers:
        table.add_column(title, justify="right", no_wrap=True)
    return table
