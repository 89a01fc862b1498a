"""Opening a data set by its spec, `digits` or `cifar10:DIR`, and fitting it to a model."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from compressor.errors import DataError, UsageError
from compressor.training.folders import open_splits, scan
from compressor.training.named_sets import NAMED_SETS, read_digits
from compressor.training.resizing import describe_fit
from compressor.training.sets import ImageSet, split_indices
from compressor.training.settings import DataSettings
from compressor.training.streaming import FolderSet

AnySet = ImageSet | FolderSet
SPECS = ("digits", *(f"{name}:DIR" for name in NAMED_SETS), "folder:DIR")

# Channel means and deviations of ImageNet's photographs, for sets too large to measure.
PHOTOGRAPHS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True, eq=False)
class Data:
    """A data set in three parts: train to learn from, validation for every decision, test for the final number."""

    name: str  # the spec
    train: AnySet
    validation: AnySet
    test: AnySet
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]  # (channels, height, width) that batches have
    mean: tuple[float, ...]  # per channel, in 0..1
    std: tuple[float, ...]
    suits: str  # the augmentation that `augment="auto"` means here
    notes: list[str]  # lines to tell the user: what was resized, split, left out
    problems: list[tuple[str, str]]  # (path, reason) of images left out; grows while a large folder is being read


def open_data(
    spec: str,
    *,
    validation: float = DataSettings.validation,
    seed: int = DataSettings.seed,
    download: bool = DataSettings.download,
    input_shape: tuple[int, int, int] | None = None,
    bad_images: str = DataSettings.bad_images,
) -> Data:
    """Open a data set; `input_shape` is the model's, to which batches are then resized.

    The validation set is `validation` (a fraction) of each class of the training set, drawn by `seed`, where the data
    bring none of their own.

    Example: `open_data("digits").train.images` is uint8 `(1295, 1, 8, 8)`.

    Raises UsageError for an unknown spec, DataError for data that are missing, empty or damaged.
    """
    if not 0 < validation < 1:
        raise UsageError(f"validation={validation} must be a fraction between 0 and 1: a share of the training set")
    kind, _, place = spec.partition(":")
    if kind not in ("digits", "folder", *NAMED_SETS) or (kind == "digits") != (place == ""):
        near = difflib.get_close_matches(kind, [known.partition(":")[0] for known in SPECS], 1)
        hint = f" (meant {near[0]}?)" if near and near[0] != kind else ""
        raise UsageError(f"unknown data {spec!r}{hint}: choose {', '.join(SPECS)}")
    root = Path(place).expanduser()
    if place and not download and not root.is_dir():
        raise DataError(f"{spec}: there is no folder {root}")
    notes: list[str] = []
    problems: list[tuple[str, str]] = []
    splits: dict[str, AnySet]
    if kind == "folder":
        folder = scan(root, bad_images)
        notes, problems = folder.notes, folder.problems
        splits, classes, suits = open_splits(folder, input_shape), folder.classes, "crop+flip"
    else:
        named = NAMED_SETS[kind](root, download) if place else read_digits()
        splits, classes, suits = {"train": named.train, "test": named.test}, named.classes, named.suits
    if "validation" not in splits:
        kept, held_out = split_indices(splits["train"].labels, validation, seed)
        splits["validation"], splits["train"] = splits["train"].take(held_out), splits["train"].take(kept)
    mean, std = _normalisation(splits["train"])
    data = Data(
        spec, **splits, classes=classes, input_shape=_stored_shape(splits["train"]), mean=mean, std=std, suits=suits,
        notes=notes, problems=problems,
    )  # fmt: skip
    return data if input_shape is None else with_input_shape(data, input_shape)


def with_input_shape(data: Data, input_shape: tuple[int, int, int]) -> Data:
    """The same data with batches of another shape (channels, height, width); a note says what is done to the images."""
    stored = _stored_shape(data.train)
    if len(input_shape) != 3 or input_shape[0] not in (1, 3, stored[0]):
        raise DataError(f"{data.name} holds {stored[0]}-channel images, the model takes {input_shape}: give other data")
    if input_shape != stored:
        data.notes.append(describe_fit(stored, input_shape))
    channels = input_shape[0]
    mean, std = (_per_channel(values, channels) for values in (data.mean, data.std))
    return replace(data, input_shape=input_shape, mean=mean, std=std)


def fit_to_model(
    data: Data,
    outputs: int,
    *,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Data:
    """The data as a model with so many outputs takes them: labels by the model's class names, its normalisation.

    Where the model knows all of the data's classes and more, labels are renumbered by name. Where it shares no name
    with the data but their number agrees, they are taken in order, with a note.

    Raises DataError when the classes do not fit: names that the model lacks, or another number of them.
    """
    if mean is not None and std is not None:
        data = replace(data, mean=_per_channel(mean, data.input_shape[0]), std=_per_channel(std, data.input_shape[0]))
    if classes is not None and tuple(classes) != data.classes and set(classes) & set(data.classes):
        lacking = [name for name in data.classes if name not in classes]
        if lacking:
            raise DataError(
                f"the model lacks {len(lacking)} of the data's classes: {', '.join(lacking[:5])}: remove them"
            )
        data.notes.append(f"the data have {len(data.classes)} of the model's {len(classes)} classes, matched by name")
        number = torch.tensor([list(classes).index(name) for name in data.classes])
        sets = {name: getattr(data, name) for name in ("train", "validation", "test")}
        return replace(data, classes=tuple(classes), **{n: s.with_labels(number[s.labels]) for n, s in sets.items()})
    if len(data.classes) != outputs:
        raise DataError(
            f"{data.name} has {len(data.classes)} classes, the model has {outputs} outputs: give data of {outputs} "
            f"classes or a model with {len(data.classes)} outputs"
        )
    if classes is not None and tuple(classes) != data.classes:
        data.notes.append("the model's class names are others than the data's: labels are taken in their order")
    return data


def _stored_shape(image_set: AnySet) -> tuple[int, int, int]:
    if isinstance(image_set, FolderSet):
        return image_set.shape
    channels, height, width = image_set.images.shape[1:]
    return channels, height, width


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """One value a channel: grey's repeated, colour's averaged, as many as needed kept."""
    if len(values) == channels:
        return tuple(values)
    return (sum(values) / len(values),) * channels


def _normalisation(image_set: AnySet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of the pixels in 0..1, from exact counts of the 256 levels."""
    if isinstance(image_set, FolderSet):
        return tuple(_per_channel(values, image_set.shape[0]) for values in PHOTOGRAPHS)  # type: ignore[return-value]
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(image_set.images.shape[1]):
        counts: Tensor = torch.bincount(image_set.images[:, channel].flatten(), minlength=256).double()
        mean = (counts * levels).sum() / counts.sum()
        variance = (counts * (levels - mean) ** 2).sum() / counts.sum()
        means.append(float(mean))
        stds.append(max(float(variance.sqrt()), 1 / 255))  # images of one colour have no deviation to divide by
    return tuple(means), tuple(stds)
