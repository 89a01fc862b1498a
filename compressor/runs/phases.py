"""The three phases of an AdapNet run: when each begins, and how it trains. Reference: AdapNet, section 3, figure 1."""

from dataclasses import dataclass, replace
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.errors import UsageError
from compressor.pruning.adapnet import schedule
from compressor.pruning.adapnet.settings import AdapNetSettings
from compressor.training.settings import TrainSettings

Phase = Literal["startup", "periods", "finetune"]
PHASES: tuple[Phase, ...] = ("startup", "periods", "finetune")
MOMENTUM = 0.8  # the paper's
STRONG_DECAY = 0.005  # half of the paper's


@dataclass(frozen=True)
class Phases:
    """Where in the run each phase begins, in epochs of the learning rate's schedule."""

    settings: AdapNetSettings
    training: TrainSettings
    first: int
    startup: int
    fill: bool = False  # fine-tuning takes the epochs that the changes left over

    @staticmethod
    def of(settings: AdapNetSettings, training: TrainSettings, *, trained: bool, fill: bool = False) -> "Phases":
        """For a network that comes with trained weights, or with random ones."""
        own = {name: getattr(settings, name) for name in ("batch_size", "lr", "weight_decay")}
        training = replace(training, momentum=MOMENTUM, **own)
        startup = schedule.startup_epochs(settings, trained=trained)
        return Phases(settings, training, schedule.first_epoch(settings, trained=trained), startup, fill)

    def of_phase(self, phase: Phase, ended: int | None = None) -> TrainSettings:
        """How a phase trains; fine-tuning begins at epoch `ended`, since the phase before may stop early."""
        changes = self.first + self.startup
        latest = changes + self.settings.max_epochs + self.settings.finetune_epochs
        fine = latest - self.settings.finetune_epochs if ended is None else ended
        begin, epochs = {
            "startup": (self.first, self.startup),
            "periods": (changes, self.settings.max_epochs),
            "finetune": (fine, latest - fine if self.fill else self.settings.finetune_epochs),
        }[phase]
        milestones = schedule.milestones(self.settings, latest)
        return replace(
            self.training,
            first_epoch=begin,
            epochs=epochs,
            schedule="step" if milestones else "constant",
            milestones=milestones,
            gamma=0.5,
            autotune=self.training.autotune and phase != "periods",  # every change of structure has new shapes
        )


def hints(settings: AdapNetSettings, model: nn.Module) -> list[str]:
    """What a person should know of these settings on this network, in lines."""
    if settings.weight_decay < STRONG_DECAY or any(isinstance(module, _BatchNorm) for module in model.modules()):
        return []
    return [
        f"a weight decay of {settings.weight_decay:g} is strong for a network without batch norm, whose output shrinks "
        "with its weights; --weight-decay 5e-4 is usual"
    ]


def check_period(settings: AdapNetSettings, steps_per_epoch: int) -> None:
    """Raise UsageError when the second phase is too short for one filter to be removed.

    A filter is judged when it has counts of enough periods, and is removed, after one more in which it is frozen.
    """
    lsep = schedule.period_steps(settings, steps_per_epoch)
    needed = (2 if settings.freeze else 1) + 1
    periods = settings.max_epochs * steps_per_epoch // lsep
    if periods < needed:
        longest = settings.max_epochs * steps_per_epoch // needed
        shorter = f"give `lsep` {longest} or less, or " if longest else "give "
        more = -(-needed * lsep // steps_per_epoch)
        raise UsageError(
            f"a period of {lsep} steps fits {periods} times into {settings.max_epochs} epochs of {steps_per_epoch} "
            f"steps, and it takes {needed} until a filter goes: {shorter}`max_epochs` {more} or more"
        )
