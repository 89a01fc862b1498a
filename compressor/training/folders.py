"""Image folders, ROOT/train/CLASS/FILE: decoded once into memory where they are small, else read as they are needed."""

import os
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from compressor.errors import DataError
from compressor.report import units
from compressor.report.progress import counted
from compressor.training.decoding import SPARE, decode, place
from compressor.training.sets import IN_MEMORY_BYTES, ImageSet
from compressor.training.streaming import FolderSet, processor_count
from compressor.vision.preparation import FORMATS, Preparation, Size, Unreadable, image_size

USUAL_SIZE = (224, 224)  # where the images differ in size and no model says what it wants


@dataclass(frozen=True)
class Files:
    """The image files of one split, in the order of classes and names."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.paths)


@dataclass
class Folder:
    """What was found in a folder of images, and what was wrong with it."""

    root: Path
    classes: tuple[str, ...] = ()
    splits: dict[str, Files] = field(default_factory=dict)  # "train", "test" and perhaps "validation"
    notes: list[str] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)  # (path, reason) of every image that is left out
    bad_images: str = "skip"

    def report(self, path: str, reason: str) -> None:
        """Name an image that cannot be read, once.

        Raises DataError where bad images are to stop the run.
        """
        if self.bad_images == "stop":
            raise DataError(f"{path}: {reason}: remove the file, or leave such images out with `bad_images` skip")
        if (path, reason) not in self.problems:
            self.problems.append((path, reason))


def scan(root: Path, bad_images: str) -> Folder:
    """Find the classes and the image files; nothing is decoded yet.

    ROOT/test holds the test set; without it ROOT/val does, and is then no validation set. Raises DataError for a folder
    without train/, without val/ and test/, or without images.
    """
    folder = Folder(root, bad_images=bad_images)
    expected = f"folder:{root} is expected to hold train/CLASS/*.jpg and test/CLASS/*.jpg (or val/)"
    if not (root / "train").is_dir():
        raise DataError(f"{expected}; it has no train/")
    held_out = {name: root / name for name in ("val", "test") if (root / name).is_dir()}
    if not held_out:
        raise DataError(f"{expected}; it has neither test/ nor val/")
    folder.classes = _class_names(root / "train")
    if not folder.classes:
        raise DataError(f"{expected}; its train/ has no class folders")
    folder.splits["train"] = _files(folder, root / "train")
    if len(held_out) == 2:
        folder.splits["validation"] = _files(folder, held_out["val"])
        folder.splits["test"] = _files(folder, held_out["test"])
    else:
        folder.splits["test"] = _files(folder, next(iter(held_out.values())))
        if "val" in held_out:
            folder.notes.append(f"{root} has no test/: its val/ gives the final number, decisions use part of train/")
    return folder


def open_splits(
    folder: Folder,
    input_shape: tuple[int, int, int] | None,
    preparation: Preparation | None,
    decode_cache: float | None = None,
) -> tuple[dict[str, ImageSet | FolderSet], Preparation]:
    """The splits as sets, and how their images were prepared; in memory where all of them decoded take up to
    IN_MEMORY_BYTES, else read when needed, with what was decoded kept on disk in up to `decode_cache` GB."""
    shape = input_shape or (3, *_common_size(folder))
    preparation = preparation or Preparation.usual(shape[1], shape[2])
    _note_small_images(folder, shape)
    decoded = sum(len(files) for files in folder.splits.values()) * shape[0] * shape[1] * shape[2]
    if decoded <= IN_MEMORY_BYTES:
        whole = {name: _decode_all(folder, files, shape, preparation) for name, files in folder.splits.items()}
        return {**whole}, preparation
    folder.notes.append(f"{decoded / 2**30:.1f} GiB of decoded images: read from the files in every epoch")
    streamed = {
        name: FolderSet.of(files.paths, files.labels, shape, preparation, folder.report)
        for name, files in folder.splits.items()
    }
    if decode_cache is not None:
        streamed = _cached(folder, streamed, decode_cache * 1e9)
    return {**streamed}, preparation


def _cached(folder: Folder, streamed: dict[str, FolderSet], most: float) -> dict[str, FolderSet]:
    """Every split with its part of a cache of so many bytes: training images for random windows, others as they are."""
    sizes = {name: len(each) * (SPARE**2 if name == "train" else 1) for name, each in streamed.items()}
    kept = {
        name: each.cached(most * sizes[name] / sum(sizes.values()), windows=name == "train")
        for name, each in streamed.items()
    }
    caches = [each.cache for each in kept.values() if each.cache is not None]
    taken = sum(each.count * each.record.itemsize for each in caches) / 1e9
    share = sum(each.count for each in caches) / sum(map(len, kept.values()))
    side = units.shape(round(SPARE * size) for size in kept["train"].shape[1:])
    folder.notes.append(
        f"decode cache: {taken:.2f} GB in {place()} for {share:.0%} of the images; random windows are taken of whole "
        f"ones at {side}"
    )
    return kept


def _class_names(place: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in place.iterdir() if entry.is_dir() and not entry.name.startswith(".")))


def _files(folder: Folder, place: Path) -> Files:
    """The image files under each class folder of a split, by the labels of train/."""
    unknown = [name for name in _class_names(place) if name not in folder.classes]
    if unknown:
        raise DataError(f"{place} has classes that train/ lacks: {', '.join(unknown[:5])}: remove or rename them")
    paths: list[Path] = []
    labels: list[int] = []
    others: Counter[str] = Counter()
    for label, name in enumerate(folder.classes):
        found, left_out = _walk(place / name)
        others.update(left_out)
        paths += found
        labels += [label] * len(found)
        if not found:
            folder.notes.append(f"{place / name} holds no images: the class {name!r} is empty there")
    if others:
        kinds = ", ".join(f"{count} {kind or 'without extension'}" for kind, count in others.most_common(5))
        folder.notes.append(f"{place}: {others.total()} files that are not named as images are left out ({kinds})")
    if not paths:
        raise DataError(f"{place} holds no images: expected {place}/CLASS/*.jpg")
    return Files(tuple(paths), tuple(labels))


def _walk(place: Path) -> tuple[list[Path], list[str]]:
    """Image files below a folder, sorted, and the extensions of the others; links are followed, but in no circles."""
    found: list[Path] = []
    others: list[str] = []
    seen: set[str] = set()
    for directory, below, names in os.walk(place, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            extension = os.path.splitext(name)[1].lower()  # noqa: PTH122  a million files: strings, not Paths
            if name.startswith("."):
                continue
            if extension in FORMATS:
                found.append(Path(directory, name))
            else:
                others.append(extension)
    return found, others


def _sample_sizes(folder: Folder, count: int = 64) -> list[tuple[Size, Path]]:
    """Width and height of some training images, evenly spread; unreadable ones are reported when they are decoded."""
    paths = folder.splits["train"].paths
    sizes = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in _decode_all
        for path in paths[:: max(1, len(paths) // count)]:
            try:
                sizes.append((image_size(path), path))
            except Unreadable:
                continue
    return sizes


def _common_size(folder: Folder) -> tuple[int, int]:
    """Height and width of all sampled images where they agree, else the usual one."""
    sizes = {size for size, _ in _sample_sizes(folder)}
    if len(sizes) == 1:
        width, height = sizes.pop()
        return height, width
    folder.notes.append(f"the images differ in size: all are cut and resized to {USUAL_SIZE[0]}x{USUAL_SIZE[1]}")
    return USUAL_SIZE


def _note_small_images(folder: Folder, shape: tuple[int, int, int]) -> None:
    small = [(size, path) for size, path in _sample_sizes(folder) if size[1] < shape[1] or size[0] < shape[2]]
    if small:
        (width, height), path = min(small)
        folder.notes.append(
            f"images smaller than {shape[1]}x{shape[2]} are enlarged, such as {path} ({height}x{width})"
        )


def _decode_all(folder: Folder, files: Files, shape: tuple[int, int, int], preparation: Preparation) -> ImageSet:
    """All images of a split in memory; those that cannot be read are reported and left out."""
    images = np.zeros((len(files), *shape), dtype=np.uint8)
    good = np.ones(len(files), dtype=bool)

    def decode_one(index: int) -> str | None:
        try:
            images[index] = decode(files.paths[index], shape, preparation)
        except Unreadable as error:
            good[index] = False
            return str(error)
        return None

    # Pillow lets go of the interpreter lock while it decodes, so threads are enough and nothing has to be copied.
    with warnings.catch_warnings(), ThreadPoolExecutor(processor_count()) as pool:
        warnings.simplefilter("ignore")  # Pillow's remarks on odd files; what cannot be read is reported
        decoded = counted("decoding images", pool.map(decode_one, range(len(files))), len(files))
        for index, reason in enumerate(decoded):
            if reason is not None:
                folder.report(str(files.paths[index]), reason)
    if not good.any():
        path, reason = folder.problems[-1]
        raise DataError(f"none of {len(files)} images in {folder.root} can be read, such as {path}: {reason}")
    labels = torch.tensor(files.labels)
    if good.all():
        return ImageSet(torch.from_numpy(images), labels)
    return ImageSet(torch.from_numpy(images[good]), labels[torch.from_numpy(good)])
