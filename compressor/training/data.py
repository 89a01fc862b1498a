"""Opening a data set by its spec, `digits` or `cifar10:DIR`, and fitting its images to a model."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from compressor.errors import DataError, ModelError, UsageError, did_you_mean
from compressor.files.paths import named_alike
from compressor.graph.tensors import device_of
from compressor.training import distributed, sets
from compressor.training.batching import (
    InputTransform,
    choose_augmentation,
    describe_fit,
    preparation_for,
    with_channels,
    with_normalisation,
)
from compressor.training.evaluate import modes_kept
from compressor.training.folders import open_splits, scan
from compressor.training.numerics import generator
from compressor.training.sets import Draws, ImageSet, NamedSet, read_digits, split_indices
from compressor.training.settings import NAMED_SETS, SPECS, DataSettings, TrainSettings
from compressor.training.streaming import FolderSet
from compressor.training.task import Model, Pair, Task, by_class, first_output
from compressor.vision.preparation import Preparation

AnySet = ImageSet | FolderSet

# Weight of every further output in training, such as GoogLeNet's two (Szegedy et al. 2015, section 5).
AUXILIARY_WEIGHT = 0.3


@dataclass(frozen=True, eq=False)
class Data(Task):
    """Labelled images and the task of classifying them: train to learn from, validation for every decision, test for
    the final number."""

    figures = ("top1", "loss")
    unit = "images"

    name: str  # the spec
    train: AnySet
    validation: AnySet
    test: AnySet
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]  # (channels, height, width) that batches have
    preparation: Preparation  # with a mean and deviation for each of these channels
    suits: str  # the augmentation that `augment="auto"` means here
    notes: list[str]  # lines to tell the user: what was resized, split, left out
    problems: list[tuple[str, str]]  # (path, reason) of images left out; grows while a large folder is being read

    def transform(self, device: torch.device, channels_last: bool = False) -> InputTransform:
        """What makes stored images into the network's inputs."""
        return InputTransform.of(self.input_shape, self.preparation, device, channels_last)

    def steps(self, settings: TrainSettings) -> int:
        """As in `Task`. Raises UsageError for a batch size below 1 for each process."""
        if min(settings.batch_size, len(self.train)) < distributed.size():
            raise UsageError(
                f"{distributed.size()} processes share every batch: give a larger `batch_size`, or start fewer"
            )
        return max(1, len(self.train) // settings.batch_size)

    def training(self, settings: TrainSettings, epoch: int, start: int, device: torch.device) -> Iterator[Pair]:
        """As in `Task`, shuffled and augmented.

        A last batch that is not full is left out (other images each epoch), unless it is the only one.
        """
        augmentation = choose_augmentation(settings.augment, self.suits)
        order = _order(self.train, settings.seed, "order", epoch)
        indices = order.split(settings.batch_size)[: self.steps(settings)]
        draws = Draws(augmentation, settings.seed, epoch, start, distributed.own_part)
        prepare = self.transform(device, settings.channels_last)
        for images, labels in self.train.read(indices[start:], device, draws):
            yield prepare(images), labels

    def passing(
        self,
        part: AnySet,
        batch_size: int | None = None,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As in `Task`: float `(batch, *input_shape)` and labels; without a batch size it is `easy_batch_size`."""
        return self._read(part, torch.arange(len(part)), batch_size or self.easy_batch_size, device, channels_last)

    def drawn(
        self, part: AnySet, count: int, seed: int, device: torch.device, batch_size: int = 128
    ) -> Iterator[tuple[Tensor, Tensor]]:
        return self._read(part, _order(part, seed, "score")[:count], batch_size, device)

    def alike(
        self, part: AnySet, batches: int, batch_size: int | None, seed: int, device: torch.device
    ) -> Iterator[Pair]:
        size = min(batch_size or self.easy_batch_size, len(part))
        count = min(batches, len(part) // size) * size
        return self._read(part, _order(part, seed, "recalibrate")[:count], size, device)

    def examples(self, part: AnySet, count: int = 8, device: torch.device | str = "cpu") -> Tensor:
        """Up to `count` images spread evenly over a part, as the network takes them: `(count, *input_shape)`."""
        spread = torch.linspace(0, len(part) - 1, min(count, len(part))).long()
        return next(self._read(part, spread, count, device))[0]

    def _read(
        self, part: AnySet, chosen: Tensor, size: int, device: torch.device | str, channels_last: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        place = torch.device(device)
        prepare = self.transform(place, channels_last)
        for images, labels in part.read(chosen.split(size), place):
            yield prepare(images), labels

    @property
    def easy_batch_size(self) -> int:
        """A batch that needs no thought where nothing is learnt: 512 images of 3x64x64 and below, 41 of 3x224x224."""
        return max(1, min(512, 512 * 3 * 64 * 64 // math.prod(self.input_shape)))

    def count_in(self, pair: Pair) -> int:
        """Images."""
        return len(pair[1])

    def halves(self, part: AnySet, seed: int) -> tuple[AnySet, AnySet]:
        """As in `Task`, of every class."""
        first, second = split_indices(part.labels, 0.5, seed)
        return part.take(first), part.take(second)

    def some(self, part: AnySet, count: int, seed: int) -> AnySet:
        return part.take(_order(part, seed, "router")[:count].sort().values)

    def with_test(self, part: AnySet) -> "Data":
        return replace(self, test=part)

    def correct(self, outputs: Any, y: Tensor) -> Tensor:
        return by_class(outputs, y)

    def labels(self, y: Tensor) -> Tensor:
        return y

    def loss(self, model: Model, x: Tensor, y: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """See `cross_entropy`."""
        return cross_entropy(model, x, y, smoothing)

    def measure(self, model: Model, pairs: Iterable[Pair]) -> dict[str, float]:
        """The share of images whose largest score is their class's, and the mean cross-entropy.

        Raises ModelError when the scores have another shape.
        """
        right: Tensor | int = 0
        loss: Tensor | int = 0
        count = 0
        for x, y in pairs:
            scores = first_output(model(x))
            if scores.ndim != 2 or len(scores) != len(y) or scores.shape[1] < len(self.classes):
                shape = tuple(scores.shape)
                raise ModelError(f"the model gives {shape} for {len(y)} images of {len(self.classes)} classes")
            right = right + (scores.argmax(1) == y).sum()
            loss = loss + functional.cross_entropy(scores.float(), y, reduction="sum").double()
            count += len(y)
        return {"top1": int(right) / count, "loss": float(loss) / count}

    def imitation(self, given: Any, wanted: Any, temperature: float) -> Tensor:
        """Divergence of softened scores from the teacher's in nats, times the temperature's square.

        Reference: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", section 2.
        """
        student = functional.log_softmax(first_output(given).float() / temperature, dim=1)
        target = functional.log_softmax(first_output(wanted).float() / temperature, dim=1)
        return functional.kl_div(student, target, reduction="batchmean", log_target=True) * temperature**2

    def takes_channels_last(self, model: nn.Module, *, training: bool = False) -> bool:
        """As in `Task`, in eval mode and, if asked for, in training mode too; its statistics and the random generators
        stay as they are.

        One that reads its maps with `view` does not: their rows no longer follow each other. Two black images are
        tried; a model that cannot take them in any layout says so where it is used.
        """
        images = torch.zeros(2, *self.input_shape, device=device_of(model))
        images = images.contiguous(memory_format=torch.channels_last)
        gpu = [images.device] if images.is_cuda else []
        with modes_kept(model), torch.no_grad(), torch.random.fork_rng(devices=gpu):
            try:
                for mode in (False, True)[: 1 + training]:
                    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
                    functional_call(model.train(mode), kept, (images,))
            except (RuntimeError, ValueError):  # batch norm over a single value
                return False
        return True


def cross_entropy(model: Model, x: Tensor, y: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Cross-entropy of a model's scores in nats, with a share of that of its further outputs; and the right answers."""
    outputs = model(x)
    scores = first_output(outputs)
    loss = functional.cross_entropy(scores.float(), y, label_smoothing=smoothing)
    if isinstance(outputs, tuple):
        for further in outputs[1:]:
            loss = loss + AUXILIARY_WEIGHT * functional.cross_entropy(further.float(), y)
    return loss, by_class(scores.detach(), y).sum()


def open_data(
    spec: str,
    loading: DataSettings | None = None,
    *,
    input_shape: tuple[int, int, int] | None = None,
    preparation: Preparation | None = None,
) -> Data:
    """Open a data set; `input_shape` is the model's, to which batches are then resized, as `preparation` says where the
    model has its own.

    The validation set is `loading.validation` (a fraction) of each class of the training set, drawn by `loading.seed`,
    where the data bring none of their own.

    Example: `open_data("digits").train.images` is uint8 `(1295, 1, 8, 8)`.

    Raises UsageError for an unknown spec or a mean that does not fit, DataError for data that are missing, empty or
    damaged.
    """
    loading = loading or DataSettings()
    if not 0 < loading.validation < 1:
        raise UsageError(
            f"validation={loading.validation} must be a fraction between 0 and 1: a share of the training set"
        )
    kind, root = _place(spec, loading.download)
    notes: list[str] = []
    problems: list[tuple[str, str]] = []
    splits: dict[str, AnySet]
    if kind == "folder":
        folder = scan(root, loading.bad_images)
        notes, problems = folder.notes, folder.problems
        splits, prepared = open_splits(folder, input_shape, preparation, loading.decode_cache)
        classes, suits = folder.classes, "crop+flip"
    else:
        named = _named(kind, root, loading.download)
        splits, classes, suits = {"train": named.train, "test": named.test}, named.classes, named.suits
        prepared = preparation or Preparation((0.0,), (1.0,))
    if "validation" not in splits:
        kept, held_out = split_indices(splits["train"].labels, loading.validation, loading.seed)
        splits["validation"], splits["train"] = splits["train"].take(held_out), splits["train"].take(kept)
    stored = splits["train"].shape
    if preparation is None:
        mean, std = splits["train"].normalisation()
        prepared = replace(prepared, mean=mean, std=std)
    prepared = with_channels(prepared, stored[0])
    data = Data(
        spec, **splits, classes=classes, input_shape=stored, preparation=prepared, suits=suits,
        notes=notes, problems=problems,
    )  # fmt: skip
    if input_shape is not None:
        data = with_input_shape(data, input_shape, preparation)
    return replace(data, preparation=with_normalisation(data.preparation, loading, data.input_shape[0]))


def _named(kind: str, root: Path, download: bool) -> NamedSet:
    if kind == "digits":
        return read_digits()
    found: NamedSet = getattr(sets, NAMED_SETS[kind])(root, download)
    return found


def _place(spec: str, download: bool) -> tuple[str, Path]:
    """The kind of a data set and its folder. Raises UsageError and DataError as `open_data` does."""
    kind, _, place = spec.partition(":")
    if kind not in ("digits", "folder", *NAMED_SETS) or (kind == "digits") != (place == ""):
        kinds = {known.partition(":")[0] for known in SPECS}
        hint = "" if kind in kinds else did_you_mean(kind, kinds)
        if place == "" and Path(spec).expanduser().is_dir():
            hint = f" (did you mean folder:{spec}?)"
        raise UsageError(f"unknown data {spec!r}{hint}: choose {', '.join(SPECS)}")
    root = Path(place).expanduser()
    if place and not download and not root.is_dir():
        raise DataError(f"{spec}: there is no folder {root}{named_alike(root, folder=True)}")
    return kind, root


def with_input_shape(data: Data, input_shape: tuple[int, int, int], preparation: Preparation | None = None) -> Data:
    """The same data with batches of another shape (channels, height, width); a note says what is done to the images.

    Without a model's own preparation that of the data set is adapted.
    """
    stored = data.train.shape
    if len(input_shape) != 3 or input_shape[0] not in (1, 3, stored[0]):
        raise DataError(f"{data.name} holds {stored[0]}-channel images, the model takes {input_shape}: give other data")
    preparation = preparation or preparation_for(data.preparation, stored, input_shape)
    if input_shape != stored:
        data.notes.append(describe_fit(stored, input_shape, preparation))
    return replace(data, input_shape=input_shape, preparation=with_channels(preparation, input_shape[0]))


def _order(part: AnySet, seed: int, *purpose: str | int) -> Tensor:
    return torch.randperm(len(part), generator=generator(torch.device("cpu"), seed, *purpose))
