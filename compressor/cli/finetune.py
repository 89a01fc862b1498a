"""`compressor finetune`."""

from compressor.cli.options import DryRun, Json
from compressor.cli.results import carry_out
from compressor.runs.jobs import FinetuneJob

HELP = "Train a model further, gently: after pruning, or on other data."
EXAMPLE = "compressor finetune runs/small/model.safetensors --data digits --epochs 5 --out runs/tuned"


def finetune(job: FinetuneJob, dry_run: DryRun = False, json: Json = False) -> None:
    carry_out(job, dry_run=dry_run, json=json)
