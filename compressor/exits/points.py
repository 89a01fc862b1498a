"""Where a base may be cut, what a sub-model from there costs, and the step-down convolution that it starts with.

Reference: Fuengfusin and Tamukoh, "Convolutional Network with Sub-Networks", section 2.1. The paper has only maps whose
size divides the image's; the arithmetic for all others is ours.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from compressor.errors import ModelError
from compressor.graph.cuts import Chain, Cut
from compressor.graph.operators import CONVOLUTIONS, OPERATORS
from compressor.graph.program import module_of, name_of, operator_of
from compressor.profiling.costs import macs_of

Pair = tuple[int, int]


def step_down(image: int, feature: int) -> Pair:
    """Kernel and stride of the convolution without padding that makes `feature` positions of `image` pixels.

    It reads every pixel and its kernel is at least as long as its stride; both are image / feature where that divides.

    Raises ModelError when the image is smaller than the feature map.
    """
    if not 1 <= feature <= image:
        raise ModelError(f"an image of {image} pixels cannot be stepped down to {feature}: it is smaller")
    stride = image // feature
    return image - (feature - 1) * stride, stride


@dataclass(frozen=True)
class StepDownPlan:
    """A step-down convolution as plain data, heights before widths."""

    in_channels: int
    out_channels: int
    image: Pair
    feature: Pair
    kernel: Pair
    stride: Pair
    resize: Pair | None  # what the image is brought to first, where kernels would be far longer than their stride
    norm: bool  # batch norm behind it; else it has a bias
    activation: tuple[Any, ...] | None  # name of the operator and its numbers: ("relu",), ("hardtanh", 0.0, 6.0)

    @property
    def note(self) -> str | None:
        """What the user should know where the sizes do not divide."""
        sizes = f"{_by(self.image)} to {_by(self.feature)} does not divide"
        if self.resize is not None:
            return f"{sizes}: the image is resized to {_by(self.resize)} first"
        if self.kernel != self.stride:
            return f"{sizes}: kernels of {_by(self.kernel)} overlap at stride {_by(self.stride)}"
        return None


def plan_step_down(
    image: tuple[int, ...], feature: tuple[int, ...], *, norm: bool, activation: tuple[Any, ...] | None
) -> StepDownPlan:
    """The step-down from an image `(channels, height, width)` to a feature map `(channels, height, width)`.

    Raises ModelError when the image is smaller than the map.
    """
    axes = [_axis(pixels, positions) for pixels, positions in zip(image[1:], feature[1:], strict=True)]
    sizes: Pair = (axes[0][0], axes[1][0])
    whole: Pair = (image[1], image[2])
    return StepDownPlan(
        in_channels=image[0],
        out_channels=feature[0],
        image=whole,
        feature=(feature[1], feature[2]),
        kernel=(axes[0][1], axes[1][1]),
        stride=(axes[0][2], axes[1][2]),
        resize=None if sizes == whole else sizes,
        norm=norm,
        activation=activation,
    )


def _axis(pixels: int, positions: int) -> tuple[int, int, int]:
    """Size that the image is brought to, kernel and stride along one axis."""
    kernel, stride = step_down(pixels, positions)
    if kernel <= 2 * stride + 1:
        return pixels, kernel, stride
    even = max(1, round(pixels / positions))
    return positions * even, even, even


class StepDown(nn.Module):
    """Convolution, batch norm and activation: `(batch, in_channels, *image)` to `(batch, out_channels, *feature)`."""

    def __init__(self, plan: StepDownPlan) -> None:
        super().__init__()
        self.plan = plan
        self.conv = nn.Conv2d(plan.in_channels, plan.out_channels, plan.kernel, plan.stride, bias=not plan.norm)
        self.norm = nn.BatchNorm2d(plan.out_channels) if plan.norm else nn.Identity()
        self.activation = _activation(plan.activation)

    def forward(self, x: Tensor) -> Tensor:
        """Raises ModelError for an image of another size, of which the sub-model could make nothing."""
        if tuple(x.shape[2:]) != self.plan.image:
            given = _by((int(x.shape[2]), int(x.shape[3])))
            raise ModelError(
                f"an image of {given} does not fit this sub-model: its step-down of kernel {_by(self.plan.kernel)} and "
                f"stride {_by(self.plan.stride)} takes {_by(self.plan.image)}"
            )
        if self.plan.resize is not None:
            x = functional.interpolate(x, size=self.plan.resize, mode="bilinear", align_corners=False)
        y: Tensor = self.activation(self.norm(self.conv(x)))
        return y


def _activation(held: tuple[Any, ...] | None) -> nn.Module:
    if held is None:
        return nn.Identity()
    known = OPERATORS.get(held[0])
    if known is None or known.kind != "activation":
        raise ValueError(f"there is no activation {held[0]!r}")
    return known.modules[0](*held[1:])


def _by(pair: Pair) -> str:
    return f"{pair[0]}x{pair[1]}"


@dataclass(frozen=True)
class Point:
    """A legal cut and the sub-model that starts there."""

    at: str  # the first module of the base that the sub-model keeps
    cut: Cut
    plan: StepDownPlan
    macs: int  # multiply-adds of the sub-model for one image, its step-down included
    params: int  # of the sub-model, its step-down included
    own_params: int  # of the step-down alone

    def to_json(self) -> dict[str, Any]:
        """A row of the list that the user sees."""
        return {
            "at": self.at,
            "shape": list(self.cut.shape),
            "macs": self.macs,
            "params": self.params,
            "own_params": self.own_params,
        }


# No network takes larger images; a damaged checkpoint may say anything.
LARGEST_INPUT = 1 << 24


class Survey:
    """A base with its chain of cuts, and the points among them where sub-models may start."""

    def __init__(self, base: nn.Module, input_shape: Sequence[int]) -> None:
        """`input_shape` is (channels, height, width). Raises ModelError for a network that cannot be cut."""
        self.base = base
        self.input_shape = tuple(input_shape)
        if math.prod(self.input_shape) > LARGEST_INPUT:
            raise ModelError(f"an input of shape {self.input_shape} is too large to cut a network for")
        self.like = next(base.parameters(), torch.zeros(0))  # has the device and the type of what is added
        image = torch.zeros(1, *self.input_shape, device=self.like.device, dtype=self.like.dtype)
        self.chain = Chain(base, image)
        self.end = len(self.chain.cuts) - 1  # index of the last cut, the output

    @cached_property
    def names(self) -> tuple[str, ...]:
        """For every cut the module of the base that starts there, or the next; each name stands once."""
        direct = [_starts(cut.read_by, cut.made_by) for cut in self.chain.cuts]
        taken: dict[str, int] = {}
        found = []
        for cut, name in zip(self.chain.cuts, direct):
            if not name:
                following = self._next_module(cut)
                name = following if following not in direct else f"{cut.operator or 'output'}@{cut.index}"
            taken[name] = taken.get(name, 0) + 1
            found.append(name if taken[name] == 1 else f"{name}#{taken[name]}")
        return tuple(found)

    def _next_module(self, cut: Cut) -> str:
        """The first module that runs between a cut and the next one; "" where there is none."""
        nodes = self.chain.segment(cut.index, cut.index + 1).graph.nodes if cut.index < self.end else ()
        reader = next((module_of(node) for node in nodes if module_of(node)), "")
        return _starts(reader, cut.made_by)

    @cached_property
    def convolutional(self) -> bool:
        """Whether the base has convolutions at all."""
        return not CONVOLUTIONS.isdisjoint(self.chain.operators(0, self.end))

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of the base for one image."""
        return macs_of(self.base, self.input_shape)

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """The legal points, from the input on."""
        indices = list(self._legal())
        costs = [self._cost(start, end) for start, end in zip(indices, [*indices[1:], self.end])]
        found: list[Point] = []
        for place, index in enumerate(indices):
            cut = self.chain.cuts[index]
            plan = self._plan(cut)
            layer = StepDown(plan).to(self.like)
            own = sum(parameter.numel() for parameter in layer.parameters())
            kept = {key: size for _, params in costs[place:] for key, size in params.items()}
            macs = macs_of(layer, self.input_shape) + sum(macs for macs, _ in costs[place:])
            found.append(Point(self.names[index], cut, plan, macs, own + sum(kept.values()), own))
        return tuple(found)

    def _legal(self) -> Iterator[int]:
        """Cuts before the next convolution, with convolutions before and behind, and not behind global pooling."""
        cuts, operators = self.chain.cuts, self.chain.operators
        seen = False
        for index in range(1, self.end):
            cut, before = cuts[index], operators(index - 1, index)
            convolved = not CONVOLUTIONS.isdisjoint(before)
            seen = seen or convolved
            if len(cut.shape) == 1 or (not convolved and math.prod(cut.shape[1:]) == 1):
                return
            if len(cut.shape) != 3:
                continue
            fits = all(size <= pixels for size, pixels in zip(cut.shape[1:], self.input_shape[1:], strict=True))
            if seen and fits and not CONVOLUTIONS.isdisjoint(operators(index, index + 1)):
                yield index

    def _cost(self, start: int, end: int) -> tuple[int, dict[int, int]]:
        """Multiply-adds between two cuts, and the parameters there: identity -> size."""
        part = self.chain.segment(start, end)
        params = {id(parameter): parameter.numel() for parameter in part.parameters()}
        return macs_of(part, self.chain.cuts[start].shape), params

    def _plan(self, cut: Cut) -> StepDownPlan:
        """The step-down to a cut, with the batch norm and activation that the base has before it."""
        before = self.chain.segment(0, cut.index)
        norm = any(operator_of(node).kind == "batch norm" for node in before.graph.nodes)
        output = next(node for node in before.graph.nodes if node.op == "output")
        return plan_step_down(
            self.input_shape, cut.shape, norm=norm, activation=_activation_before(output.all_input_nodes[0])
        )


