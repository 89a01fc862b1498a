"""Layers that read channels, with the second moments of their inputs, and what an error there does to the network."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves, tree_map

from compressor.errors import ModelError
from compressor.graph.channels import Channels, Ids
from compressor.graph.neutral import neutral
from compressor.graph.skeleton import skeleton
from compressor.pruning.reconstruction.calibration import Draw, draws, fewer, in_parts
from compressor.pruning.reconstruction.fold import cells
from compressor.pruning.reconstruction.gram import Gram, Rows
from compressor.pruning.reconstruction.products import Product
from compressor.pruning.reconstruction.readers import Reader, View, readers, survey, unknown_ids
from compressor.pruning.reconstruction.replay import Hook, Replay, plain_attention
from compressor.report.progress import counted
from compressor.training.evaluate import evaluating
from compressor.training.task import called, examples_in

_PROBED = 512  # images whose derivatives are looked at,
_PROBED_VALUES = 1 << 20  # so many values of them at once,
_PROBED_IN_ALL = 1 << 22  # and in all: about 30 images of 3x224x224
JUDGED = (1 << 21, 128)  # values, and images, at least by which channels are judged
_WIDE = 1500  # unknowns of a layer, from which on the places of a channel share their moments


@dataclass(frozen=True)
class Consumer:
    """A layer that reads channels, with the second moments of its inputs."""

    reader: Reader
    view: View
    ids: Ids  # (unknowns,): the channel that each belongs to
    covariance: Tensor  # (groups, unknowns, unknowns)
    mean: Tensor  # (groups, 1, unknowns)
    weight: Tensor  # the parameter that holds its weight
    matrix: Tensor  # (groups, unknowns, outputs)
    scale: Tensor  # (groups, 1, outputs): squared, what a squared error of an output does to the network's
    rows: int  # that the moments are of
    whole: bool = True  # or the places of a channel, too many to be unknowns each, share their moments


def consumers(model: nn.Module, channels: Channels, inputs: Sequence[Any]) -> list[Consumer]:
    """Every layer that reads channels of a free group, from one pass over the inputs."""
    free = np.concatenate([group.ids for group in channels.free])
    with neutral(), torch.no_grad():
        replay = Replay(model, judged := fewer(inputs, *JUDGED))
        tensors, ops = replay.tensors, replay.program.ops
        layers = readers(replay.program)
        views = survey(replay, layers)
        known: dict[int, Ids] = {}
        for reader in layers:
            groups = ops[reader.start].args[8] if reader.product.convolves else 1
            ids = unknown_ids(reader.product, views[reader.start], tensors[reader.name], channels, groups)
            if ids is not None and np.isin(ids, free).any():
                known[reader.start] = ids
        layers = [reader for reader in layers if reader.start in known]
        places = {start: cells(ids) if len(ids) > _WIDE else None for start, ids in known.items()}
        grams = {reader.start: Gram(constant=True) for reader in layers}
        for batch, draw in enumerate(counted("looking at inputs of layers, batch", draws(judged), len(judged))):
            hooks: dict[int, list[Hook]] = {}
            for reader in layers:
                for call in reader.calls:
                    hooks[call.at] = [partial(_add, grams[reader.start], call.product, draw, places[reader.start])]
            replay.run(batch, {}, hooks, max(hooks, default=0))
    weights = _sensitivities(model, inputs)
    return [
        _consumer(reader, views[reader.start], tensors[reader.name], known[reader.start], places[reader.start],
                  grams.pop(reader.start), weights.get(reader.name))
        for reader in layers
    ]  # fmt: skip


def _add(gram: Gram, product: Product, draw: Draw, places: Ids | None, args: Sequence[Any], result: Tensor) -> None:
    """Add a layer's inputs at the drawn places; of its outputs nothing is needed, they follow from the weights."""
    rows = draw.rows(product.row_count(args, result.shape)).to(result.device)
    x = product.inputs(args, result.shape, rows)
    x = x if places is None else x[:, :, places].transpose(2, 3).flatten(1, 2)
    gram.add(Rows(x, x[:, :, :0]))


