"""Opening a data set by its spec, `digits` or `cifar10:DIR`, and fitting it to a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from compressor.errors import DataError, UsageError, did_you_mean
from compressor.training import named_sets
from compressor.training.folders import open_splits, scan
from compressor.training.resizing import describe_fit, preparation_for
from compressor.training.sets import ImageSet, split_indices
from compressor.training.settings import NAMED_SETS, SPECS, DataSettings
from compressor.training.streaming import FolderSet
from compressor.vision.preparation import Preparation

AnySet = ImageSet | FolderSet

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
    preparation: Preparation  # with a mean and deviation for each of these channels
    suits: str  # the augmentation that `augment="auto"` means here
    notes: list[str]  # lines to tell the user: what was resized, split, left out
    problems: list[tuple[str, str]]  # (path, reason) of images left out; grows while a large folder is being read

    @property
    def mean(self) -> tuple[float, ...]:
        """Of each channel, in 0..1."""
        return self.preparation.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Of each channel, in 0..1."""
        return self.preparation.std


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
        splits, prepared = open_splits(folder, input_shape, preparation)
        classes, suits = folder.classes, "crop+flip"
    else:
        named = _named(kind, root, loading.download)
        splits, classes, suits = {"train": named.train, "test": named.test}, named.classes, named.suits
        prepared = preparation or Preparation((0.0,), (1.0,))
    if "validation" not in splits:
        kept, held_out = split_indices(splits["train"].labels, loading.validation, loading.seed)
        splits["validation"], splits["train"] = splits["train"].take(held_out), splits["train"].take(kept)
    stored = _stored_shape(splits["train"])
    if preparation is None:
        mean, std = _normalisation(splits["train"])
        prepared = replace(prepared, mean=mean, std=std)
    prepared = with_channels(prepared, stored[0])
    data = Data(
        spec, **splits, classes=classes, input_shape=stored, preparation=prepared, suits=suits,
        notes=notes, problems=problems,
    )  # fmt: skip
    if input_shape is not None:
        data = with_input_shape(data, input_shape, preparation)
    return replace(data, preparation=with_normalisation(data.preparation, loading, data.input_shape[0]))


def _named(kind: str, root: Path, download: bool) -> named_sets.NamedSet:
    if kind == "digits":
        return named_sets.read_digits()
    found: named_sets.NamedSet = getattr(named_sets, NAMED_SETS[kind])(root, download)
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
        raise DataError(f"{spec}: there is no folder {root}")
    return kind, root


def with_input_shape(data: Data, input_shape: tuple[int, int, int], preparation: Preparation | None = None) -> Data:
    """The same data with batches of another shape (channels, height, width); a note says what is done to the images.

    Without a model's own preparation that of the data set is adapted.
    """
    stored = _stored_shape(data.train)
    if len(input_shape) != 3 or input_shape[0] not in (1, 3, stored[0]):
        raise DataError(f"{data.name} holds {stored[0]}-channel images, the model takes {input_shape}: give other data")
    preparation = preparation or preparation_for(data.preparation, stored, input_shape)
    if input_shape != stored:
        data.notes.append(describe_fit(stored, input_shape, preparation))
    return replace(data, input_shape=input_shape, preparation=with_channels(preparation, input_shape[0]))


def with_normalisation(preparation: Preparation, loading: DataSettings, channels: int) -> Preparation:
    """The same with the mean and deviation that the settings give, if any, one number meaning every channel.

    Raises UsageError where one is missing, there are too many or too few, or a value is out of range.
    """
    if loading.mean is None and loading.std is None:
        return preparation
    mean, std = loading.mean or (), loading.std or ()
    if any(len(values) not in (1, channels) for values in (mean, std)):
        raise UsageError(
            f"the model takes {channels} channels: give --mean and --std with {channels} numbers each, or one for all"
        )
    try:
        given = replace(preparation, mean=_per_channel(mean, channels), std=_per_channel(std, channels))
    except ValueError as error:
        raise UsageError(f"--mean and --std: {error}") from error
    return given


def with_channels(preparation: Preparation, channels: int) -> Preparation:
    """The same for another number of channels: grey's mean and deviation repeated, those of colours averaged."""
    mean, std = (_per_channel(values, channels) for values in (preparation.mean, preparation.std))
    return replace(preparation, mean=mean, std=std)


def fit_to_model(
    data: Data, outputs: int, *, classes: Sequence[str] | None = None, numbers: Mapping[str, int] | None = None
) -> Data:
    """The data as a model with so many outputs takes them: labels by `numbers` (the output of each class name), if any,
    else by the model's class names.

    Where the model knows all of the data's classes and more, labels are renumbered by name. Where it shares no name
    with the data but their number agrees, they are taken in order, with a note.

    Raises DataError when the classes do not fit: names that the model lacks, or another number of them.
    """
    if numbers is not None:
        return _numbered(data, outputs, classes, numbers)
    if classes is not None and tuple(classes) != data.classes and set(classes) & set(data.classes):
        lacking = [name for name in data.classes if name not in classes]
        if lacking:
            raise DataError(
                f"the model lacks {len(lacking)} of the data's classes: {', '.join(lacking[:5])}: remove them"
            )
        data.notes.append(f"the data have {len(data.classes)} of the model's {len(classes)} classes, matched by name")
        return _relabelled(data, [list(classes).index(name) for name in data.classes], classes)
    if len(data.classes) != outputs:
        raise DataError(
            f"{data.name} has {len(data.classes)} classes, the model has {outputs} outputs: give data of {outputs} "
            f"classes or a model with {len(data.classes)} outputs, or say with --classes which output each class has"
        )
    if classes is not None and tuple(classes) != data.classes:
        data.notes.append("the model's class names are others than the data's: labels are taken in their order")
    return data


def _numbered(data: Data, outputs: int, classes: Sequence[str] | None, numbers: Mapping[str, int]) -> Data:
    lacking = [name for name in data.classes if name not in numbers]
    beyond = [name for name in data.classes if numbers.get(name, 0) >= outputs]
    if lacking or beyond:
        reason = f"has no number for {lacking[0]!r}" if lacking else f"gives {beyond[0]!r} an output beyond the last"
        raise DataError(
            f"the file of --classes {reason}: the data have {', '.join(data.classes[:5])}; {outputs} outputs"
        )
    names = list(classes) if classes is not None and len(classes) == outputs else [str(i) for i in range(outputs)]
    for name in data.classes:
        names[numbers[name]] = name
    data.notes.append(f"the data have {len(data.classes)} of the model's {outputs} classes, numbered by --classes")
    return _relabelled(data, [numbers[name] for name in data.classes], names)


def _relabelled(data: Data, numbers: list[int], classes: Sequence[str]) -> Data:
    number = torch.tensor(numbers)
    sets = {name: getattr(data, name) for name in ("train", "validation", "test")}
    return replace(data, classes=tuple(classes), **{n: s.with_labels(number[s.labels]) for n, s in sets.items()})


def _stored_shape(image_set: AnySet) -> tuple[int, int, int]:
    if isinstance(image_set, FolderSet):
        return image_set.shape
    channels, height, width = image_set.images.shape[1:]
    return channels, height, width


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
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
