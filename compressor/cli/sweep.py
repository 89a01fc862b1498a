"""`compressor sweep`."""

from compressor.cli.compare import show_comparison
from compressor.cli.help import broken
from compressor.cli.options import DryRun, Json
from compressor.cli.terminal import Terminal
from compressor.runs.jobs import SweepJob

HELP = (
    "Prune a trained model by several methods to several targets, each with the same data, epochs, batch size and "
    "seed, and compare the results.\n\n"
    "A target is the share of the MACs to keep. AdapNet changes the structure in three quarters of the epochs and "
    "fine-tunes in the rest. A time (--for 1h) is for all runs together. "
    "The same command again, or `compressor resume FOLDER`, does what is missing; more methods "
    "and targets may be added."
)
EXAMPLE = (
    "compressor sweep sample_models/digits_cnn.safetensors --methods l1,taylor --targets 0.7,0.5,0.3 --data digits "
    "--epochs 5 --out runs/sweep"
)


def sweep(job: SweepJob, dry_run: DryRun = False, json: Json = False) -> None:
    terminal = Terminal(as_json=json)
    with terminal.progress() as tell:
        from compressor.runs import sweep as runs

        commands = [run.job.command for run in runs.predicted(job, tell)] if dry_run else []
        compared = None if dry_run else runs.sweep(job, tell)
    if compared is None:
        terminal.print_json({"dry_run": True, "commands": commands})
        terminal.show(*("\n".join(broken(command)) for command in commands))
        terminal.say("", "a dry run: nothing was changed and nothing written", "next: the same without --dry-run")
        return
    assert job.output.out is not None
    show_comparison(terminal, compared, job.output.out)
