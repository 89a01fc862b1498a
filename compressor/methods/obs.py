"""Which channels of a group go first, and how much of what their readers make is lost: block OBS on Gram matrices.

Removing a channel from the input of a layer, and refitting the layer's other columns by least squares, costs
w' (H^-1)^-1 w, where w are the channel's columns and the inner inverse is of the channel's own block of H^-1. The
cheapest channel goes, H^-1 is downdated, and so on: an order of removal and the error after each, from one pass over
the data.

Reference: Frantar, Singh, Alistarh, "Optimal Brain Compression", NeurIPS 2022, section 4 (blocks of weights). Ours: a
block is all columns of a channel in all layers that read it, each in shares of the variance of what that layer makes.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from compressor.graph.channels import Channels, Group, Ids
from compressor.graph.neutral import neutral
from compressor.graph.tensors import named_tensors
from compressor.graph.trace import call_arguments
from compressor.methods.reconstruction.calibration import draws
from compressor.methods.reconstruction.fold import cells
from compressor.methods.reconstruction.gram import RIDGE, Gram
from compressor.methods.reconstruction.paths import Way
from compressor.methods.reconstruction.readers import Reader, View, readers, survey, unknown_ids
from compressor.methods.reconstruction.replay import Hook, Replay, plain_attention
from compressor.methods.reconstruction.solve import watch
from compressor.training.evaluate import evaluating


@dataclass(frozen=True)
class Consumer:
    """A layer that reads channels, with the second moments of its inputs."""

    reader: Reader
    view: View
    ids: Ids  # (unknowns,): the channel that each belongs to
    covariance: Tensor  # (groups, unknowns, unknowns)
    mean: Tensor  # (groups, 1, unknowns)
    matrix: Tensor  # (groups, unknowns, outputs)
    scale: Tensor  # (groups, 1, outputs): with it the outputs' variances sum up to 1


@dataclass(frozen=True)
class Curve:
    """The order in which a group's channels go, and the error when so many are gone: `errors[0]` is 0."""

    ids: Ids
    errors: NDArray[np.float64]


@torch.no_grad()
def consumers(model: nn.Module, channels: Channels, inputs: Sequence[Any]) -> list[Consumer]:
    """Every layer that reads channels of a free group, from one pass over the inputs."""
    free = np.concatenate([group.ids for group in channels.free])
    with neutral(), torch.no_grad():
        replay = Replay(model, inputs)
        tensors = replay.tensors
        layers = readers(replay.program)
        views = survey(replay, layers)
        known: dict[int, Ids] = {}
        for reader in layers:
            groups = replay.program.ops[reader.start].args[8] if reader.product.convolves else 1
            ids = unknown_ids(reader.product, views[reader.start], tensors[reader.name], channels, groups)
            if ids is not None and np.isin(ids, free).any():
                known[reader.start] = ids
        layers = [reader for reader in layers if reader.start in known]
        grams = {reader.start: Gram(constant=True) for reader in layers}
        squares: dict[int, Tensor] = {}
        scales: dict[int, Tensor] = {}
        for batch, draw in enumerate(draws(inputs)):
            after: dict[int, list[Hook]] = defaultdict(list)
            samples = [
                (reader, watch(Way(call, replay.program, tensors), draw, after, None, inputs=True))
                for reader in layers
                for call in reader.calls
            ]
            replay.run(batch, {}, after, max(after))
            for reader, sample in samples:
                rows = sample.grouped(len(sample.x), None)
                grams[reader.start].add(rows)
                squares[reader.start] = squares.get(reader.start, 0) + rows.y.double().square().sum(1, keepdim=True)
                scales[reader.start] = sample.scale[0].unflatten(1, (len(sample.x), -1)).transpose(0, 1)
    return [
        _consumer(reader, views[reader.start], tensors, known[reader.start], grams[reader.start],
                  squares[reader.start], scales[reader.start])
        for reader in layers
    ]  # fmt: skip


def _consumer(
    reader: Reader, view: View, tensors: Mapping[str, Tensor], ids: Ids, gram: Gram, squares: Tensor, scale: Tensor
) -> Consumer:
    moments = gram.inner / gram.inner[:, -1:, -1:]
    mean = moments[:, -1:, :-1]
    means = gram.cross[:, -1:] / gram.inner[:, -1:, -1:]
    variance = squares / gram.inner[:, -1:, -1:] - means.square()
    matrix = reader.product.matrix(view.on(tensors[reader.name]), len(gram.inner)).to(gram.inner)
    total = (variance * scale.square()).sum().clamp(min=1e-300).sqrt()
    return Consumer(reader, view, ids, moments[:, :-1, :-1] - mean.mT @ mean, mean, matrix, scale.to(mean) / total)


@torch.no_grad()
def curve(group: Group, layers: Sequence[Consumer], order: Ids | None = None, at_once: int = 1) -> Curve:
    """The order by OBS (or the one that is given) and its errors: a sum over the layers that read the group.

    So many channels go `at_once`, by their costs before.
    """
    read_by = [Downdated(each, group.ids) for each in layers if np.isin(group.ids, each.ids).any()]
    place = {identity: at for at, identity in enumerate(group.ids.tolist())}
    alive = np.ones(group.size, dtype=bool)
    gone: list[int] = []
    errors = [0.0]
    while len(gone) < group.size - 1:
        count = min(at_once, group.size - 1 - len(gone))
        if order is None:
            costs = sum((each.costs() for each in read_by), np.zeros(group.size))
            chosen = np.argsort(np.where(alive, costs, np.inf), kind="stable")[:count].tolist()
        else:
            chosen = [place[identity] for identity in order[len(gone) : len(gone) + count].tolist()]
        total = sum(each.remove(chosen) for each in read_by)
        errors += [errors[-1] + total * (step + 1) / count for step in range(count)]
        alive[chosen] = False
        gone += chosen
    return Curve(group.ids[[*gone, *np.flatnonzero(alive)]], np.array(errors))


