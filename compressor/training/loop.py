"""The one training loop: every phase of every method runs through `fit`, and changes it in two places only.

`step` is what one batch does. `after_step` is what happens between batches: a method that watches, and edits the model.
"""

from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import CompressorError, DataError, UsageError
from compressor.files.limits import lacks_memory
from compressor.training.batch_norm import synchronised
from compressor.training.checkpoint import AfterStep, Diverged, History, Saving
from compressor.training.distributed import add_up_
from compressor.training.evaluate import modes_kept
from compressor.training.events import BatchEvent, EpochEvent, Listener
from compressor.training.interrupt import deferred_signals
from compressor.training.microbatches import Step
from compressor.training.numerics import numerics
from compressor.training.run import Run
from compressor.training.schedule import set_lr_
from compressor.training.settings import DistillSettings, TrainSettings
from compressor.training.task import Task, called, examples_in


def fit(
    model: nn.Module,
    task: Task,
    settings: TrainSettings,
    *,
    step: Step | None = None,
    after_step: AfterStep | None = None,
    on_event: Listener = None,
    optimizer: torch.optim.Optimizer | None = None,
    saving: Saving | None = None,
) -> History:
    """Train the model in place for one phase, `settings.epochs` epochs; it stays on the settings' device.

    `step(model, x, y)` makes the gradients of one batch (see `Step`; default: of the task's loss), `after_step(state)`
    follows every step of the optimizer and ends the phase by returning True. The model may change its shape there, as
    long as the optimizer is changed with it. Nothing is printed: `on_event` is told. With `saving`, checkpoints are
    written, and a phase that was broken off goes on from the last one to the same weights, bit for bit on the CPU.

    Raises Interrupted after SIGINT or SIGTERM, with a checkpoint written; CompressorError when the loss or a weight is
    no longer finite or memory is short of two images; DataError when images can no longer be read.
    """
    step = step or plain(task, settings.label_smoothing)
    run = Run.of(model, task, settings, step, on_event, optimizer, saving)
    with (
        modes_kept(model),
        numerics(settings, run.device),
        synchronised(model, settings.sync_bn),
        deferred_signals() as run.signals,
    ):
        try:
            run.begin()
            while not run.done:
                train_until_it_fails(run, after_step)
        finally:
            # Whoever measures the model next finds it laid out as it came.
            model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return run.history()


def train_until_it_fails(run: Run, after_step: AfterStep | None) -> None:
    """Epochs until the phase is done, or until the numbers go bad and it is taken back to the last checkpoint."""
    try:
        while not run.done:
            train_epoch(run, after_step)
    except Diverged as error:
        run.roll_back(error)
    except (RuntimeError, DataError) as error:
        if lacks_memory(error):  # of the optimizer or the evaluation: smaller pieces of a batch do not help there
            raise CompressorError(f"out of memory ({one_line(error)[:200]}): choose another `device`") from error
        if not isinstance(error, DataError) and "DataLoader worker" not in str(error):
            raise
        # The workers that read images may have died of a signal that this process has noted. Their death is told in the
        # middle of anything, perhaps half a step, so nothing is saved now.
        run.stopping = run.signals.received or 0
        run.stop_if_signalled(save=False)
        raise DataError(one_line(error)) from error


def train_epoch(run: Run, after_step: AfterStep | None) -> None:
    """One epoch, or the rest of one, and its row in the history."""
    model, optimizer, settings, state, meter = run.model, run.optimizer, run.settings, run.state, run.meter
    model.train()
    for x, y in run.task.training(settings, state.epoch, state.batch, run.device):
        state.lr = run.lr_now()
        set_lr_(optimizer, state.lr)
        loss, right = run.micro.run(model, optimizer, x, y)
        loss, right, images = add_up_(
            model, loss, right, examples_in(x)
        )  # with the other processes', where there are any
        optimizer.step()

        state.batch += 1
        state.step += 1
        meter.add(loss, right, images, state.step)
        if run.device.type == "cpu":  # elsewhere a look at the loss would wait for the device
            run.check_loss()
        if after_step is not None and after_step(state):
            run.ended_early = True
            break
        due, saving_due = run.agree()
        if due:
            run.check_loss()
            loss_now, top1, speed = meter.since_last()
            left = (run.steps_left() * settings.batch_size) / max(speed, 1e-9)
            run.tell(
                BatchEvent(state.epoch, run.end, state.batch, state.batches, loss_now, top1, speed, left, state.lr)
            )
        if saving_due:
            run.save()
        run.stop_if_signalled()

    run.check_loss()
    run.check_weights()
    run.tell(EpochEvent(run.close_epoch(), run.end))
    if run.saving is not None:
        run.save()
    run.agree()
    run.stop_if_signalled()


def one_line(error: Exception) -> str:
    """An error's text on one line."""
    return " ".join(str(error).split())


def plain(task: Task, smoothing: float = 0.0) -> Step:
    """The step of plain training: the task's own loss."""

    def step(model: nn.Module, x: Any, y: Any) -> tuple[Tensor, Tensor | None]:
        loss, right = task.loss(model, x, y, smoothing)
        backward(loss)
        return loss.detach(), right

    return step


def backward(loss: Tensor) -> None:
    """Back-propagate from within a step: outside of the autocast that `fit` puts around it, as torch advises."""
    with torch.autocast(loss.device.type, enabled=False):
        loss.backward()


def distilling(teacher: nn.Module, settings: DistillSettings, task: Task, smoothing: float = 0.0) -> Step:
    """A step whose loss is (1 - weight) * the task's + weight * how far the outputs are from the teacher's.

    The teacher, on the model's device, is put into eval mode and never changed otherwise. Scores of classes are
    softened by the temperature (see `Data.imitation`); of a user's task all tensors that the model returns count.

    Raises UsageError for a temperature of 0.
    """
    weight, temperature = settings.distill_weight, settings.distill_temperature
    if temperature <= 0:
        raise UsageError(f"distill_temperature={temperature} must be above 0")
    teacher.eval().requires_grad_(False)

    def step(model: nn.Module, x: Any, y: Any) -> tuple[Tensor, Tensor | None]:
        given: list[Any] = []
        with torch.no_grad():
            wanted = called(teacher, x)
        hook = model.register_forward_hook(lambda _, __, outputs: given.append(outputs))
        try:
            own, right = task.loss(model, x, y, smoothing)
        finally:
            hook.remove()
        loss = (1 - weight) * own + weight * task.imitation(given[-1], wanted, temperature)
        backward(loss)
        return loss.detach(), right

    return step
