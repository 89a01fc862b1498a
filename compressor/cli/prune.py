"""`compressor prune`."""

from typing import Annotated, Literal

import typer

from compressor.cli import adapnet as adaptive
from compressor.cli.config import on_command_line
from compressor.cli.options import Data, DryRun, Json, check_model, chosen, typed, was_given
from compressor.cli.results import show_run
from compressor.cli.terminal import Terminal
from compressor.errors import UsageError
from compressor.pruning.adapnet.settings import PRESETS, AdapNetSettings
from compressor.pruning.catalogue import ABOUT, TRAINED
from compressor.pruning.settings import PruneSettings, check
from compressor.runs.settings import FINETUNE, AdaptJob, GoalSettings, ModelSettings, OutputSettings, PruneJob
from compressor.training.settings import DataSettings, DistillSettings, TrainSettings

HELP = (
    "Make a model smaller by removing the channels that it can best do without.\n\n"
    "Without --data this is one-shot: nothing is trained, and no accuracy is known; l1 chooses, and the same share of "
    "every layer goes. With --data obs chooses, widths follow the error, layers that read pruned channels are refitted "
    "by least squares, and the smaller network is fine-tuned and measured.\n\n"
    "Methods:\n\n"
    + "\n".join(f"  {name:<9} {about.summary}" for name, about in {**ABOUT, **TRAINED}.items())
    + "\n\nadapnet trains in three phases: before, while and after the structure changes. --preset paper takes up to "
    "120 epochs as in the paper, --preset quick minutes; learning rate, weight decay and batch size are the preset's, "
    "too. Flags change single settings of either."
)
EXAMPLE = (
    "compressor prune sample_models/digits_cnn.safetensors --target-macs 0.5 --data digits --epochs 5 --out runs/small"
)
_NO_GOALS = GoalSettings()


def prune(
    ctx: typer.Context,
    model: ModelSettings,
    choice: PruneSettings,
    loading: DataSettings,
    output: OutputSettings,
    distilling: DistillSettings,
    training: TrainSettings = FINETUNE,
    preset: Annotated[
        Literal["paper", "quick"],
        typer.Option("--preset", metavar="NAME", rich_help_panel="AdapNet", help="paper or quick, see above."),
    ] = "paper",
    goals: GoalSettings = _NO_GOALS,
    own: AdapNetSettings = PRESETS["paper"],
    data: Data = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Parse, run, print."""
    check_model(model)
    if choice.method == "adapnet":
        given = adaptive.Given(model, choice, goals, own, preset, loading, output, training, distilling, data)
        _adapt(adaptive.job(ctx, given), dry_run, Terminal(as_json=json))
        return
    adaptive.refuse_own(ctx, choice.method)
    if on_command_line(ctx, "ratio") and on_command_line(ctx, "target_macs"):
        raise UsageError("--ratio and --target-macs exclude each other: the ratio that meets a target is searched for")
    check(choice, has_data=data is not None)
    for flag in ("epochs", "distill"):
        if data is None and was_given(ctx, flag):
            raise UsageError(f"--{flag} trains the pruned model, which needs --data: give some, or leave the flag out")
    terminal = Terminal(as_json=json)
    job = PruneJob(model, output, choice, data, loading, training, distilling, typed(ctx), chosen(ctx))
    from compressor.runs import prune as runs

    with terminal.progress() as tell:
        report = runs.dry_run(job, tell) if dry_run else runs.prune(job, tell)
    show_run(terminal, report, output.out, dry_run=dry_run, trained=data is not None)


def _adapt(job: AdaptJob, dry_run: bool, terminal: Terminal) -> None:
    from compressor.runs import adapnet as runs

    with terminal.progress() as tell:
        report = runs.dry_run(job, tell) if dry_run else runs.adapt(job, tell)
    show_run(terminal, report, job.output.out, dry_run=dry_run, trained=True)
