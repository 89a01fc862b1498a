"""Unlabelled images to look at, real or made up: as inputs of a network, in batches, at which places of each map.

Those made up are dead leaves, discs of random places, sizes and colours, each in front of the last: they have the
edges, the flat parts and the correlations of photographs. A network's activations on them differ from those on its own
images, but its batch norm knows the latter: with statistics of the leaves every channel has, behind the norm, the mean
and the variance that it has on the images of its training.

Reference: Lee, Mumford, Huang, "Occlusion Models for Natural Images", IJCV 41, 2001 (dead leaves); Baradad et al.,
"Learning to See by Looking at Noise", NeurIPS 2021 (as training images). Ours: as images for a reconstruction.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from compressor.errors import DataError, ModelError, UsageError, cause
from compressor.graph.skeleton import skeleton
from compressor.graph.tensors import device_of
from compressor.graph.trace import trace
from compressor.report import units
from compressor.training.batch_norm import remeasure_
from compressor.training.evaluate import evaluating
from compressor.training.task import examples_in, moved, shapes, taken

MOST_POSITIONS = 64  # of each image and layer
_ROWS = 1 << 17  # of all images together: with many images fewer places of each do
HELD_BACK = 8  # one image of so many only judges what the others gave
_VALUES = 1_250_000  # of the inputs of a batch, about 8 images of 3x224x224: larger maps cost new memory each time
_ALL_VALUES = 1 << 26  # and of all batches, but
_FEWEST_IMAGES, _MOST_IMAGES = 512, 2048
_MOST = 128


def enough_images(shape: Sequence[int]) -> int:
    """How many images (channels, height, width) a reconstruction looks at: more where they are small."""
    return max(_FEWEST_IMAGES, min(_MOST_IMAGES, _ALL_VALUES // math.prod(shape)))


def inputs_of(data: Iterable[Any], example: Any, model: nn.Module, device: torch.device | None = None) -> list[Any]:
    """Images of a loader as the network takes them, like `example`, in batches of a size that suits.

    The first are taken, `enough_images` of them, to the network's device unless another is named.

    A batch of the loader is a tensor, a tuple or a dict; whatever it holds beside the inputs (labels) is left aside.

    Raises:
        UsageError: a batch holds nothing like the example, or there are no images.
        DataError: the network does not run on images of a batch, which have another size than the example.
    """
    found: list[Any] = []
    device = device_of(model) if device is None else device
    known = {_sizes(example)}
    left = enough_images(_sizes(example)[0])
    for batch in data:
        given = _like(example, batch)
        held = examples_in(given)
        count = min(left, held)
        if not count:
            continue
        if _sizes(given) not in known:
            _check_taken(model, given)
            known.add(_sizes(given))
        size = max(2, min(_MOST, _VALUES * held // _values(given)))
        size = 1 if _is_list(given) else size  # code that goes through a list runs other operators for more images
        for part in torch.arange(count).split(size):
            found.append(_taken(given, slice(int(part[0]), int(part[-1]) + 1), device))
        left -= count
        if left <= 0:
            break
    return _some(found)


def first_batches(data: Any, example: Any, count: int) -> list[Any]:
    """The first batches of a loader, `count` images or as many as a reconstruction looks at.

    Raises UsageError where it is none, or has no batch.
    """
    if not isinstance(data, Iterable) or isinstance(data, Tensor | Mapping | str):
        raise UsageError(f"data is a {type(data).__name__}: give a loader or a list of batches")
    count = max(count, enough_images(_sizes(example)[0]))
    found = []
    for batch in data:
        found.append(batch)
        count -= examples_in(batch)
        if count <= 0:
            break
    return _some(found)


def _some(batches: list[Any]) -> list[Any]:
    if not batches:
        raise UsageError("data holds no batch: give a loader that can be iterated over")
    return batches


def first_images(inputs: Any, count: int) -> Any:
    """The first images of a batch."""
    return _taken(inputs, slice(count), None)


def fewer(batches: Sequence[Any], values: int, images: int = 0) -> list[Any]:
    """The first batches, until they hold so many values and images."""
    found: list[Any] = []
    for given in batches:
        if values <= 0 and images <= 0:
            break
        found.append(given)
        values -= _values(given)
        images -= examples_in(given)
    return found


def in_parts(batches: Sequence[Any], images: int, values: int) -> Iterator[Any]:
    """The first images of batches, in even parts of so many values at most: no image is left over alone."""
    for given in batches:
        held = min(images, examples_in(given))
        size = max(1, min(held, values * examples_in(given) // _values(given)))
        for part in torch.arange(held).tensor_split(-(-held // size)):
            yield _taken(given, slice(int(part[0]), int(part[-1]) + 1), None)
        images -= held
        if images <= 0:
            return


def _taken(inputs: Any, part: slice, device: torch.device | None) -> Any:
    found = taken(inputs, part)
    return found if device is None else moved(found, device)


def _tensors(inputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim]


def _sizes(inputs: Any) -> tuple[torch.Size, ...]:
    """Of one image; in a list of images of their own sizes of each."""
    cut = 0 if _is_list(inputs) else 1
    return tuple(leaf.shape[cut:] for leaf in _tensors(inputs))


def _values(inputs: Any) -> int:
    """Of the largest input of a batch."""
    sizes = [leaf.numel() for leaf in _tensors(inputs)]
    return sum(sizes) if _is_list(inputs) else max(sizes)


def _is_list(inputs: Any) -> bool:
    """Whether a network is called with a list that has an entry for each image."""
    return isinstance(inputs, tuple | list) and bool(inputs) and isinstance(inputs[0], list)


def _check_taken(model: nn.Module, given: Any) -> None:
    try:
        trace(model, first_images(given, 2))
    except ModelError as error:
        why = cause(error.__cause__ or error)
        raise DataError(f"a batch of data holds {shapes(given)}, which the network does not take: {why}") from error


def _like(example: Any, batch: Any) -> Any:
    """The part of a batch that has the form of the example."""
    if isinstance(example, Tensor):
        same = [leaf for leaf in _tensors(batch) if leaf.ndim == example.ndim and leaf.dtype == example.dtype]
        if not same:
            raise UsageError(
                f"a batch of data holds {shapes(batch)}, the network takes {shapes(example)}: give batches of inputs "
                "as the network takes them"
            )
        return same[0]
    parts = batch if isinstance(batch, tuple | list) else [batch]
    if isinstance(example, Mapping):
        held: Mapping[Any, Any] = next((part for part in parts if isinstance(part, Mapping)), {})
        missing = [key for key in example if key not in held]
        if missing:
            raise UsageError(f"a batch of data lacks {', '.join(map(str, missing))}, which the network takes")
        return {key: _like(part, held[key]) if isinstance(part, Tensor) else part for key, part in example.items()}
    if _is_list(example):
        if not parts or not isinstance(parts[0], list | tuple):
            raise UsageError(f"a batch of data holds {shapes(batch)}, the network takes a list of images")
        [one, *_], given = example[0], [each for each in parts[0] if isinstance(each, Tensor)]
        return ([each if each.shape == one.shape else _resized(each, one) for each in given], *example[1:])
    parts = parts[0] if parts and isinstance(parts[0], tuple | list) else parts
    if len(parts) < len(example):
        raise UsageError(f"a batch of data holds {len(parts)} parts, the network takes {len(example)}")
    return tuple(_like(one, part) for one, part in zip(example, parts, strict=False))


def _resized(image: Tensor, like: Tensor) -> Tensor:
    """In a list of images all are looked at in one size: code that pads them runs other operators for each."""
    if image.ndim != 3 or len(image) != len(like):
        raise DataError(
            f"data holds an image {units.shape(image.shape)} where the network takes {units.shape(like.shape)}"
        )
    return functional.interpolate(image[None], like.shape[1:], mode="bilinear", antialias=True)[0]


def draws(inputs: Sequence[Any]) -> list["Draw"]:
    """The places of every batch."""
    positions = min(MOST_POSITIONS, max(1, _ROWS // sum(map(examples_in, inputs))))
    return [Draw(given, positions) for given in inputs]


class Draw:
    """Which places of every image of a batch are looked at: a function of the image, whatever batch it is in."""

    def __init__(self, inputs: Any, positions: int) -> None:
        self.images, self.positions = examples_in(inputs), positions
        each = [_tensors(taken(inputs, slice(at, at + 1))) for at in range(self.images)]
        self.seeds = [_hash([leaf.detach().cpu() for leaf in leaves]) for leaves in each]
        self._rows: dict[int, Tensor] = {}

    def rows(self, count: int) -> Tensor:
        """Of `count` rows, which hold the images one after the other: the numbers of those that are looked at."""
        if count not in self._rows:
            images = self.images if count % self.images == 0 else 1
            each = count // images
            places = [_places(each, self.positions, seed) for seed in self.seeds[:images]]
            self._rows[count] = torch.cat([found + at * each for at, found in enumerate(places)])
        return self._rows[count]

    def held_back(self, count: int, seeds: set[int]) -> Tensor:
        """Which of `rows(count)` belong to the images of these seeds; without any, some rows of each image."""
        rows = self.rows(count)
        if not seeds:
            return rows % HELD_BACK == HELD_BACK - 1
        images = self.images if count % self.images == 0 else 1
        marks = torch.tensor([seed in seeds for seed in self.seeds[:images]])
        return marks.repeat_interleave(len(rows) // images)


def _hash(tensors: Sequence[Tensor]) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return int.from_bytes(digest.digest(), "big") >> 1


def _places(count: int, most: int, seed: int) -> Tensor:
    if count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most].sort().values


_MOST_MADE, _FEWEST_MADE = 256, 64  # images
_VALUES_MADE = 1 << 24  # of all of them together, if that leaves enough
_BATCH = 32
_LEAVES = 60  # on an image
_SMALLEST, _LARGEST = 0.04, 0.5  # radii, in shares of a side


def synthetic_inputs(example: Any, seed: int = 0) -> list[Tensor]:
    """Batches like the example, a tensor (batch, channels, ...) of one to three dimensions behind; else none."""
    if not isinstance(example, Tensor) or not example.is_floating_point() or not 3 <= example.ndim <= 5:
        return []
    count = max(_FEWEST_MADE, min(_MOST_MADE, _VALUES_MADE // math.prod(example.shape[1:])))
    generator = torch.Generator().manual_seed(seed)
    images = dead_leaves(count, tuple(example.shape[1:]), generator)
    return list(images.to(example.device, example.dtype).split(_BATCH))


def dead_leaves(count: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """(count, channels, *sides) for a shape (channels, *sides): about 0 on average, with variance 1."""
    channels, *sides = shape
    places = torch.meshgrid(*(torch.arange(side) / side for side in sides), indexing="ij")
    middles = torch.rand(len(sides), count, _LEAVES, generator=generator)
    between = torch.rand(count, _LEAVES, generator=generator)
    radii = 1 / torch.lerp(torch.tensor(1 / _LARGEST), torch.tensor(1 / _SMALLEST), between)
    shades = torch.randn(count, 1, _LEAVES, generator=generator)
    shades = shades + 0.3 * torch.randn(count, channels, _LEAVES, generator=generator)
    shades[:, :, 0] = 0  # behind all of them
    images = torch.zeros(count, *shape)
    for image in range(count):
        front = torch.zeros(sides, dtype=torch.int64)
        for leaf in range(1, _LEAVES):
            distance2 = sum((place - at).square() for place, at in zip(places, middles[:, image, leaf], strict=True))
            front.masked_fill_(distance2 < radii[image, leaf].square(), leaf)
        images[image] = shades[image][:, front]
    return images / images.std()


def used_to(model: nn.Module, inputs: list[Tensor]) -> nn.Module | str:
    """A copy of the model whose batch norm has the statistics of the inputs; or why it does not run on them."""
    copied = skeleton(model, real=True)
    try:
        with evaluating(copied), torch.no_grad():
            copied(inputs[0])
    except Exception as error:  # whatever the user's code raises: it ran on the example
        why = " ".join(str(error).split())[:200]
        return f"the network does not run on {len(inputs[0])} images of {tuple(inputs[0].shape[1:])}: {why}"
    remeasure_(copied, inputs)
    return copied
