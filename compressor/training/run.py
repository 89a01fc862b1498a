"""What a phase of training carries with it: counters, meter, checkpoints, and what to do when something goes wrong."""

import signal
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from compressor.errors import DataError, FileError, UsageError
from compressor.files.limits import lacks_memory
from compressor.graph.neutral import random_states, restore_random_states_
from compressor.training import checkpoint, distributed
from compressor.training.checkpoint import Diverged, History, Saving, TrainState
from compressor.training.evaluate import Meter, evaluate
from compressor.training.events import Event, Listener, NoteEvent
from compressor.training.interrupt import Interrupted, Signals
from compressor.training.microbatches import MicroBatches, Step
from compressor.training.numerics import choose_device, derive_seed, seed_everything_, uses_bfloat16
from compressor.training.schedule import lr_at, make_optimizer
from compressor.training.settings import TrainSettings
from compressor.training.task import Task

_MOST_ROLLBACKS = 3


@dataclass
class Run:
    """A phase while it lasts."""

    model: nn.Module
    task: Task
    settings: TrainSettings
    device: torch.device
    optimizer: torch.optim.Optimizer
    state: TrainState
    meter: Meter
    saving: Saving | None
    on_event: Listener
    step: Step
    micro: MicroBatches = field(init=False)
    signals: Signals = field(default_factory=Signals)
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ended_early: bool = False
    lr_factor: float = 1.0  # halved by every rollback
    rollbacks: int = 0
    stopping: int = 0  # the signal that ends the run, in whichever process it was received
    _saved_at: float = field(default_factory=time.monotonic)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        task: Task,
        settings: TrainSettings,
        step: Step,
        on_event: Listener,
        optimizer: torch.optim.Optimizer | None,
        saving: Saving | None,
    ) -> "Run":
        """A phase at its beginning, which does `step` with every batch; moves the model to the device."""
        if settings.on_nan == "rollback" and saving is None:
            raise UsageError("on_nan='rollback' goes back to a checkpoint: give a folder to write them to")
        device = choose_device(settings.device)
        model.to(device)
        if settings.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if not task.takes_channels_last(model, training=True):
                model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
                settings = replace(settings, channels_last=False)
        optimizer = optimizer or make_optimizer(model, settings)
        state = TrainState(model, optimizer, settings.first_epoch, task.steps(settings))
        return cls(model, task, settings, device, optimizer, state, Meter(device), saving, on_event, step)

    def __post_init__(self) -> None:
        half = uses_bfloat16(self.device)
        autocast = partial(torch.autocast, self.device.type, dtype=torch.bfloat16) if half else nullcontext
        self.micro = MicroBatches(self.step, autocast, self.note)

    @property
    def end(self) -> int:
        """The epoch before which the phase ends."""
        return self.settings.first_epoch + self.settings.epochs

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        return self.ended_early or self.state.epoch >= self.end

    def begin(self) -> None:
        """Go on from the last checkpoint, or seed the generators and write the first one."""
        if self.saving is not None and self.saving.resume and checkpoint.has_checkpoint(self.saving.folder):
            self.restore()
            return
        distributed.alike_(self.model)
        seed_everything_(self._seed("phase", self.settings.first_epoch))
        if self.saving is not None:
            self.save()

    def _seed(self, *parts: int | str) -> int:
        """For the global generators: dropout in several processes falls on other units in each."""
        process = ("process", distributed.rank()) if distributed.rank() else ()
        return derive_seed(self.settings.seed, *parts, *process)

    def lr_now(self) -> float:
        """The learning rate of the next step: the schedule's in the middle of it."""
        place = self.state.epoch + (self.state.batch + 0.5) / self.state.batches
        return lr_at(self.settings, place) * self.lr_factor

    def steps_left(self) -> int:
        """Steps until the phase's end."""
        return (self.end - self.state.epoch) * self.state.batches - self.state.batch

    def tell(self, event: Event) -> None:
        """Tell whoever listens."""
        if self.on_event is not None:
            self.on_event(event)

    def note(self, text: str) -> None:
        """Keep a line for the user and tell it."""
        self.notes.append(text)
        self.tell(NoteEvent(text))

    def close_epoch(self) -> dict[str, Any]:
        """Evaluate where the settings ask for it, add the epoch's row to the history and go on to the next epoch."""
        loss, top1, seconds = self.meter.total()
        every, number = self.settings.evaluate_every, self.state.epoch + 1 - self.settings.first_epoch
        row = {
            "phase": self.saving.phase if self.saving is not None else "train",
            "epoch": self.state.epoch,
            "step": self.state.step,
            "lr": self.state.lr,
            "train_loss": loss,
            "train_top1": top1,
            **{f"validation_{name}": None for name in self.task.figures},
            "seconds": seconds,
            "images_per_second": self.meter.images / max(seconds, 1e-9),
        }
        if every and (number % every == 0 or self.state.epoch + 1 == self.end or self.ended_early):
            result = distributed.from_first(lambda: evaluate(self.model, self.task.validation, self.task))
            row |= {f"validation_{name}": value for name, value in result.figures.items()}
        self.rows.append(row)
        self.state.epoch, self.state.batch, self.meter = self.state.epoch + 1, 0, Meter(self.device)
        return row

    def check_loss(self) -> None:
        """Raise Diverged when a loss of this epoch was not finite; waits for the device."""
        bad = self.meter.first_bad_step()
        if bad is not None:
            raise Diverged(self._advice(f"the loss is no longer finite at step {bad}"))

    def check_weights(self) -> None:
        """Raise Diverged when a weight is not finite; waits for the device."""
        named = list(self.model.named_parameters())
        if named and not bool(torch.stack([parameter.isfinite().all() for _, parameter in named]).all()):
            name = next(name for name, parameter in named if not parameter.isfinite().all())
            raise Diverged(self._advice(f"the weights {name} are no longer finite after step {self.state.step}"))

    def roll_back(self, error: Diverged) -> None:
        """Go back to the last checkpoint with half the learning rate.

        Raises the error itself where the settings do not want that, or it was done too often.
        """
        if self.settings.on_nan != "rollback" or self.rollbacks >= _MOST_ROLLBACKS:
            raise error
        factor, count = self.lr_factor / 2, self.rollbacks + 1
        self.restore()
        self.lr_factor, self.rollbacks = factor, count
        self.note(
            f"{str(error).partition(':')[0]}: back to step {self.state.step} with {factor:g} of the learning rate"
        )
        self.save()

    def agree(self) -> tuple[bool, bool]:
        """Whether the log is due and whether the last checkpoint is old, the same in all processes.

        A signal that one process has received is noted by all.
        """
        old = self.saving is not None and time.monotonic() - self._saved_at >= self.saving.every_seconds
        log, save, self.stopping = distributed.any_of(
            self.meter.due(self.settings.log_seconds), old, self.signals.received or 0
        )
        return bool(log), bool(save)

    def save(self) -> None:
        """Write a checkpoint, of good numbers only. Raises Diverged when they are not."""
        assert self.saving is not None
        self.check_loss()
        self.check_weights()
        self._saved_at = time.monotonic()
        if not distributed.first():
            return
        try:
            self.saving.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"the folder {self.saving.folder} cannot be made ({error.strerror})") from error
        checkpoint.write_checkpoint(self.saving.folder, self._content(self.saving))

    def restore(self) -> None:
        """Put back the folder's last whole checkpoint."""
        assert self.saving is not None
        content, warnings = checkpoint.latest_checkpoint(self.saving.folder)
        try:
            self._take_over(self.saving, content)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            if lacks_memory(error):
                raise
            raise FileError(
                f"the checkpoint in {self.saving.folder} does not fit this run ({type(error).__name__}: "
                f"{str(error)[:200]}): was it another run's, or another version's?"
            ) from error
        for warning in warnings:
            self.note(warning)

    def _take_over(self, saving: Saving, content: dict[str, Any]) -> None:
        before, now = content["trained_on"], self.task.amount(self.task.train)
        if before != now:
            raise DataError(f"the training set had {before} when the run began, now {now}: resume with the same data")
        if saving.restore is not None:
            saving.restore(content["structure"], content["method"])
        checkpoint.restore_model_(self.model, content["model"])
        checkpoint.restore_optimizer_(self.optimizer, content["optimizer"], self.model)
        counters = content["counters"]
        self.state.epoch, self.state.batch, self.state.step = counters["epoch"], counters["batch"], counters["step"]
        self.state.lr, self.lr_factor, self.rollbacks = counters["lr"], counters["lr_factor"], counters["rollbacks"]
        self.micro.size, self.ended_early = counters["micro_batch"], counters["ended_early"]
        self.rows, self.notes = content["rows"], content["notes"]
        self.meter = Meter(self.device)
        self.meter.restore(content["meter"])
        if distributed.first():
            restore_random_states_(content["random"])
        else:  # however many processes the run had before
            seed_everything_(self._seed("resumed", self.settings.first_epoch, self.state.step))

    def stop_if_signalled(self, save: bool = True) -> None:
        """Raise Interrupted when a signal asked for it before the last `agree`, as a rule after a checkpoint."""
        number = self.stopping
        if not number:
            return
        place = f"stopped by {signal.Signals(number).name} after step {self.state.step} (epoch {self.state.epoch})"
        if self.saving is None:
            raise Interrupted(number, f"{place}; nothing was saved")
        if save:
            self.save()
        raise Interrupted(number, f"{place}; to go on: compressor resume {self.saving.folder}")

    def history(self) -> History:
        """What the phase did."""
        return History(self.rows, self.notes, self.optimizer, self.ended_early)

    def _content(self, saving: Saving) -> dict[str, Any]:
        return {
            "phase": saving.phase,
            "structure": saving.structure(),
            "method": saving.method(),
            "model": checkpoint.model_state(self.model),
            "optimizer": checkpoint.optimizer_state(self.optimizer, self.model),
            "counters": {
                "epoch": self.state.epoch,
                "batch": self.state.batch,
                "step": self.state.step,
                "lr": self.state.lr,
                "lr_factor": self.lr_factor,
                "rollbacks": self.rollbacks,
                "micro_batch": self.micro.size,
                "ended_early": self.ended_early,
            },
            "meter": self.meter.state(),
            "random": random_states(),
            "rows": self.rows,
            "notes": self.notes,
            "settings": asdict(self.settings),
            "trained_on": self.task.amount(self.task.train),
        }

    def _advice(self, what: str) -> str:
        kept = "" if self.saving is None else f"; the last good checkpoint is in {self.saving.folder}"
        advice = "try a smaller `lr`, `warmup_epochs` 1, or `on_nan` rollback"
        return f"{what} (learning rate {self.state.lr:g}): {advice}{kept}"
