"""The three phases of an AdapNet run on one optimizer: when each begins, how it trains, and how a run goes on.

Reference: AdapNet, section 3, figure 1.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.errors import UsageError
from compressor.pruning.adapnet import schedule
from compressor.pruning.adapnet.settings import AdapNetSettings
from compressor.runs.periods import Periods
from compressor.runs.stages import Stage
from compressor.training import checkpoint
from compressor.training.checkpoint import History, Saving, TrainState
from compressor.training.loop import distilling, fit, plain
from compressor.training.microbatches import Step
from compressor.training.schedule import make_optimizer
from compressor.training.settings import DistillSettings, TrainSettings
from compressor.training.task import Task

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
        "with its weights; `weight_decay` 5e-4 is usual"
    ]


_WORDS: dict[Phase, str] = {
    "startup": "training before the structure changes",
    "periods": "training while filters are pruned, merged and inserted",
    "finetune": "fine-tuning",
}


class TrainingPhases:
    """The training of one run; `rows` are its epochs and periods in the order of time."""

    def __init__(
        self, model: nn.Module, data: Task, periods: Periods, phases: Phases, distill: DistillSettings, trained: bool
    ) -> None:
        """Raises UsageError when distillation has no teacher, or settings are out of their range."""
        self.model, self.data, self.periods, self.phases = model, data, periods, phases
        self.optimizer = make_optimizer(model, phases.training)  # one for all phases
        self.rows: list[dict[str, Any]] = []  # of the phases that are over
        self.notes: list[str] = []  # of these, for the user
        self.teacher: nn.Module | None = None
        self._startup_teaches = distill.distill and not trained
        if distill.distill:
            if not trained and not phases.startup:
                raise UsageError(
                    "`distill` has no teacher: the network is untrained and there is no start-up; give a trained model "
                    "or `startup_epochs`"
                )
            self.teacher = copy.deepcopy(model)
            self._distil = distilling(self.teacher, distill, data, phases.training.label_smoothing)

    def run(
        self, folder: Path | None = None, on_event: Callable[[Any], None] | None = None, *, resume: bool = False
    ) -> None:
        """Train through all phases, or from the folder's last checkpoint on."""
        begin: Phase = "startup"
        ended: int | None = None
        if resume and folder is not None and checkpoint.has_checkpoint(folder):
            content, _ = checkpoint.latest_checkpoint(folder)
            begin, ended = content["phase"], content["settings"]["first_epoch"]
            self._restore_teacher(content["method"]["teacher"])
        for phase in PHASES[PHASES.index(begin) :]:
            settings = self.phases.of_phase(phase, ended)
            if not settings.epochs:
                continue
            if on_event is not None:
                on_event(Stage(_WORDS[phase], settings.first_epoch + settings.epochs))
            saving = self._saving(folder, phase, resume and phase == begin)
            try:
                history = fit(
                    self.model,
                    self.data,
                    settings,
                    step=self._step(phase, settings),
                    after_step=self._after_step if phase == "periods" else None,
                    on_event=on_event,
                    optimizer=self.optimizer,
                    saving=saving,
                )
            finally:
                self.periods.disarm()
            ended = self._close(phase, history)

    def _step(self, phase: Phase, settings: TrainSettings) -> Step:
        step = plain(self.data, settings.label_smoothing)
        if self.teacher is not None and phase != "startup":
            step = self._distil
        if phase != "periods":
            return step

        def watched(model: nn.Module, x: Any, y: Any) -> Tensor | tuple[Tensor, Tensor | None]:
            self.periods.arm(self.optimizer)
            return step(model, x, y)

        return watched

    def _after_step(self, state: TrainState) -> bool:
        """What AdapNet does between two batches; True when its phase is over."""
        # The middle of the step, counted like the loop's rows, whose epoch is over at `epoch` + 1.
        epoch = state.epoch + (state.batch - 0.5) / state.batches - 1
        self.periods.stepped(state.optimizer, {"epoch": epoch, "step": state.step})
        return state.batch == state.batches and self.periods.close_epoch(state.optimizer)

    def _close(self, phase: Phase, history: History) -> int | None:
        """Take over a phase's rows; returns the epoch at which the next one begins."""
        rows = history.rows
        if phase == "periods":
            self.periods.method.release()
            rows = sorted([*rows, *self.periods.rows], key=lambda row: float(row["epoch"]))
        self.rows += rows
        self.notes += history.notes
        if phase == "startup" and self._startup_teaches:
            assert self.teacher is not None
            self.teacher.load_state_dict(self.model.state_dict())
        return int(history.rows[-1]["epoch"]) + 1 if phase == "periods" else None

    def _saving(self, folder: Path | None, phase: Phase, resume: bool) -> Saving | None:
        if folder is None:
            return None
        return Saving(
            folder, phase, resume, structure=self.periods.structure, method=self._state, restore=self._restore
        )

    def _state(self) -> dict[str, Any]:
        teacher = None if self.teacher is None else checkpoint.model_state(self.teacher)
        return {"periods": self.periods.state(), "rows": self.rows, "notes": self.notes, "teacher": teacher}

    def _restore(self, structure: dict[str, Any], state: dict[str, Any]) -> None:
        self.periods.restore(structure, state["periods"])
        self.rows, self.notes = list(state["rows"]), list(state["notes"])

    def _restore_teacher(self, state: dict[str, Any] | None) -> None:
        if self.teacher is not None and state is not None:
            checkpoint.restore_model_(self.teacher, state)
