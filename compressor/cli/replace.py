"""`compressor replace`."""

from compressor.cli.options import DryRun, Json
from compressor.cli.results import show_run
from compressor.cli.terminal import Terminal
from compressor.runs.jobs import ReplaceJob

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


def replace(job: ReplaceJob, dry_run: DryRun = False, json: Json = False) -> None:
    """Parse, run, print."""
    terminal = Terminal(as_json=json)
    from compressor.runs import replace as runs

    with terminal.progress() as tell:
        report = runs.dry_run(job, tell) if dry_run else runs.replace_early(job, tell)
    show_run(terminal, report, job.output.out, dry_run=dry_run, trained=True)
