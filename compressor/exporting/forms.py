"""What can be packaged: the exits that a model has, each as a module of its own that says what is right.

An exit is one way through the model: the whole of a compact model, a sub-model of a detachable one, a depth of a routed
one. Its module is the reference for the exported graph, and its multiply-adds and convolutions are what the graph
promises to execute and no more.
"""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from compressor.errors import ModelError
from compressor.exporting.parity import Array
from compressor.graph.trace import trace
from compressor.profiling.macs import count_macs


@dataclass(frozen=True, eq=False)
class Exit:
    """One way through a model."""

    number: int
    name: str
    module: nn.Module  # images (batch, channels, height, width) to scores (batch, classes), or several outputs
    feeds: dict[str, Array] = field(default_factory=dict)  # inputs of the graph that choose it, besides the images


@dataclass(frozen=True)
class Cost:
    """What an exit executes for one image, counted on its module."""

    macs: int
    params: int
    convolutions: int  # operators


@dataclass(frozen=True, eq=False)
class Form:
    """A model as it is packaged."""

    kind: str  # "compact", "detachable", "nested" or "routed"
    module: nn.Module
    exits: tuple[Exit, ...]
    choice: dict[str, Any] | None = None  # the input that chooses among them: its name, default and meaning

    def __post_init__(self) -> None:
        assert [each.number for each in self.exits] == list(range(len(self.exits)))


def form_of(module: nn.Module, example: object) -> Form:
    """Recognise what a model is by its class.

    Raises ModelError for a model of several inputs: a package takes images.
    """
    if not isinstance(example, Tensor):
        raise ModelError("a package takes one tensor of images; export a model of several inputs with --out FILE.onnx")
    return Form("compact", module, (Exit(0, "model", module),))


def cost_of(leaving: Exit, example: Tensor) -> Cost:
    """Count on shapes alone what an exit executes."""
    traced = trace(leaving.module, example[:1])
    convolutions = sum(op.name == "convolution" for op in traced.ops)
    params = sum(parameter.numel() for parameter in leaving.module.parameters())
    return Cost(count_macs(traced).total, params, convolutions)
