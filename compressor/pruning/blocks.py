"""Which blocks of a network go: those that move its outputs least for what they save, measured again as others go.

A block may lose its branch, where a shortcut stands alone, or have one convolution in its place. The convolution is
fitted by least squares on what the block is given in the network as it stands, to what the whole block made in the
network as it came: so it also makes up for what blocks before it have lost.

Reference: Kim et al., "LayerMerge: Neural Network Depth Compression through Layer Pruning and Merging", ICML 2024,
which multiplies the kernels of convolutions whose activations it drops. Ours: least squares in place of the product.
"""

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, takewhile
from typing import Any

import torch
from torch import Tensor, nn

from compressor.graph.blocks import KERNELS, Block, Values
from compressor.graph.neutral import neutral
from compressor.graph.skeleton import skeleton
from compressor.pruning.block_fits import Fits, show
from compressor.pruning.consumers import outputs_of
from compressor.pruning.reconstruction.calibration import fewer
from compressor.pruning.reconstruction.solve import Progress, no_progress, squares_around_mean
from compressor.report import units
from compressor.surgery.edits import BlockEdit, Bypass, Fold
from compressor.training.evaluate import evaluating

_WORTH = 0.25  # of a block's own cost: an option that saves less is none
_WIDEST = 4608  # unknowns of a convolution that is fitted: 512 channels, 3x3
_FITTED, _JUDGED = (1 << 20, 256), (1 << 18, 64)  # values, and images, at least by which an order is found
_STORED = 1 << 26  # numbers that blocks gave and that need not be computed again, at most
_LAST = 4  # options that are measured again where one of them is the last that is needed

Saving = Callable[[Block, nn.Module | None], float]  # what a block saves without its branch, or with a convolution


@dataclass(frozen=True)
class Option:
    """What may become of a block, and what that saves: `kernel` 0 leaves the branch out."""

    block: str
    kernel: int
    saved: float

    def edit(self, moved: float, unit: str) -> BlockEdit:
        """In the form that surgery takes, with its reason."""
        why = f"outputs move by {units.share(moved, 2)} of their variance with it, for {self.saved:.3g} {unit} saved"
        numbers = {"moved": moved, "saved": self.saved}
        return Fold(self.block, self.kernel, why, numbers=numbers) if self.kernel else Bypass(self.block, why, numbers)


def options(blocks: Mapping[str, Block], saving: Saving, cost: Callable[[Block], float]) -> list[Option]:
    """All that pays, in the order of the blocks."""
    found = []
    for name, block in blocks.items():
        tried: dict[int, nn.Module | None] = {} if block.shortcut is None else {0: None}
        for kernel in KERNELS:
            convolution = block.convolution(kernel)
            if convolution is not None and block.given[0] * kernel**2 <= _WIDEST:
                tried[kernel] = convolution
        each = [Option(name, kernel, saving(block, convolution)) for kernel, convolution in tried.items()]
        worth = _WORTH * cost(block)
        found += [option for option in each if option.saved > worth]
    return found


@dataclass(frozen=True)
class Step:
    """An option that was taken, what all up to it save, and how far the outputs are from there."""

    option: Option
    saved: float
    moved: float


