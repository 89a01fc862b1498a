"""`compressor finetune`."""

from compressor.cli.options import DryRun, Json
from compressor.cli.results import show_run
from compressor.cli.terminal import Terminal
from compressor.runs.jobs import FinetuneJob

HELP = "Train a model further, gently: after pruning, or on other data."
EXAMPLE = "compressor finetune runs/small/model.safetensors --data digits --epochs 5 --out runs/tuned"


def finetune(job: FinetuneJob, dry_run: DryRun = False, json: Json = False) -> None:
    """Parse, run, print."""
    terminal = Terminal(as_json=json)
    from compressor.runs import train as runs

    with terminal.progress() as tell:
        report = runs.dry_run(job, tell) if dry_run else runs.train(job, tell)
    show_run(terminal, report, job.output.out, dry_run=dry_run, trained=True)
