"""The step-down convolution: the input layer that lets a sub-model start in the middle of its base.

Reference: Fuengfusin and Tamukoh, "Convolutional Network with Sub-Networks", section 2.1. The paper has only maps whose
size divides the image's; the arithmetic for all others is ours.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from compressor.errors import ModelError
from compressor.graph.operators import OPERATORS

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
