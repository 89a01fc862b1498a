"""Put flat graphs together to one with branches, each with the weights that only it uses.

A `Body` is one level of the graph while it is built: the model itself, or a branch of an If. Names are unique over the
whole model. Weights stand at the level that uses them: ONNX Runtime changes the layout of a convolution's weights only
where it finds them beside it.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.exporting.flatten import flatten
from compressor.exporting.samples import images
from compressor.exporting.weights import WeightsFile
from compressor.report.manifest import Array

IR_VERSION = 10  # of the file format; what torch's exporter writes


@dataclass(frozen=True)
class Stage:
    """A flat graph to be called, its weights in the package's file already."""

    model: Any  # onnx_ir.Model

    @property
    def image(self) -> Any:
        """What it takes first, as an onnx_ir.Value."""
        return self.model.graph.inputs[0]

    @property
    def output(self) -> Any:
        """What it gives first."""
        return self.model.graph.outputs[0]

    def first_output(self) -> "Stage":
        """The graph with its first output alone, without what only the others need."""
        from onnx_ir.passes.common import RemoveUnusedNodesPass

        model = self.model.clone()
        del model.graph.outputs[1:]
        return Stage(RemoveUnusedNodesPass()(model).model)


class Body:
    """Nodes and weights of one level, in the order they run; values are those of onnx_ir."""

    def __init__(self, outer: "Body | None" = None) -> None:
        import onnx_ir as ir

        self._numbers: itertools.count[int] = itertools.count() if outer is None else outer._numbers
        self._domains: dict[str, int] = {} if outer is None else outer._domains
        self.graph = ir.Graph([], [], nodes=[], name="main" if outer is None else f"branch_{next(self._numbers)}")

    def inner(self) -> "Body":
        """An empty branch, which may use every value of this level."""
        return Body(self)

    def input(self, name: str, like: Any) -> Any:
        """An input of the model, like a value."""
        self.graph.inputs.append(_like(name, like))
        return self.graph.inputs[-1]

    def call(self, stage: Stage, *inputs: Any) -> list[Any]:
        """Run a flat graph on values of this level, given in the order of its inputs; returns its outputs."""
        import onnx_ir as ir

        for domain, version in stage.model.opset_imports.items():
            self._domains[domain] = max(version, self._domains.get(domain, 0))
        graph, prefix = stage.model.graph, f"s{next(self._numbers)}/"
        known = {None: None, **dict(zip(graph.inputs, inputs))}
        for name, value in graph.initializers.items():
            known[value] = self._stored(prefix + name, value.const_value)
        for node in graph:
            assert not any(each.type == ir.AttributeType.GRAPH for each in node.attributes.values()), "a stage is flat"
            # Shapes of inner values stay behind: here the batch may be the part of it that goes through a branch.
            made = [ir.Value(name=prefix + each.name) for each in node.outputs]
            given, name = [known[each] for each in node.inputs], prefix + (node.name or node.op_type)
            attributes = node.attributes.values()
            self.graph.append(ir.Node(node.domain, node.op_type, given, attributes, outputs=made, name=name))
            known.update(zip(node.outputs, made))
        return [known[each] for each in graph.outputs]

    def run(self, operator: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """One operator; returns its output, of several a list."""
        import onnx_ir as ir

        made = [ir.Value(name=f"v{next(self._numbers)}") for _ in range(outputs)]
        name = f"{operator}_{made[0].name}"
        self.graph.append(ir.node(operator, inputs, attributes, outputs=made, name=name))
        return made[0] if outputs == 1 else made

    def constant(self, value: Array | int | float) -> Any:
        """A small tensor; Python's numbers become int64 and float32."""
        import onnx_ir as ir

        array = np.asarray(value, {int: np.int64, float: np.float32}.get(type(value)))
        return self._stored(f"c{next(self._numbers)}", ir.tensor(array))

    def _stored(self, name: str, tensor: Any) -> Any:
        import onnx_ir as ir

        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def choose(
        self, condition: Any, then: "tuple[Body, Sequence[Any]]", otherwise: "tuple[Body, Sequence[Any]]"
    ) -> list[Any]:
        """An If: one of two branches, each with its outputs, runs; returns the chosen outputs."""
        for body, values in (then, otherwise):
            own = [value.producer() is not None and value.producer().graph is body.graph for value in values]
            # What only comes from outside is handed through by an Identity.
            body.graph.outputs.extend(
                value if mine else body.run("Identity", value) for value, mine in zip(values, own)
            )
        branches = {"then_branch": then[0].graph, "else_branch": otherwise[0].graph}
        made = self.run("If", condition, outputs=len(then[1]), **branches)
        return made if len(then[1]) > 1 else [made]

    def model(self, outputs: Mapping[str, tuple[Any, Any]]) -> Any:
        """The whole model; each output under its name, from a value and like another."""
        import onnx_ir as ir

        for name, (value, like) in outputs.items():
            result = _like(name, like)
            self.graph.append(ir.node("Identity", [value], outputs=[result], name=f"Identity_{name}"))
            self.graph.outputs.append(result)
        self.graph.opset_imports.update(self._domains)
        return ir.Model(self.graph, ir_version=IR_VERSION, producer_name="compressor")


def _like(name: str, other: Any) -> Any:
    import onnx_ir as ir

    return ir.Value(name=name, type=other.type, shape=other.shape)


# What a module is called with, one tuple for each time; with several, each is another way in which it is used.
Samples = Sequence[tuple[Tensor, ...]]


class StageMaker:
    """Makes the graphs of one package in float32."""

    def __init__(self, weights: WeightsFile, opset: int) -> None:
        self.weights, self.opset = weights, opset

    def make(self, module: nn.Module, samples: Samples, inputs: Sequence[str], outputs: Sequence[str] | None) -> Stage:
        """The module, in evaluation mode, as a graph; `samples` are what it is called with.

        Tensors of two or more images have a free batch size in the graph; others keep their shape.
        """
        model = self._program(module, samples, inputs, outputs).model
        self.weights.take(model)
        return Stage(model)

    def _program(
        self, module: nn.Module, samples: Samples, inputs: Sequence[str], outputs: Sequence[str] | None
    ) -> Any:
        example = tuple(images(tensor, 2) if len(tensor) > 1 else tensor for tensor in samples[0])
        return flatten(module, example, self.opset, inputs, outputs)


@torch.no_grad()
def outputs_of(module: nn.Module, samples: Samples) -> list[Any]:
    """What the module gives for each of the samples."""
    return [module(*arguments) for arguments in samples]
