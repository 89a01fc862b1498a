"""Teach a skipping network and its router, phase by phase: labels, network, router."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import DataError, UsageError
from compressor.graph.tensors import device_of
from compressor.routing.learning import all_depths, by_label, fit_gates, image_router, reset_
from compressor.routing.network import Routed
from compressor.routing.observing import (
    Balance,
    Observation,
    activations,
    as_good,
    balance,
    observe,
    outcome_labels,
    paper_labels,
)
from compressor.routing.router import ImageRouter
from compressor.routing.settings import RouteSettings
from compressor.training import checkpoint, distributed
from compressor.training.checkpoint import Saving
from compressor.training.data import AnySet, Data
from compressor.training.evaluate import evaluating
from compressor.training.events import BatchEvent, Event, NoteEvent
from compressor.training.loop import fit
from compressor.training.microbatches import Step
from compressor.training.numerics import choose_device
from compressor.training.schedule import start_lr
from compressor.training.sets import split_indices
from compressor.training.settings import TrainSettings
from compressor.training.task import Task

ALWAYS_WHOLE = 2.0  # a threshold above any probability
OVERFITTED = 0.05  # training accuracy above validation's by more than this: training images teach a router little
ROUTER_IMAGES = 100_000  # the most that teach it
ROUTER_TRAINING = TrainSettings(
    optimizer="rmsprop", lr=1e-3, optimizer_arg=(("alpha", 0.9), ("eps", 1e-7)), weight_decay=0.0,
    schedule="constant", augment="none", evaluate_every=0,
)  # fmt: skip


@dataclass
class Taught:
    """What teaching did."""

    labels: Balance  # of the images that were labelled
    calibration: Any  # validation images that no router learnt from: thresholds are chosen on them
    rows: list[dict[str, Any]] = field(default_factory=list)  # one an epoch
    router_top1: float | None = None  # of an image router: share of held-out labelled images whose label it names
    router_majority: float | None = None  # what always naming the commonest label would get right of them
    labelled_top1: float | None = None  # accuracy on held-out labelled images, each at its label's depth
    notes: list[str] = field(default_factory=list)


@dataclass
class Teacher:
    """One run of teaching; `tell` hears of every epoch and note."""

    network: nn.Module  # the user's, whose weights the skipping network shares
    routed: Routed
    data: Task
    training: TrainSettings
    settings: RouteSettings
    tell: Callable[[Event], None] = lambda _: None
    saving: Saving | None = None

    def teach(self) -> Taught:
        """All phases; the network is on the settings' device afterwards and in eval mode, its thresholds not chosen.

        Raises DataError where there are too few images to label or to learn from.
        """
        self.routed.to(choose_device(self.training.device))
        self.routed.set_threshold_(ALWAYS_WHOLE)
        taught = self._by_outcome() if self.settings.labels == "outcome" else self._by_activations()
        if taught.labels.constant is None:
            self._note(taught, f"the labels: {taught.labels.in_words()}")
        else:
            self._note(taught, f"every image has the label {taught.labels.constant}: there is nothing to route by")
        self.routed.eval()
        return taught

    def _by_outcome(self) -> Taught:
        """The network at all depths, then labels by what it gets right, then the router."""
        routed, data, settings = self.routed, self.data, self.settings
        if settings.init == "scratch":
            reset_(self.network, self.training.seed)
        taught = Taught(Balance(()), data.validation)
        known = self._reached("by-label")
        if known is not None:
            taught.rows += known["rows"]
        elif self.training.epochs:
            step = all_depths(routed, data.loss)
            taught.rows += self._fit(data, step, self.training, "all-depths")
        if settings.label_epochs:
            labels = outcome_labels(observe(routed, data.train, data).right) if known is None else known["labels"]
            known = {"rows": taught.rows, "labels": labels}
            gentle = start_lr(self.training) / 10
            later = replace(self.training, first_epoch=self.training.epochs, epochs=settings.label_epochs, lr=gentle)
            labelled = _with_depths(self.images, self.images.train, labels)
            taught.rows = taught.rows + self._fit(labelled, by_label(routed), later, "by-label", known)
        learn = self._router_set(taught)
        seen = observe(routed, learn, data, keep_seen=True)
        labels = outcome_labels(seen.right)
        taught.labels = balance(labels, routed.depths)
        if isinstance(routed.router, ImageRouter):
            self._teach_image_router(taught, learn, labels)
        else:
            suffices = as_good(seen.right)
            fit_gates(routed.router, seen.seen, suffices, epochs=settings.router_epochs, seed=self.training.seed)
        return taught

    def _by_activations(self) -> Taught:
        """Labels from the network as it came, then the router, then the network with each image at its depth."""
        routed, data, settings = self.routed, self.images, self.settings
        strength = distributed.from_first(lambda: activations(routed, data.train, data))
        chosen, labels = paper_labels(strength)
        taught = Taught(balance(labels, routed.depths), data.validation)
        labelled = data.train.take(chosen)
        kept, held_out = split_indices(labels, 0.2, self.training.seed)
        router = self._teach_image_router(taught, labelled, labels)
        routed.set_threshold_(0.0 if router.argmax else 0.5)
        if settings.init == "scratch":
            reset_(self.network, self.training.seed)
        if settings.skip_set == "paper":
            learn, depths = labelled.take(kept), labels[kept]
        else:
            learn, depths = data.train, self._completed(chosen, labels)
        if self.training.epochs:
            small = replace(self.training, batch_size=min(self.training.batch_size, len(learn)))
            taught.rows += self._fit(_with_depths(data, learn, depths), by_label(routed), small, "by-label")
        taught.labelled_top1 = top1_at_labels(routed, labelled.take(held_out), labels[held_out], data)
        return taught

    def _completed(self, chosen: Tensor, labels: Tensor) -> Tensor:
        """Depths for the whole training set: the labels, and for images without one what the router says."""
        depths = router_labels(self.routed, self.images.train, self.images)
        depths[chosen] = labels
        return depths

    def _teach_image_router(self, taught: Taught, images: AnySet, labels: Tensor) -> ImageRouter:
        """Train on four fifths of the labelled images, measure on the rest; returns the router."""
        router, seed = self.routed.router, self.training.seed
        assert isinstance(router, ImageRouter)
        kept, held_out = split_indices(labels, 0.2, seed)
        if len(held_out) < 1:
            raise DataError(f"the router cannot learn from {len(images)} labelled images: give more training data")
        chosen = replace(self.images, train=images.take(kept).with_labels(labels[kept]))
        step = image_router(labels[kept], self.routed.depths, weighted=router.argmax)
        training = replace(
            ROUTER_TRAINING, epochs=self.settings.router_epochs, seed=seed, device=self.training.device,
            batch_size=min(ROUTER_TRAINING.batch_size, max(8, len(kept) // 8)),
        )  # fmt: skip
        fit(router, chosen, training, step=step, on_event=self._batches)
        router.eval()
        named = router_labels(self.routed, images.take(held_out), self.images)
        taught.router_top1 = float((named == labels[held_out]).float().mean())
        taught.router_majority = balance(labels[held_out], self.routed.depths).largest_share
        return router

    @property
    def images(self) -> Data:
        """The data, where they are labelled images.

        Raises UsageError for a user's task: its examples cannot be given labels.
        """
        if not isinstance(self.data, Data):
            raise UsageError(f"{self.data.name} is a task: leave out `labels`, `router` and `label_epochs`")
        return self.data

    def _router_set(self, taught: Taught) -> Any:
        """The images whose outcomes teach the router; where they are validation images, the rest calibrate."""
        data, seed = self.data, self.training.seed
        learn = data.some(data.train, ROUTER_IMAGES, seed)
        fresh = observe(self.routed, data.validation, data)
        lead = _top1(observe(self.routed, data.some(learn, len(fresh), seed), data)) - _top1(fresh)
        if lead <= OVERFITTED:
            return learn
        self._note(
            taught,
            f"training images are right {lead:.1%} more often than validation images: the router learns from half of "
            "the validation images",
        )
        taught.calibration, held = data.halves(data.validation, seed)
        return held

    def _reached(self, phase: str) -> dict[str, Any] | None:
        """What a run that goes on from the middle of this phase, and not its beginning, knew then."""
        content = checkpoint.reached(self.saving)
        return None if content is None or content["phase"] != phase else content["method"] or None

    def _fit(
        self, data: Task, step: Step, training: TrainSettings, phase: str, known: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """A phase of the network; `known` is what a run that goes on in it has to be given back."""
        saving = self.saving
        if saving is not None:
            resume = saving.resume and (known is None or self._reached(phase) is not None)
            saving = replace(saving, phase=phase, resume=resume, method=lambda: known or {})
        return fit(self.routed, data, training, step=step, on_event=self.tell, saving=saving).rows

    def _batches(self, event: Event) -> None:
        """Of the router, whose epochs are none of the network's."""
        if isinstance(event, BatchEvent):
            self.tell(event)

    def _note(self, taught: Taught, text: str) -> None:
        taught.notes.append(text)
        self.tell(NoteEvent(text))


@distributed.by_first
def router_labels(routed: Routed, image_set: AnySet, data: Data) -> Tensor:
    """The depth that an image router finds most probable, int64 (images,)."""
    named = []
    with evaluating(routed), torch.no_grad():
        for x, _ in data.counted("routing", image_set, device=device_of(routed)):
            named.append(routed.router(x).argmax(1).cpu())
    return torch.cat(named)


def top1_at_labels(routed: Routed, image_set: AnySet, depths: Tensor, data: Data) -> float:
    """Accuracy when every image leaves at a given depth, int64 (images,); a fraction."""
    right, done = 0, 0
    with evaluating(routed), torch.no_grad():
        for x, y in data.counted("routing", image_set, device=device_of(routed)):
            scores = routed.scores_at(x, depths[done : done + len(x)].to(x.device))
            right += int((scores.argmax(1) == y).sum())
            done += len(x)
    return right / max(1, done)


def _with_depths(data: Data, images: AnySet, depths: Tensor) -> Data:
    """The data with these images to train on, each with its class and its depth as label."""
    return replace(data, train=images.with_labels(torch.stack([images.labels, depths], 1)))


def _top1(seen: Observation) -> float:
    return float(seen.right[:, -1].float().mean())
