"""Least-squares reconstruction: refit what reads pruned channels to what the dense network gave, without labels."""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.graph.channels import Channels
from compressor.graph.neutral import neutral
from compressor.graph.tensors import named_tensors
from compressor.pruning.reconstruction.calibration import HELD_BACK, draws
from compressor.pruning.reconstruction.fold import Fold
from compressor.pruning.reconstruction.gram import Gram, Solution, exactly
from compressor.pruning.reconstruction.paths import Sample, Way, watch
from compressor.pruning.reconstruction.readers import (
    Reader,
    kept_outputs,
    readers,
    survey,
    touched,
    unknown_ids,
    weighted,
)
from compressor.pruning.reconstruction.replay import DivergedError, Hook, Replay
from compressor.report import units
from compressor.surgery.edits import Plan

Progress = Callable[[int, int], None]  # is told how many layers of how many are done
LARGEST = 6000  # inputs of a layer that is solved as a whole
_STORED_BYTES = 1 << 30  # of activations of each of the two networks; up to twice as many are stored in half precision
_ROUNDING = 1e-10  # of a square: more than float32 is off by, however the sums are taken


@dataclass(frozen=True)
class Refit:
    """One layer: the share of its outputs' variance that it missed as cut and after the solve, on images held back."""

    name: str
    before: float
    after: float


@dataclass
class Reconstruction:
    """What became of every layer whose input pruning changed."""

    images: int = 0
    images_are: str = "images"
    layers_are: str = "layers that read pruned channels"
    layers: list[Refit] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # layers that could not be solved, and why

    def words(self) -> tuple[str, ...]:
        """For the user: what was done, and what could not be."""
        if not self.layers:
            return tuple(self.notes)
        kept = [layer.name for layer in self.layers if not layer.after < layer.before]
        worst = max(self.layers, key=lambda layer: layer.after)
        done = (
            f"{len(self.layers) - len(kept)} of {len(self.layers)} {self.layers_are} are refitted by "
            f"least squares on {self.images:,} {self.images_are}; the largest error on images held back has "
            f"{worst.name}: {units.share(worst.after)} of its output's variance, {units.share(worst.before)} as cut"
        )
        as_cut = (f"left as they were cut, no solution being better on images held back: {', '.join(kept)}",)
        return (done, *(as_cut if kept else ()), *self.notes)


def squares_around_mean(values: Tensor, dim: int) -> float:
    """The sum of squares around the mean along a dimension; of values all alike, what float32 rounds them by."""
    found = (values - values.mean(dim, keepdim=True)).square().sum()
    return max(float(found), _ROUNDING * float(values.square().sum()), 1e-300)


def no_progress(done: int, total: int) -> None:
    """Nobody is told."""


def reconstruct_(
    small: nn.Module,
    dense: nn.Module,
    channels: Channels,
    plan: Plan,
    inputs: Sequence[Any],
    progress: Progress = no_progress,
    changed: Collection[str] = (),
    only: Collection[str] | None = None,
) -> Reconstruction:
    """Refit the pruned network in place, layer by layer in the order in which they run.

    The inputs of each layer in the pruned network, at random places of every image, are the rows of a least-squares
    problem; its targets are the outputs in the dense network at the same places. The weights as they were cut pull, and
    every output keeps them where the solution is no better on images held back.

    Args:
        channels: the map of `dense`, and `plan` the prunes of it by which `small` was cut.
        inputs: batches as the networks take them.
        changed: parameters and buffers that hold other values in `small`, where no plan tells.
        only: weights of layers that may be solved; None: of any.

    Returns:
        What was done; without layers where nothing could be, and its notes say why.

    Reference: He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, sections 3.1
    (least squares on the pruned network's own inputs) and 3.2 (the last layer of a residual branch makes up for what
    the shortcut lost). Ours: the pull, a free constant, targets at any sum.
    """
    with neutral(), torch.no_grad():
        try:
            solver = _Solver(small, dense, channels, plan, inputs, changed, only)
            for number, reader in enumerate(solver.readers):
                progress(number, len(solver.readers))
                solver.refit_(number, reader)
        except DivergedError as error:
            return Reconstruction(notes=[f"not refitted, because its operators are not always the same: {error.what}"])
        solver.write_(small)
    return solver.found


