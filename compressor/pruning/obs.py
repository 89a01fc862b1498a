"""Which channels of a group go first, and how much of what their readers make is lost: block OBS on Gram matrices.

Removing a channel from the input of a layer, and refitting the layer's other columns by least squares, costs
w' (H^-1)^-1 w, where w are the channel's columns and the inner inverse is of the channel's own block of H^-1. The
cheapest channel goes, H^-1 is downdated, and so on: an order of removal and the error after each, from one pass over
the data.

Reference: Frantar, Singh, Alistarh, "Optimal Brain Compression", NeurIPS 2022, section 4 (blocks of weights). Ours: a
block is all columns of a channel in all layers that read it, each in shares of the variance of what that layer makes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from compressor.graph.channels import Channels, Group, Ids
from compressor.pruning.consumers import Consumer, derivatives
from compressor.pruning.reconstruction.fold import cells
from compressor.pruning.reconstruction.gram import RIDGE, pulled
from compressor.pruning.scores import Given, l1
from compressor.report.progress import counted

_STEPS = 64  # in which a group's channels go at most
_ENOUGH = 4  # rows for each unknown: of fewer, covariances are shrunk,
_MOST_SHRUNK = 0.9  # by no more than this
_LEVELS = (0.25, 0.5)  # shares of a group's channels at which a curve is calibrated


@dataclass(frozen=True)
class Curve:
    """The order in which a group's channels go, and the error when so many are gone: `errors[0]` is 0."""

    ids: Ids
    errors: NDArray[np.float64]
    levels: dict[int, list["Change"]] = field(default_factory=dict)  # when so many are gone: what became of each layer


@dataclass(frozen=True)
class Change:
    """What is added to a layer's weight, in the layout of its parameter, and what that shifts its outputs by."""

    name: str
    weight: Tensor
    shift: Tensor  # (outputs,)