class Shortening:
    """An order in which blocks are replaced, found as far as it is asked for; the model is not changed."""

    def __init__(
        self,
        model: nn.Module,
        blocks: Mapping[str, Block],
        choices: Sequence[Option],
        inputs: Sequence[Tensor],
        progress: Progress = no_progress,
    ) -> None:
        self.blocks, self.steps = blocks, list[Step]()
        self._inputs = inputs
        self._whole, self._small = skeleton(model, real=True), skeleton(model, real=True)
        self._few, self._judged = fewer(inputs, *_FITTED), fewer(inputs, *_JUDGED)  # these are the first of those
        self._moved = partial(Movement(self._whole, self._judged).of, self._small)
        self._fits = self._fits_of(choices, self._few)
        self._given: dict[str, list[Tensor]] = {}  # what blocks give for each batch as the network stands
        self._room = self._with_room()
        self._queue: list[tuple[float, int, int, Option, float]] = []  # score, number, after how many steps, moved
        with self._inside():
            self._fits.start(self._whole)
            for number, option in enumerate(choices):
                progress(number, len(choices))
                self._measure(number, option)

    def until(self, saved: float) -> list[Step]:
        """The first steps that save so much; all that there are where they do not."""
        with self._inside():
            while (self.steps[-1].saved if self.steps else 0) < saved and self._queue:
                self._take(saved)
        count = next((number for number, step in enumerate(self.steps, 1) if step.saved >= saved), len(self.steps))
        return self.steps[:count]

    def plain(self, steps: Sequence[Step], unit: str = "") -> list[BlockEdit]:
        """What these steps come to, of every block the last, in the order of the blocks; convolutions are zero."""
        last = {step.option.block: step for step in steps}
        return [last[name].option.edit(last[name].moved, unit) for name in self.blocks if name in last]

    def edits(self, steps: Sequence[Step], unit: str) -> tuple[list[BlockEdit], float]:
        """The same with convolutions fitted again, one after the other, and how far the outputs are then."""
        edits, found = self.plain(steps, unit), list[BlockEdit]()
        last = {step.option.block: step.option for step in steps}
        fits = self._fits_of(last.values(), self._inputs)
        with self._inside(), self._put_back(self.blocks):
            fits.start(self._whole)
            for name in self.blocks:
                self._put(name, None if name not in last else self._module(last[name], None))
            for edit in edits:
                if isinstance(edit, Fold):
                    edit = replace(edit, values=fits.values(self._small, edit.group, edit.kernel))
                    self._put(edit.group, self._module(last[edit.group], edit.values))
                found.append(edit)
            return found, self._moved()

    @contextmanager
    def _put_back(self, names: Iterable[str]) -> Iterator[None]:
        """What is put into the network meanwhile in these places is none of its steps."""
        before = {name: self._small.get_submodule(name) for name in names}
        try:
            yield
        finally:
            for name, module in before.items():
                self._put(name, module)

    @contextmanager
    def _inside(self) -> Iterator[None]:
        with neutral(), torch.no_grad(), evaluating(self._whole), evaluating(self._small):
            yield

    def _with_room(self) -> set[str]:
        """The first blocks whose values may be stored; none that is part of another."""
        left, found = _STORED, set[str]()
        for name, block in self.blocks.items():
            left -= math.prod(block.made) * sum(len(given) for given in self._few)
            alone = all(name == each or not nested(name, each) for each in self.blocks)
            if alone and left >= 0:
                found.add(name)
        return found

    @contextmanager
    def _given_before(self, block: str, batches: Sequence[Tensor]) -> Iterator[None]:
        """Blocks that run before this one give what they gave for the first batches; nothing of them is computed."""
        before = [name for name in takewhile(lambda name: name != block, self.blocks) if name in self._room]
        missing = {name: list[Tensor]() for name in before if name not in self._given}
        if missing:
            with self._giving([name for name in before if name in self._given], self._few):
                show(self._small, self._few, list(missing), lambda _, name, made: missing[name].append(made), made=True)
            self._given |= missing
        with self._giving(before, batches):
            yield

    @contextmanager
    def _giving(self, names: Sequence[str], batches: Sequence[Tensor]) -> Iterator[None]:
        with self._put_back(names):
            for name in names:
                self._put(name, _Giving(self._given[name][: len(batches)]))
            yield

    def _fits_of(self, choices: Iterable[Option], inputs: Sequence[Tensor]) -> Fits:
        names = dict.fromkeys(option.block for option in choices if option.kernel)
        return Fits({name: self.blocks[name] for name in names}, inputs)

    def _saved(self, block: str) -> float:
        """What is saved at a block already."""
        return next((step.option.saved for step in reversed(self.steps) if step.option.block == block), 0.0)

    def _measure(self, number: int, option: Option) -> None:
        """Put an option into the queue by how far it moves the outputs as the network stands, for what it saves."""
        gain = option.saved - self._saved(option.block)
        if gain <= 0:
            return
        fitted = self._fitted(option)
        with self._put_back([option.block]), self._given_before(option.block, self._judged):
            self._put(option.block, fitted)
            moved = self._moved()
        score = (moved - (self.steps[-1].moved if self.steps else 0)) / gain
        heapq.heappush(self._queue, (score, number, len(self.steps), option, moved))

    def _take(self, wanted: float) -> None:
        """Take the best option; of those with which enough is saved the one that moves the outputs least."""
        queue, now = self._queue, self.steps[-1].saved if self.steps else 0.0
        while queue and queue[0][2] < len(self.steps):
            _, number, _, option, _ = heapq.heappop(queue)
            self._measure(number, option)
        if not queue:
            return
        best = queue[0][3]
        if now + best.saved - self._saved(best.block) >= wanted:
            enough = [each for each in queue if now + each[3].saved - self._saved(each[3].block) >= wanted]
            for each in sorted(enough, key=lambda each: each[4])[:_LAST]:
                if each[2] < len(self.steps):
                    queue.remove(each)
                    self._measure(each[1], each[3])
            fresh = [each for each in queue if each[2] == len(self.steps)]
            best = min((each for each in fresh if each[3] in {one[3] for one in enough}), key=lambda each: each[4])[3]
        taken = next(each for each in queue if each[3] == best)
        queue.remove(taken)
        heapq.heapify(queue)
        self._put(best.block, self._fitted(best))
        names = list(self.blocks)
        for name in names[names.index(best.block) :]:
            self._given.pop(name, None)
        self.steps.append(Step(best, now + best.saved - self._saved(best.block), taken[4]))

    def _fitted(self, option: Option) -> nn.Module:
        if not option.kernel:
            return self._module(option, None)
        with self._given_before(option.block, self._few):
            return self._module(option, self._fits.values(self._small, option.block, option.kernel))

    def _module(self, option: Option, values: Values | None) -> nn.Module:
        block = self.blocks[option.block]
        convolution = block.convolution(option.kernel) if option.kernel else None
        if convolution is not None and values is not None:
            values.put_(convolution)
        return block.module(self._whole, convolution).eval()

    def _put(self, name: str, module: nn.Module | None) -> None:
        """A module in the small network; None: that of the whole one."""
        parent, _, leaf = name.rpartition(".")
        setattr(self._small.get_submodule(parent), leaf, self._whole.get_submodule(name) if module is None else module)