class _Solver:
    """The two networks side by side, each stored in front of the layer that is next."""

    def __init__(
        self,
        small: nn.Module,
        dense: nn.Module,
        channels: Channels,
        plan: Plan,
        inputs: Sequence[Any],
        changed: Collection[str],
        only: Collection[str] | None,
    ) -> None:
        self.dense, self.small = Replay(dense, inputs), Replay(small, inputs)
        self.full, self.cut = self.dense.tensors, self.small.tensors
        self.draws = draws(inputs)
        self.found = Reconstruction(sum(draw.images for draw in self.draws))
        self.held = set(sorted(seed for draw in self.draws for seed in draw.seeds)[HELD_BACK - 1 :: HELD_BACK])
        self.channels, self.removed = channels, np.array(plan.removed, dtype=np.int64)
        program = self.dense.program
        if [op.func for op in program.ops] != [op.func for op in self.small.program.ops]:
            raise DivergedError("the pruned network runs others than the dense one")
        affected = touched(program, self.small.program, changed)
        self.readers = [each for each in readers(program, affected) if only is None or each.name in only]
        self.views = survey(self.dense, self.readers)
        self.places = survey(self.small, self.readers)
        mixing = [each for each in self.readers if self.views[each.start].rows != self.places[each.start].rows]
        if mixing:
            names = ", ".join(each.name for each in mixing)
            self.found.notes.append(f"left as they were cut, because they have a row for every channel: {names}")
            self.readers = [each for each in self.readers if each not in mixing]
        self.stores = self._stores(self.found.images)
        computed = {
            product.op.module
            for _, product, name in weighted(program)
            if name is None and program.memory(product.op.args[product.data_at]) in affected
        }
        if computed:
            self.found.notes.append(
                f"left as they were cut, because they compute their weights: {', '.join(sorted(computed))}"
            )

    def _stores(self, images: int) -> list[int]:
        """Behind which operator activations are stored before each layer: where they are few, unless too many."""
        sizes = np.maximum(self.dense.program.stored_values, self.small.program.stored_values)
        traced = min(2, images)
        stores, before, done = [], -1, 0
        for reader in self.readers:
            span = sizes[done : reader.start]
            if len(span):
                at = done + int(np.flatnonzero(span == span.min())[-1])
                needed = float(sizes[at]) / traced * images * 4
                if needed <= 2 * _STORED_BYTES:
                    before = at
                    self.dense.half = self.small.half = self.dense.half or needed > _STORED_BYTES
            stores.append(before)
            done = max(done, reader.end)
        return [*stores, before]

    def refit_(self, number: int, reader: Reader) -> None:
        """Solve one layer."""
        weight = self.places[reader.start].on(self.cut[reader.name])
        groups = self.small.program.ops[reader.start].args[8] if reader.product.convolves else 1
        before = reader.product.matrix(weight, groups)
        large = before.shape[1] > LARGEST
        sums = self._fold(reader) if large else Gram(reader.constant is not None)
        view = self.views[reader.start]
        kept = kept_outputs(reader.product, view, self.full[reader.name], self.channels, self.removed)
        if sums is None:
            self.found.notes.append(f"{reader.name} is left as it was cut: it has {before.shape[1]:,} inputs")
            return
        for batch, draw in enumerate(self.draws):
            for sample in self._samples(number, reader, batch, kept, large):
                rows = sample.grouped(groups, reader.clip)
                held = draw.held_back(sample.count, self.held).to(rows.y.device)
                if isinstance(sums, Fold):
                    sums.add(rows, sample.full, held)
                else:
                    sums.add(rows, held)
        if not any(rows.y.shape[1] for rows in sums.held):
            self.found.notes.append(f"{reader.name} is left as it was cut: there are too few images")
            return
        before = exactly(torch.cat([before, torch.zeros_like(before[:, : sums.constant])], 1))
        if isinstance(sums, Fold):
            dense = reader.product.matrix(view.on(self.full[reader.name]), len(before)).to(before)
            solution = sums.best(before, dense[:, :, kept])
        else:
            solution = sums.best(before)
        self._write_(reader, weight, solution)
        scale = squares_around_mean(torch.cat([rows.behind() for rows in sums.held], 1).double(), 1)
        errors = (float(each.sum()) / scale for each in (solution.before, solution.after))
        self.found.layers.append(Refit(reader.name, *errors))

    def write_(self, small: nn.Module) -> None:
        """Give the network what was solved, on a copy so far; what did not change is not touched."""
        for name, tensor in named_tensors(small).items():
            if not torch.equal(tensor, self.cut[name]):
                tensor.copy_(self.cut[name])

    def _fold(self, reader: Reader) -> Fold | None:
        """For a layer with too many inputs: sums by channel; None where nothing says which of them belong together."""
        parameter, op = self.full[reader.name], self.dense.program.ops[reader.start]
        groups = op.args[8] if reader.product.convolves else 1
        view, removed = self.views[reader.start], self.removed
        ids = unknown_ids(reader.product, view, parameter, self.channels, groups)
        if ids is None:
            if not reader.product.convolves:
                return None
            width, taps = op.args[0].shape[1] // groups, math.prod(view.size[2:])
            ids, removed = np.tile(np.arange(width), taps), removed[:0]
        return Fold(ids, removed, reader.constant is not None)

    def _write_(self, reader: Reader, weight: Tensor, solution: Solution) -> None:
        matrix = solution.matrix
        reader.product.write_(weight, matrix[:, : reader.product.matrix(weight, len(matrix)).shape[1]].to(weight))
        if reader.constant is not None:
            name, sign = reader.constant
            self.cut[name].detach().add_(sign * matrix[:, -1].flatten().to(self.cut[name]))

    def _samples(self, number: int, reader: Reader, batch: int, kept: Tensor, full: bool) -> list[Sample]:
        """Run both networks on a batch up to a layer: what each of its calls is given in the small one, and targets."""
        after: dict[int, list[Hook]] = defaultdict(list)
        ways = [Way(call, self.dense.program, self.full) for call in reader.calls]
        samples = [watch(way, self.draws[batch], after, kept, inputs=full) for way in ways]
        store = self.stores[number + 1]
        self.dense.run(batch, {}, after, max(reader.end, store), store)
        before: dict[int, list[Hook]] = defaultdict(list)
        for call, sample in zip(reader.calls, samples, strict=True):
            self._read(Way(call, self.small.program, self.cut), sample, before)
        self.small.run(batch, before, {}, max(before), self.stores[number])
        return samples

    def _read(self, way: Way, sample: Sample, before: dict[int, list[Hook]]) -> None:
        """Put the small network's inputs into a sample of the dense one, and take other summands off its targets."""
        product = way.call.product

        def given(args: Sequence[Any], _: Any) -> None:
            sample.full, sample.x = sample.x, product.inputs(args, sample.shape, sample.rows)
            bias = None if product.bias_at is None else args[product.bias_at]
            sample.y = sample.y if bias is None else sample.y - bias

        before[way.call.at].append(given)
        for number, position, factor in way.sums():

            def subtract(
                args: Sequence[Any], _: Any, number: int = number, position: int = position, factor: float = factor
            ) -> None:
                sample.y = sample.y - factor * sample.back(way, args[position], number, None, shift=False)

            before[number].append(subtract)
