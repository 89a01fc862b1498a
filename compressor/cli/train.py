"""`compressor train`."""

from typing import Annotated

import typer

from compressor.cli.options import DryRun, Json
from compressor.cli.results import carry_out
from compressor.errors import UsageError
from compressor.runs.job import TrainJob

HELP = "Train an architecture from random weights."
EXAMPLE = "compressor train --arch sample_models/digits_cnn.py:build --data digits --epochs 20 --out runs/digits"


def _no_file(model: str | None) -> None:
    if model is not None:
        raise UsageError(f"train begins with random weights: use `compressor finetune {model}` to train further")


def train(
    job: TrainJob,
    model: Annotated[str | None, typer.Argument(hidden=True, show_default=False, callback=_no_file)] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    carry_out(job, dry_run=dry_run, json=json)
