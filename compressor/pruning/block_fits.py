"""Least squares for the convolutions that take the places of blocks' branches."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from compressor.graph.blocks import Block, Values
from compressor.graph.trace import trace
from compressor.pruning.consumers import outputs_of
from compressor.pruning.reconstruction.calibration import HELD_BACK, draws
from compressor.pruning.reconstruction.gram import Gram, Rows
from compressor.pruning.reconstruction.products import Product


class _Stop(BaseException):
    """Nothing further of a run is asked for; no `Exception`, which the model's code might catch."""


def show(
    model: nn.Module,
    inputs: Sequence[Any],
    names: Sequence[str],
    look: Callable[[int, str, Tensor], None],
    *,
    made: bool = False,
) -> None:
    """Show what modules are given, or what they have `made`, batch by batch; what comes later is not run."""
    for number, given in enumerate(inputs):
        left = set(names)

        def met(module: nn.Module, args: tuple[Tensor], *out: Tensor, name: str, left: set[str], number: int) -> None:
            look(number, name, out[0] if made else args[0])
            left.discard(name)
            if not left:
                raise _Stop

        hooks = []
        for name in names:
            found = model.get_submodule(name)
            hook = partial(met, name=name, left=left, number=number)
            hooks.append(found.register_forward_hook(hook) if made else found.register_forward_pre_hook(hook))
        try:
            outputs_of(model, given)
        except _Stop:
            pass
        finally:
            for each in hooks:
                each.remove()


class Fits:
    """Least squares for the convolutions in the branches' places."""

    def __init__(self, blocks: Mapping[str, Block], inputs: Sequence[Tensor]) -> None:
        self._inputs, self._draws = inputs, draws(inputs)
        self._held = set(sorted(seed for draw in self._draws for seed in draw.seeds)[HELD_BACK - 1 :: HELD_BACK])
        self._blocks = blocks
        self._paths: dict[str, fx.GraphModule] = {}  # up to where what is left out would have been added
        self._totals: dict[str, list[Tensor]] = {name: [] for name in blocks}  # (1, rows, outputs) of every batch
        for name, block in blocks.items():
            if block.shortcut is not None:
                self._paths[name] = block.ending(block.shortcut).eval()

    def start(self, whole: nn.Module) -> None:
        """Look at what the blocks make in the network as it came."""
        parts = {name: block.ending(block.total).eval() for name, block in self._blocks.items()}

        def look(number: int, name: str, x: Tensor) -> None:
            self._totals[name].append(self._rows(number, parts[name](x)))

        show(whole, self._inputs, list(parts), look)

    def values(self, small: nn.Module, name: str, kernel: int) -> Values:
        """Fitted to the block's input in a network."""
        made = self._blocks[name].convolution(kernel)
        assert made is not None
        found = made[0]
        assert isinstance(found, nn.Conv2d)
        product = Product(trace(found, torch.zeros(1, *self._blocks[name].given, device=found.weight.device)).ops[0], 1)
        gram = Gram(constant=True)
        rest = (found.stride, found.padding, found.dilation, False, (0, 0), 1)

        def look(number: int, name: str, x: Tensor) -> None:
            y = self._totals[name][number].to(x)
            if name in self._paths:
                y = y - self._rows(number, self._paths[name](x))
            sizes = zip(x.shape[2:], found.stride, strict=True)
            shape = (len(x), found.out_channels, *((size + 2 * (kernel // 2) - kernel) // by + 1 for size, by in sizes))
            count = product.row_count((), shape)
            rows, held = self._draws[number].rows(count), self._draws[number].held_back(count, self._held)
            taken = product.inputs((x, found.weight, None, *rest), shape, rows.to(x.device))
            gram.add(Rows(taken, y), held.to(x.device))

        show(small, self._inputs, [name], look)
        before = gram.inner.new_zeros(1, gram.inner.shape[1], found.out_channels)
        matrix = gram.best(before).matrix
        moments = gram.inner[0] / gram.inner[0, -1, -1]
        mean, weights = moments[-1:, :-1], matrix[0, :-1]
        around = moments[:-1, :-1] - mean.T @ mean
        variance = (weights * (around @ weights)).sum(0).clamp(min=0)
        product.write_(found.weight, matrix[:, :-1].to(found.weight))
        parts = (each.to(found.weight) for each in (matrix[0, -1], (mean @ weights)[0], variance))
        return Values(found.weight.detach(), *parts)

    def _rows(self, number: int, maps: Tensor) -> Tensor:
        """(1, rows, channels) of maps, at the drawn places."""
        flat = maps.flatten(2)
        rows = self._draws[number].rows(len(flat) * flat.shape[2]).to(maps.device)
        return flat[rows // flat.shape[2], :, rows % flat.shape[2]][None]