@torch.no_grad()
def curve(group: Group, layers: Sequence[Consumer], order: Ids | None = None) -> Curve:
    """The order by OBS (or the one that is given) and its errors: a sum over the layers that read the group."""
    read_by = [Downdated(each, group.ids) for each in layers if np.isin(group.ids, each.ids).any()]
    place = {identity: at for at, identity in enumerate(group.ids.tolist())}
    alive = np.ones(group.size, dtype=bool)
    gone: list[int] = []
    errors = [0.0]
    levels: dict[int, list[Change]] = {}
    at_once = max(1, group.size // _STEPS)
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
        if len(levels) < len(_LEVELS) and len(gone) >= _LEVELS[len(levels)] * group.size:
            levels[len(gone)] = [each.change() for each in read_by if each.consumer.whole]
    return Curve(group.ids[[*gone, *np.flatnonzero(alive)]], np.array(errors), levels)


def curves(
    model: nn.Module, channels: Channels, layers: Sequence[Consumer], orders: Mapping[str, Ids] | None = None
) -> dict[str, Curve]:
    """The curve of every free group, or of those that have an order.

    A group that no layer reads whose inputs are known goes by its weights, at the usual errors of the others.
    """
    groups = [group for group in channels.free if orders is None or group.name in orders]
    read = np.unique(np.concatenate([np.empty(0, np.int64), *(each.ids for each in layers)]))
    found = {
        group.name: curve(group, layers, None if orders is None else orders[group.name])
        for group in counted("putting channels in order, group", groups, len(groups))
        if np.isin(group.ids, read).any()
    }
    if len(found) < len(groups):
        weights = l1(model, channels, Given()).values
        for group in groups:
            if group.name not in found:
                by_weight = group.ids[np.argsort(weights[group.name], kind="stable")]
                ids = by_weight if orders is None else orders[group.name]
                found[group.name] = Curve(ids, _usual(found, group.size))
    return {group.name: found[group.name] for group in groups}


def _usual(found: Mapping[str, Curve], size: int) -> NDArray[np.float64]:
    """The median of the curves at each share of a group of this size."""
    shares = np.arange(size) / size
    known = [
        np.interp(shares, np.arange(len(each.errors)) / (len(each.errors)), each.errors) for each in found.values()
    ]
    return np.median(known, axis=0) if known else shares


def calibrated(model: nn.Module, curves: Mapping[str, Curve], inputs: Sequence[Any]) -> dict[str, Curve]:
    """The curves in shares of the variance of the network's outputs: how far these go at some widths, to first order.

    Unlike the errors of the curves, which are sums over layers and places, this knows where they cancel or add up.
    """
    moved: dict[tuple[str, int], float] = {}
    seen = 0
    for layers, images in derivatives(model, inputs):
        seen += images
        for name, found in curves.items():
            for count, changes in found.levels.items():
                parts = [_moved(call, each, images) for each in changes for call in layers.get(each.name, ())]
                if parts:
                    total = torch.stack(parts).sum(0).square().sum()
                    moved[name, count] = moved.get((name, count), 0.0) + float(total)
    factors = {}
    for name, found in curves.items():
        counts = [count for count in found.levels if (name, count) in moved]
        before = sum(float(found.errors[count]) for count in counts)
        if before > 0:
            factors[name] = sum(moved[name, count] for count in counts) / seen / before
    usual = float(np.median(list(factors.values()))) if factors else 1.0
    return {name: Curve(found.ids, found.errors * factors.get(name, usual)) for name, found in curves.items()}


def _moved(call: tuple[nn.Module, Tensor, Tensor], change: Change, images: int) -> Tensor:
    """(images,): what a change of a layer adds to the outputs, along the direction of the derivative.

    A layer may be given parts of images in its first dimension, one image after the other; where these are no whole
    number for each, all of it is shared out evenly.
    """
    layer, given, gradient = call
    weights = {"weight": change.weight} if layer.bias is None else {"weight": change.weight, "bias": change.shift}
    made = functional_call(layer, weights, given)
    if layer.bias is None:
        shift = change.shift if isinstance(layer, nn.Linear) else change.shift.view(-1, *[1] * (given.ndim - 2))
        made = made + shift
    moved: Tensor = (made * gradient).flatten(1).sum(1)
    if len(moved) % images:
        return (moved.sum() / images).expand(images)
    return moved.view(images, -1).sum(1)


def shrinkage(covariance: Tensor, rows: int) -> Tensor:
    """How far covariances (groups, n, n) of so many rows are to be drawn to multiples of the identity, (groups,).

    Of fewer rows than unknowns some directions have no variance, and a channel would seem to cost nothing.

    Reference: Chen, Wiesel, Eldar, Hero, "Shrinkage Algorithms for MMSE Covariance Estimation", IEEE TSP 58, 2010,
    equation 23 (OAS).
    """
    size = covariance.shape[1]
    squares, trace = covariance.square().sum((1, 2)), covariance.diagonal(dim1=1, dim2=2).sum(1)
    apart = (squares - trace.square() / size).clamp(min=1e-300)
    return (((1 - 2 / size) * squares + trace.square()) / ((rows + 1 - 2 / size) * apart)).clamp(0, _MOST_SHRUNK)


class Downdated:
    """A layer while channels of a group leave it: its weights, refitted, and the inverse of its inputs' covariance."""

    def __init__(self, consumer: Consumer, ids: Ids) -> None:
        diagonal = consumer.covariance.diagonal(dim1=1, dim2=2)
        ridge = pulled(diagonal, RIDGE).expand_as(diagonal)
        if consumer.rows < _ENOUGH * diagonal.shape[1]:
            share = shrinkage(consumer.covariance, consumer.rows)[:, None]
            ridge = torch.maximum(ridge, share / (1 - share) * diagonal.mean(1, keepdim=True))
        failed = torch.ones(1)
        while failed.any():  # of few images, sums of float32 products may lie below zero somewhere
            factor, failed = torch.linalg.cholesky_ex(consumer.covariance + torch.diag_embed(ridge))
            ridge = 10 * ridge
        held = np.flatnonzero(np.isin(consumer.ids, ids))
        found = held[cells(consumer.ids[held])]  # in the order of their numbers
        found = found[np.argsort(np.argsort(ids))]
        self.channels, self.each = found.shape
        # Unknowns of one channel follow each other here, those of other groups come last.
        rest = np.setdiff1d(np.arange(len(consumer.ids)), held)
        self.places = torch.from_numpy(np.concatenate([found.ravel(), rest])).to(factor.device)
        self.inverse = torch.cholesky_inverse(factor)[:, self.places][:, :, self.places]
        self.matrix = (consumer.matrix * consumer.scale)[:, self.places]
        self.consumer = consumer

    def costs(self) -> NDArray[np.float64]:
        """Of every channel: how much error its removal adds; of those that are gone, anything."""
        size, shape = self.channels * self.each, (self.channels, self.each)
        own = self.inverse[:, :size, :size].unflatten(2, shape).unflatten(1, shape).diagonal(dim1=1, dim2=3)
        own = own.movedim(3, 1)  # (groups, channels, unknowns of each, unknowns of each)
        own = own + torch.diag_embed((own.diagonal(dim1=2, dim2=3) == 0).to(own))
        columns = self.matrix[:, :size].unflatten(1, shape)
        moved = columns / own if self.each == 1 else torch.linalg.inv(own) @ columns
        found: NDArray[np.float64] = moved.mul_(columns).sum((0, 2, 3)).cpu().numpy()
        return found

    def remove(self, chosen: list[int]) -> float:
        """Take channels away; returns how much error that adds."""
        gone = torch.tensor(chosen, device=self.places.device)[:, None] * self.each
        gone = (gone + torch.arange(self.each, device=gone.device)).flatten()
        rows, columns = self.inverse[:, gone], self.matrix[:, gone]
        step = torch.linalg.solve(rows[:, :, gone], torch.cat([columns, rows], 2))
        moved, downdate = step.split([columns.shape[2], rows.shape[2]], 2)
        cost = float((columns * moved).sum())
        self.matrix.baddbmm_(rows.mT, moved, alpha=-1)
        self.inverse.baddbmm_(rows.mT, downdate, alpha=-1)
        self.matrix[:, gone], self.inverse[:, gone], self.inverse[:, :, gone] = 0, 0, 0
        return max(cost, 0.0)

    def change(self) -> Change:
        """What the layer is without the channels that are gone, less what it was; they stay, and nothing reads them."""
        consumer = self.consumer
        matrix = torch.empty_like(self.matrix).index_copy_(1, self.places, self.matrix)
        moved = torch.where(consumer.scale == 0, 0, matrix / consumer.scale - consumer.matrix).to(consumer.weight)
        weight = torch.zeros_like(consumer.weight)
        consumer.reader.product.write_(consumer.view.on(weight), moved)
        return Change(consumer.reader.name, weight, -(consumer.mean.to(moved) @ moved).flatten())
