"""`compressor prune --method adapnet`: which of the flags it takes, and the job they make."""

from dataclasses import dataclass, fields, replace

import typer

from compressor.cli.options import chosen, typed, was_given
from compressor.errors import UsageError
from compressor.pruning.adapnet.settings import PRESETS, AdapNetSettings
from compressor.pruning.catalogue import ABOUT
from compressor.pruning.settings import PruneSettings
from compressor.runs.settings import AdaptJob, GoalSettings, ModelSettings, OutputSettings
from compressor.training.settings import DataSettings, DistillSettings, TrainSettings

# Flags of one-shot pruning and of plain training, and what to use instead.
_INSTEAD = {
    **dict.fromkeys(
        ("ratio", "allocate", "min_channels", "ratio_for", "score_images"),
        "it decides itself how much goes; --target-macs or --target-params end it sooner",
    ),
    "epochs": "give --startup-epochs, --max-epochs and --finetune-epochs",
    **dict.fromkeys(
        ("schedule", "milestones", "gamma", "warmup_epochs"), "its learning rate halves every --lr-halve-every epochs"
    ),
    "compile": "every change of structure would compile again",
}
_OWN = {field.name for room in (AdapNetSettings, GoalSettings) for field in fields(room)}
_SHARED = {field.name for room in (PruneSettings, TrainSettings) for field in fields(room)}


@dataclass(frozen=True)
class Given:
    """The settings that the command took, as far as they concern AdapNet."""

    model: ModelSettings
    choice: PruneSettings
    goals: GoalSettings
    adapnet: AdapNetSettings
    preset: str
    loading: DataSettings
    output: OutputSettings
    training: TrainSettings
    distilling: DistillSettings
    data: str | None


def job(ctx: typer.Context, given: Given) -> AdaptJob:
    """The job; every one of AdapNet's settings that was not typed is the preset's.

    Raises:
        UsageError: there are no data, or a flag does not concern AdapNet.
    """
    if given.data is None:
        free = ", ".join(name for name, about in ABOUT.items() if not about.needs_data)
        raise UsageError(
            f"adapnet decides while the network trains and needs --data, such as --data digits; without data prune in "
            f"one shot by {free}"
        )
    for name, instead in _INSTEAD.items():
        if was_given(ctx, name):
            raise UsageError(f"--{name.replace('_', '-')} is not for adapnet: {instead}")
    own = {f.name: getattr(given.adapnet, f.name) for f in fields(AdapNetSettings) if was_given(ctx, f.name)}
    return AdaptJob(
        given.model,
        given.data,
        given.output,
        given.goals,
        given.choice.keep,
        given.choice.also,
        given.loading,
        given.training,
        given.preset,
        replace(PRESETS[given.preset], **own),
        given.distilling,
        command=typed(ctx),
        chosen=chosen(ctx),
    )


def refuse_own(ctx: typer.Context, method: str) -> None:
    """Raise UsageError for a flag of AdapNet's that was typed for another method."""
    for name in sorted({"preset", *_OWN} - _SHARED):
        if was_given(ctx, name):
            raise UsageError(f"--{name.replace('_', '-')} belongs to --method adapnet, not to {method}")
