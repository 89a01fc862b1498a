"""`compressor finetune`."""

import typer

from compressor.cli.options import Data, DryRun, Json, check_model, chosen, needed, typed
from compressor.cli.results import show_run
from compressor.cli.terminal import Terminal
from compressor.runs.settings import FINETUNE, FinetuneJob, ModelSettings, OutputSettings
from compressor.training.settings import DataSettings, DistillSettings, TrainSettings

HELP = "Train a model further, gently: after pruning, or on other data."
EXAMPLE = "compressor finetune runs/small/model.safetensors --data digits --epochs 5 --out runs/tuned"


def finetune(
    ctx: typer.Context,
    model: ModelSettings,
    loading: DataSettings,
    output: OutputSettings,
    distilling: DistillSettings,
    training: TrainSettings = FINETUNE,
    data: Data = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Parse, run, print."""
    check_model(model)
    terminal = Terminal(as_json=json)
    job = FinetuneJob(model, needed(data), output, loading, training, typed(ctx), chosen(ctx), distilling)
    from compressor.runs import train as runs

    with terminal.progress() as tell:
        report = runs.dry_run(job, tell) if dry_run else runs.train(job, tell)
    show_run(terminal, report, output.out, dry_run=dry_run, trained=True)
