"""`compressor replace`."""

from typing import Annotated, Literal

import typer

from compressor.cli.options import Data, DryRun, Json, chosen, needed, typed
from compressor.cli.results import show_run
from compressor.cli.terminal import Terminal
from compressor.errors import UsageError
from compressor.primenet.settings import REPRESENTATION, PrimeNetSettings
from compressor.runs.settings import ModelSettings, OutputSettings, ReplaceJob
from compressor.training.settings import DataSettings, TrainSettings

HELP = (
    "Replace the first layers by PrimeNet's block: parallel convolutions of several sizes, each trained by a loss of "
    "its own, without back-propagation through them.\n\n"
    "Trains in two phases: --epochs in which the block learns with everything behind it, then --retrain-epochs in "
    "which the block is held. Without --until the earliest stage goes that costs at least twice what the block does."
)
EXAMPLE = (
    "compressor replace sample_models/digits_cnn.safetensors --until 5 --fit stride --data digits --epochs 10 "
    "--retrain-epochs 5 --out runs/replaced"
)


def replace(
    ctx: typer.Context,
    model: ModelSettings,
    primenet: PrimeNetSettings,
    loading: DataSettings,
    output: OutputSettings,
    training: TrainSettings = REPRESENTATION,
    data: Data = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="LAYER", rich_help_panel="PrimeNet", show_default=False, help="Where the stage ends."),
    ] = None,
    method: Annotated[
        Literal["primenet"], typer.Option(metavar="METHOD", rich_help_panel="PrimeNet", help="What takes its place.")
    ] = "primenet",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Parse, run, print."""
    if min(training.batch_size, primenet.retrain_batch_size) < 2:
        raise UsageError("batches of one image: batch norm in the block needs more, give 2 or larger")
    terminal = Terminal(as_json=json)
    job = ReplaceJob(model, needed(data), until, output, primenet, loading, training, typed(ctx), chosen(ctx))
    from compressor.runs import replace as runs

    with terminal.progress() as tell:
        report = runs.dry_run(job, tell) if dry_run else runs.replace_early(job, tell)
    show_run(terminal, report, output.out, dry_run=dry_run, trained=True)
