"""The two phases: representation, where capsules learn from local losses; then the classifier alone."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from compressor.graph.trace import trace
from compressor.primenet.learning import LocalLearning, WithOneScale, best_scale, local_losses, refuse_single
from compressor.primenet.network import PrimeNetwork
from compressor.training import checkpoint
from compressor.training.checkpoint import Saving
from compressor.training.evaluate import evaluate
from compressor.training.events import EpochEvent, Event, Listener
from compressor.training.loop import fit
from compressor.training.settings import TrainSettings
from compressor.training.task import Task

REPRESENTATION, CLASSIFIER = "representation", "classifier"


@dataclass(frozen=True)
class Learnt:
    """What both phases did; plain data, as checkpoints hold it."""

    rows: list[dict[str, Any]]  # one an epoch; in the first phase with each scale's local loss and batches won
    losses: dict[str, float]  # scale -> mean local loss on the validation set, when the first phase ended
    kept: tuple[int, ...]  # scales of the block that is left


def train_in_two_phases(
    network: PrimeNetwork,
    data: Task,
    training: TrainSettings,
    *,
    on_event: Listener = None,
    saving: Saving | None = None,
) -> Learnt:
    """Train a network whose block is learning, in place; afterwards its block is settled.

    `training` is of the first phase, and of the second but for its epochs and batch size. After the first the scale
    whose local classifier does best on the validation set stays, or all of them where images are to choose.

    Reference: section 4.1, 100 epochs with batches of 200, then 50 with batches of 32. Our reading: the paper evaluates
    its features by retraining what reads them, so the block is held in the second phase, and only there.

    Raises UsageError for batches of one image; what `fit` raises.
    """
    settings = network.settings
    refuse_single(training.batch_size)
    refuse_single(settings.retrain_batch_size)
    reached = checkpoint.reached(saving)
    if reached is not None and reached["phase"] == CLASSIFIER:
        rows, losses = reached["method"]["rows"], reached["method"]["losses"]
    else:
        rows = represent_(network, data, training, on_event, saving)
        losses = {str(scale): loss for scale, loss in local_losses(network, data.validation, data).items()}
    kept = network.stage.block.scales
    if settings.inference == "static":
        kept = (best_scale({int(scale): loss for scale, loss in losses.items()}),)
    network.stage.block.settle_(kept)
    if saving is not None:
        resume = reached is not None and reached["phase"] == CLASSIFIER
        known = {"rows": rows, "losses": losses}
        saving = replace(saving, resume=resume, method=lambda: known)
    later = retrain_(network, data, training, on_event, saving)
    return Learnt([*rows, *later], losses, kept)


def represent_(
    network: PrimeNetwork, data: Task, training: TrainSettings, on_event: Listener = None, saving: Saving | None = None
) -> list[dict[str, Any]]:
    """The first phase, in place: capsules learn from local losses, all else from the network's; returns its rows.

    Where one scale will be kept, the validation figures of an epoch are those with the scale that would be, then.
    """
    learning = LocalLearning(network, network.settings, data.loss, data.labels)
    tell = _renaming(REPRESENTATION, on_event)
    every = training.evaluate_every if network.settings.inference == "static" else 0

    def close(event: Event) -> None:
        if isinstance(event, EpochEvent):
            event.row.update(learning.close_epoch())
            done = event.row["epoch"] + 1 - training.first_epoch
            if every and (done % every == 0 or done == training.epochs):
                event.row.update(_with_best(network, data))
        tell(event)

    if saving is not None:
        saving = replace(
            saving,
            phase=REPRESENTATION,
            method=learning.state_dict,
            restore=lambda _, method: learning.load_state_dict(method),
        )
    unasked = replace(training, evaluate_every=0 if every else training.evaluate_every)
    return fit(network, data, unasked, step=learning, on_event=close, saving=saving).rows


def retrain_(
    network: PrimeNetwork, data: Task, training: TrainSettings, on_event: Listener = None, saving: Saving | None = None
) -> list[dict[str, Any]]:
    """The second phase, in place: what reads the settled block learns, the block is held; returns its rows.

    `training` is that of the first phase; epochs and batch size come from the network's settings.
    """
    second = replace(
        training,
        first_epoch=training.first_epoch + training.epochs,
        epochs=network.settings.retrain_epochs,
        batch_size=network.settings.retrain_batch_size,
    )
    if saving is not None:
        saving = replace(saving, phase=CLASSIFIER)
    with network.only(_retrained(network, data)):
        return fit(network, data, second, on_event=_renaming(CLASSIFIER, on_event), saving=saving).rows


def _with_best(network: PrimeNetwork, data: Task) -> dict[str, Any]:
    losses = local_losses(network, data.validation, data)
    result = evaluate(WithOneScale(network, best_scale(losses)), data.validation, data)
    named = {str(scale): loss for scale, loss in losses.items()}
    return {"validation_local_losses": named, **{f"validation_{name}": each for name, each in result.figures.items()}}


def _renaming(phase: str, on_event: Listener) -> Callable[[Event], None]:
    """The same listener, told rows that bear the phase's name also where nothing is saved."""

    def tell(event: Event) -> None:
        if isinstance(event, EpochEvent):
            event.row["phase"] = phase
        if on_event is not None:
            on_event(event)

    return tell


def _retrained(network: PrimeNetwork, data: Task) -> tuple[nn.Module, ...]:
    """What learns in the second phase: everything that reads the block, or the last layer with weights alone."""
    if network.settings.retrain == "rest":
        return network.stage.projection, network.rest
    return (_last_layer(network, data.examples(data.validation, 1)),)


def _last_layer(network: nn.Module, example: Tensor) -> nn.Module:
    """The module whose weights are the last to be multiplied with."""
    found = trace(network, example)
    layers = (found.parameters[ref.index] for op in found.ops for ref in op.inputs if ref.index in found.parameters)
    return network.get_submodule(list(layers)[-1].rpartition(".")[0])