class Downdated:
    """A layer while channels of a group leave it: its weights, refitted, and the inverse of its inputs' covariance."""

    def __init__(self, consumer: Consumer, ids: Ids) -> None:
        diagonal = consumer.covariance.diagonal(dim1=1, dim2=2)
        ridge = (RIDGE * diagonal.mean(1, keepdim=True)).clamp(min=1e-30).expand_as(diagonal)
        factor = torch.linalg.cholesky(consumer.covariance + torch.diag_embed(ridge))
        self.inverse = torch.cholesky_inverse(factor)
        self.matrix = consumer.matrix * consumer.scale
        self.consumer = consumer
        held = np.flatnonzero(np.isin(consumer.ids, ids))
        found = held[cells(consumer.ids[held])]  # in the order of their numbers
        self.cells = torch.from_numpy(found[np.argsort(np.argsort(ids))])  # (channels, unknowns of each)

    def costs(self) -> NDArray[np.float64]:
        """Of every channel: how much error its removal adds; of those that are gone, anything."""
        own = self.inverse[:, self.cells[:, :, None], self.cells[:, None, :]]
        own = own + torch.diag_embed((own.diagonal(dim1=2, dim2=3) == 0).to(own))
        columns = self.matrix[:, self.cells]
        found: NDArray[np.float64] = (columns * torch.linalg.solve(own, columns)).sum((0, 2, 3)).cpu().numpy()
        return found

    def remove(self, chosen: list[int]) -> float:
        """Take channels away; returns how much error that adds."""
        gone = self.cells[chosen].flatten()
        rows, columns = self.inverse[:, gone], self.matrix[:, gone]
        step = torch.linalg.solve(rows[:, :, gone], torch.cat([columns, rows], 2))
        moved, downdate = step.split([columns.shape[2], rows.shape[2]], 2)
        cost = float((columns * moved).sum())
        self.matrix -= rows.mT @ moved
        self.inverse -= rows.mT @ downdate
        self.matrix[:, gone], self.inverse[:, gone], self.inverse[:, :, gone] = 0, 0, 0
        return max(cost, 0.0)

    def write_(self, tensors: Mapping[str, Tensor]) -> None:
        """Make the layer what it is without the channels that are gone; they stay, and nothing reads them."""
        consumer, scale = self.consumer, self.consumer.scale
        matrix = torch.where(scale == 0, consumer.matrix, self.matrix / scale)
        weight = consumer.view.on(tensors[consumer.reader.name])
        consumer.reader.product.write_(weight, matrix.to(weight))
        if consumer.reader.constant is not None:
            name, sign = consumer.reader.constant
            shift = (consumer.mean @ (consumer.matrix - matrix)).flatten()
            tensors[name].detach().add_(sign * shift.to(tensors[name]))


@torch.no_grad()
def divergences(
    model: nn.Module,
    group: Group,
    layers: Sequence[Consumer],
    found: Curve,
    inputs: Sequence[Any],
    counts: Sequence[int],
) -> list[float]:
    """How far the outputs are from the network's when so many of a group's channels are gone, refitted by OBS.

    Squares of differences, as a share of the outputs' variance. The model is as before afterwards.
    """
    tensors = named_tensors(model)
    read_by = [Downdated(each, group.ids) for each in layers if np.isin(group.ids, each.ids).any()]
    place = {identity: at for at, identity in enumerate(group.ids.tolist())}
    names = {each.consumer.reader.name for each in read_by}
    names |= {each.consumer.reader.constant[0] for each in read_by if each.consumer.reader.constant is not None}
    kept = {name: tensors[name].detach().clone() for name in names}
    results: list[float] = []
    with evaluating(model), plain_attention():
        before = [_outputs(model, given) for given in inputs]
        gone = 0
        for count in counts:
            for each in read_by:
                each.remove([place[identity] for identity in found.ids[gone:count].tolist()])
                each.write_(tensors)
            gone = count
            results.append(_distance([_outputs(model, given) for given in inputs], before))
            for name, values in kept.items():
                tensors[name].detach().copy_(values)
    return results


def _outputs(model: nn.Module, given: Any) -> list[Tensor]:
    arguments, keywords = call_arguments(given)
    leaves = tree_leaves(model(*arguments, **keywords))
    return [leaf.double() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _distance(ours: Sequence[Sequence[Tensor]], theirs: Sequence[Sequence[Tensor]]) -> float:
    """Mean over the outputs of squared differences, in shares of each output's variance."""
    shares = []
    for one, other in zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True):
        a, b = torch.cat(one), torch.cat(other)
        variance = (b - b.mean(0)).square().sum().clamp(min=1e-300)
        shares.append(float((a - b).square().sum() / variance))
    return float(np.mean(shares))
