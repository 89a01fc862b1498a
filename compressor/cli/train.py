"""`compressor train`."""

import typer

from compressor.cli.options import Data, DryRun, Json, chosen, needed, typed
from compressor.cli.results import show_run
from compressor.cli.terminal import Terminal
from compressor.errors import UsageError
from compressor.runs.settings import ModelSettings, OutputSettings, TrainJob
from compressor.training.settings import DataSettings, TrainSettings

HELP = "Train an architecture from random weights."
EXAMPLE = "compressor train --arch sample_models/digits_cnn.py:build --data digits --epochs 20 --out runs/digits"


def train(
    ctx: typer.Context,
    model: ModelSettings,
    training: TrainSettings,
    loading: DataSettings,
    output: OutputSettings,
    data: Data = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Parse, run, print."""
    if model.model is not None:
        raise UsageError(f"train begins with random weights: use `compressor finetune {model.model}` to train further")
    if model.arch is None:
        raise UsageError("--arch is missing: give torchvision:NAME, timm:NAME or FILE.py:build")
    terminal = Terminal(as_json=json)
    job = TrainJob(model, needed(data), output, loading, training, command=typed(ctx), chosen=chosen(ctx))
    from compressor.runs import train as runs

    with terminal.progress() as tell:
        report = runs.dry_run(job, tell) if dry_run else runs.train(job, tell)
    show_run(terminal, report, output.out, dry_run=dry_run, trained=True)