def nested(one: str, other: str) -> bool:
    """Whether one of two modules is the other, or lies in it."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


class _Giving(nn.Module):
    """What a module gave for each batch, one after the other and then again."""

    def __init__(self, given: Sequence[Tensor]) -> None:
        super().__init__()
        self._given = cycle(given)

    def forward(self, x: Tensor) -> Tensor:
        return next(self._given)


class Movement:
    """How far outputs are from those of the network as it came, in shares of their variance."""

    def __init__(self, whole: nn.Module, inputs: Sequence[Any]) -> None:
        self._inputs = inputs
        with neutral(), torch.no_grad(), evaluating(whole):
            self._outputs = [outputs_of(whole, given) for given in inputs]
        self._variance = _variance(self._outputs)

    def of(self, small: nn.Module) -> float:
        """Of a network that was made from it."""
        error = 0.0
        with neutral(), torch.no_grad(), evaluating(small):
            for given, before in zip(self._inputs, self._outputs, strict=True):
                outputs = outputs_of(small, given)
                error += sum(float((now - was).square().sum()) for now, was in zip(outputs, before, strict=True))
        return error / self._variance


def _variance(outputs: Sequence[Sequence[Tensor]]) -> float:
    """The sum of squares around the mean over images, of batches of outputs; each size of images has its own mean."""
    alike: dict[tuple[int, ...], list[Tensor]] = {}
    for batch in outputs:
        for number, leaf in enumerate(batch):
            alike.setdefault((number, *leaf.shape[1:]), []).append(leaf)
    leaves = map(torch.cat, alike.values())
    return sum(squares_around_mean(leaf, 0) for leaf in leaves)
