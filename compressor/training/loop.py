"""The one training loop: every phase of every method runs through `fit`, and changes it in two places only.

`step` is what one batch does. `after_step` is what happens between batches: a method that watches, and edits the model.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.errors import CompressorError, DataError, UsageError
from compressor.files.limits import lacks_memory
from compressor.training.batch_norm import synchronised
from compressor.training.batching import train_batches
from compressor.training.data import Data
from compressor.training.distributed import add_up_
from compressor.training.evaluate import first_output, modes_kept
from compressor.training.events import BatchEvent, EpochEvent, Event
from compressor.training.interrupt import deferred_signals
from compressor.training.microbatches import Step
from compressor.training.numerics import numerics
from compressor.training.run import Run
from compressor.training.schedule import set_lr_
from compressor.training.settings import TrainSettings
from compressor.training.state import AfterStep, Diverged, History, Saving

# Weight of every further output in training, such as GoogLeNet's two (Szegedy et al. 2015, section 5).
AUXILIARY_WEIGHT = 0.3


def fit(
    model: nn.Module,
    data: Data,
    settings: TrainSettings,
    *,
    step: Step | None = None,
    after_step: AfterStep | None = None,
    on_event: Callable[[Event], None] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    saving: Saving | None = None,
) -> History:
    """Train the model in place for one phase, `settings.epochs` epochs; it stays on the settings' device.

    `step(model, x, y)` makes the gradients of one batch (see `Step`; default: cross-entropy), `after_step(state)`
    follows every step of the optimizer and ends the phase by returning True. The model may change its shape there, as
    long as the optimizer is changed with it. Nothing is printed: `on_event` is told. With `saving`, checkpoints are
    written, and a phase that was broken off goes on from the last one to the same weights, bit for bit on the CPU.

    Raises Interrupted after SIGINT or SIGTERM, with a checkpoint written; CompressorError when the loss or a weight is
    no longer finite or memory is short of two images; DataError when images can no longer be read.
    """
    run = Run.of(model, data, settings, on_event, optimizer, saving)
    run = run.with_step(step or cross_entropy(settings.label_smoothing))
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
            raise CompressorError(f"out of memory ({one_line(error)[:200]}): choose another --device") from error
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
    for x, y in train_batches(run.data, settings, state.epoch, state.batch, run.device):
        state.lr = run.lr_now()
        set_lr_(optimizer, state.lr)
        loss, right = run.micro.run(run.forward, optimizer, x, y)
        loss, right, images = add_up_(model, loss, right, len(y))  # with the other processes', where there are any
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


def cross_entropy(label_smoothing: float = 0.0) -> Step:
    """The step of plain training: cross-entropy in nats against the labels.

    Raises UsageError for a label smoothing outside 0..1.
    """
    if not 0 <= label_smoothing <= 1:
        raise UsageError(f"label_smoothing={label_smoothing} must lie between 0 and 1")

    def step(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        outputs = model(x)
        scores = first_output(outputs)
        loss = functional.cross_entropy(scores.float(), y, label_smoothing=label_smoothing)
        if isinstance(outputs, tuple):
            for further in outputs[1:]:
                loss = loss + AUXILIARY_WEIGHT * functional.cross_entropy(further.float(), y)
        backward(loss)
        return loss.detach(), (scores.detach().argmax(1) == y).sum()

    return step


def backward(loss: Tensor) -> None:
    """Back-propagate from within a step: outside of the autocast that `fit` puts around it, as torch advises."""
    with torch.autocast(loss.device.type, enabled=False):
        loss.backward()