def _consumer(
    reader: Reader, view: View, weight: Tensor, ids: Ids, places: Ids | None, gram: Gram, weights: Tensor | None
) -> Consumer:
    moments = gram.inner / gram.inner[:, -1:, -1:]
    mean = moments[:, -1:, :-1]
    covariance = moments[:, :-1, :-1] - mean.mT @ mean
    matrix = reader.product.matrix(view.on(weight), len(gram.inner)).to(gram.inner)
    if not (torch.isfinite(covariance).all() and torch.isfinite(matrix).all()):
        raise ModelError(
            f"{reader.name} or what it reads is not finite: the model was damaged in training, or an image is"
        )
    told = weights is not None and weights.numel() == len(matrix) * matrix.shape[2]
    scale = torch.ones_like(matrix[:, :1])
    if weights is not None and told:
        scale = weights.to(matrix).sqrt().view(len(matrix), 1, -1)
    if places is not None:  # any matrix with the same products costs the same
        matrix = torch.linalg.qr((matrix * scale)[:, places].flatten(2).mT, mode="r").R.mT
        ids = ids[places[:, 0]]
        scale = torch.ones_like(matrix[:, :1])
    if not told:  # in shares of the variance of its outputs
        scale = scale / (matrix * (covariance @ matrix)).sum().clamp(min=1e-300).sqrt()
    rows = int(gram.inner[0, -1, -1])
    return Consumer(reader, view, ids, covariance, mean, weight.detach(), matrix, scale, rows, whole=places is None)


def _sensitivities(model: nn.Module, inputs: Sequence[Any]) -> dict[str, Tensor]:
    """By the weight's name: how far the network's outputs go, in shares of their variance, for each layer's output.

    The mean over images of squared derivatives, summed over places: the diagonal of the Gauss-Newton matrix.
    """
    sums: dict[str, Tensor] = {}
    seen = 0
    for layers, images in derivatives(model, inputs):
        for name, calls in layers.items():
            for layer, _, gradient in calls:
                found = gradient.double().square().movedim(1 if isinstance(layer, _ConvNd) else -1, -1)
                sums[name] = sums.get(name, 0) + found.flatten(0, -2).sum(0)
        seen += images
    return {name: found / seen for name, found in sums.items()}


_Calls = list[tuple[nn.Module, Tensor, Tensor]]  # a layer, what it was given, and the derivative by what it gave


def derivatives(model: nn.Module, inputs: Sequence[Any]) -> Iterator[tuple[dict[str, _Calls], int]]:
    """Derivatives of the outputs along random directions, in parts of some images, by the names of the layers' weights.

    Layers that are no modules of torch's, or called outside autograd, are not among them.
    """
    calls: dict[str, _Calls] = {}
    copied = skeleton(model, real=True)
    # Where inputs carry derivatives weights need none: what a model computes of them once and keeps has no graph then.
    copied.requires_grad_(not any(map(_is_float, tree_leaves(list(inputs[:1])))))

    def ran(name: str, layer: nn.Module, args: Any, result: Tensor) -> None:
        if result.requires_grad and len(args) == 1:
            result.register_hook(
                lambda gradient: calls.setdefault(name, []).append((layer, args[0].detach(), gradient))
            )

    for name, layer in copied.named_modules():
        if isinstance(layer, _ConvNd | nn.Linear):
            layer.register_forward_hook(partial(ran, f"{name}.weight" if name else "weight"))
    source = torch.Generator().manual_seed(0)
    with neutral(), evaluating(copied), plain_attention(), torch.enable_grad():
        probed = fewer(inputs, _PROBED_IN_ALL)
        total = min(_PROBED, sum(map(examples_in, probed)))
        parts = in_parts(probed, _PROBED, _PROBED_VALUES)
        for given in counted("taking derivatives, images", parts, total, examples_in):
            given = tree_map(lambda leaf: leaf.detach().clone().requires_grad_() if _is_float(leaf) else leaf, given)
            outputs = [leaf for leaf in outputs_of(copied, given) if leaf.requires_grad]
            if not outputs:
                return
            along = sum(_along(leaf, source) for leaf in outputs) / len(outputs) ** 0.5
            assert isinstance(along, Tensor)
            along.backward()
            with torch.no_grad():
                yield calls, examples_in(given)
            calls.clear()


def _along(output: Tensor, source: torch.Generator) -> Tensor:
    """The sum of an output along random directions, in deviations of the whole of it over images (of one, over places);
    of one that never changes, nothing.
    """
    if not output.ndim:  # a number for an image: there is no other to compare it with
        return output
    signs = torch.randint(0, 2, output.shape, generator=source).to(output) * 2 - 1
    detached = output.detach()
    centre = detached.mean(0) if len(output) > 1 else detached.mean()
    deviation = ((detached - centre).square().sum() / len(output)).sqrt()
    return (output * signs).sum() / torch.where(deviation > 0, deviation, torch.inf)


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def outputs_of(model: nn.Module, given: Any) -> list[Tensor]:
    leaves = tree_leaves(called(model, given))
    return [leaf.double() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