def begins(name: str, at: str, cut: Cut) -> bool:
    """Whether a module begins at a cut: the outermost that does is `at`, the innermost reads the tensor."""
    between = name.startswith(f"{at}.") and cut.read_by.startswith(f"{name}.")
    return between or name in (at, cut.read_by)


def survey(base: nn.Module, example: Tensor) -> Survey:
    """The base with its chain of cuts. Raises ModelError for a network that cannot be written as one chain."""
    if not isinstance(example, Tensor):
        raise ModelError("the network takes several inputs: sub-models are cut out of networks of one")
    return Survey(base, tuple(example.shape[1:]))


def legal_points(base: nn.Module, example: Tensor) -> Survey:
    """A survey that has at least one legal point. Raises ModelError, with the reason, when there is none."""
    found = survey(base, example)
    if not found.convolutional:
        raise ModelError("the network has no convolution, so nothing to step down to: use `method` nsn")
    if not found.points:
        raise ModelError(
            "the network has no point where one feature map alone carries the flow from convolutions to convolutions, "
            "so no sub-model can start inside it"
        )
    return found


def _starts(reader: str, maker: str) -> str:
    """The outermost of the modules around `reader` that the maker is not in; "" for code outside any module."""
    parts = reader.split(".") if reader else []
    for length in range(1, len(parts) + 1):
        name = ".".join(parts[:length])
        if maker != name and not maker.startswith(f"{name}."):
            return name
    return reader


def _activation_before(node: fx.Node) -> tuple[Any, ...] | None:
    """The activation that the tensor came out of, through pooling."""
    while operator_of(node).kind in ("pool", "dropout") or operator_of(node).keeps == "all":
        node = node.all_input_nodes[0]
    known = operator_of(node)
    if known.kind != "activation":
        return None
    numbers = (*node.args[1:], *node.kwargs.values())
    return (name_of(node), *numbers[: known.numbers])
