"""Put flat graphs together to one with branches, each with the weights that only it uses.

A `Body` is one level of the graph while it is built: the model itself, or a branch of an If. Names are unique over the
whole model. Weights stand at the level that uses them: ONNX Runtime changes the layout of a convolution's weights only
where it finds them beside it.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.exporting.onnx import flatten
from compressor.exporting.samples import images
from compressor.exporting.weights import WeightsFile
from compressor.report.manifest import Array

IR_VERSION = 10  # of the file format; what torch's exporter writes


@dataclass(frozen=True)
class Stage:
    """A flat graph to be called, its weights in the package's file already."""

    model: Any  # onnx.ModelProto

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of its inputs, in order."""
        return tuple(entry.name for entry in self.model.graph.input)

    def first_output(self) -> "Stage":
        """The graph with its first output alone, without what only the others need."""
        import onnx_ir
        from onnx_ir.passes.common import RemoveUnusedNodesPass

        model = onnx_ir.from_proto(self.model)
        del model.graph.outputs[1:]
        return Stage(onnx_ir.to_proto(RemoveUnusedNodesPass()(model).model))


class Body:
    """Nodes and weights of one level, in the order they run."""

    def __init__(self, outer: "Body | None" = None) -> None:
        import onnx

        self._numbers: itertools.count[int] = itertools.count() if outer is None else outer._numbers
        self._domains: dict[str, int] = {} if outer is None else outer._domains
        self.graph = onnx.GraphProto()

    def inner(self) -> "Body":
        """An empty branch, which may use every value of this level."""
        return Body(self)

    def call(self, stage: Stage, inputs: Mapping[str, str]) -> list[str]:
        """Run a flat graph on values of this level, given by the names of its inputs; returns its outputs' names."""
        for opset in stage.model.opset_import:
            self._domains[opset.domain] = max(opset.version, self._domains.get(opset.domain, 0))
        graph, prefix = stage.model.graph, f"s{next(self._numbers)}/"
        names = dict(inputs)

        def renamed(name: str) -> str:
            return names.setdefault(name, prefix + name) if name else name

        for tensor in graph.initializer:
            self.graph.initializer.add().CopyFrom(tensor)
            self.graph.initializer[-1].name = renamed(tensor.name)
        for node in graph.node:
            assert not any(attribute.HasField("g") for attribute in node.attribute), "a stage is flat"
            copied = self.graph.node.add()
            copied.CopyFrom(node)
            copied.name = prefix + (node.name or node.op_type)
            copied.input[:] = [renamed(name) for name in node.input]
            copied.output[:] = [renamed(name) for name in node.output]
        # Shapes of inner values stay behind: here the batch may be the part of it that goes through a branch.
        return [renamed(entry.name) for entry in graph.output]

    def run(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """One operator with one output; returns the output's name."""
        import onnx

        output = f"v{next(self._numbers)}"
        self.graph.node.append(
            onnx.helper.make_node(operator, list(inputs), [output], name=f"{operator}_{output}", **attributes)
        )
        return output

    def constant(self, value: Array | int | float) -> str:
        """A small tensor; Python's numbers become int64 and float32."""
        import onnx

        array = np.asarray(value, {int: np.int64, float: np.float32}.get(type(value)))
        name = f"c{next(self._numbers)}"
        self.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return name

    def weight(self, tensor: Any) -> str:
        """A copy of a tensor that is stored already, under a name of its own."""
        name = f"w{next(self._numbers)}"
        self.graph.initializer.add().CopyFrom(tensor)
        self.graph.initializer[-1].name = name
        return name

    def choose(
        self, condition: str, then: "tuple[Body, Sequence[str]]", otherwise: "tuple[Body, Sequence[str]]"
    ) -> list[str]:
        """An If: one of two branches, each with the names of its outputs, runs; returns the chosen outputs."""
        import onnx

        outputs = [f"v{next(self._numbers)}" for _ in then[1]]
        branches = {
            name: body.finished(name, [], [onnx.ValueInfoProto(name=value) for value in values])
            for name, (body, values) in (("then_branch", then), ("else_branch", otherwise))
        }
        self.graph.node.append(onnx.helper.make_node("If", [condition], outputs, name=f"If_{outputs[0]}", **branches))
        return outputs

    def finished(self, name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
        """The level as a graph; a value that only comes from outside is handed through by an Identity."""
        made = {value for node in self.graph.node for value in node.output}
        for output in outputs:
            if output.name not in made:
                output.name = self.run("Identity", output.name)
        self.graph.name = name
        self.graph.input.extend(inputs)
        self.graph.output.extend(outputs)
        return self.graph

    def model(self, inputs: Sequence[Any], outputs: Mapping[str, tuple[str, Any]]) -> Any:
        """The whole model; each output under its name, from a value and like a description (ValueInfoProto)."""
        import onnx

        results = []
        for name, (value, like) in outputs.items():
            self.graph.node.append(onnx.helper.make_node("Identity", [value], [name], name=f"Identity_{name}"))
            results.append(onnx.ValueInfoProto())
            results[-1].CopyFrom(like)
            results[-1].name = name
        graph = self.finished("main", inputs, results)
        opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in self._domains.items()]
        return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="compressor")


def image_info(stage: Stage) -> Any:
    """The description of a stage's first input, as the model's own input."""
    import onnx

    info = onnx.ValueInfoProto()
    info.CopyFrom(stage.model.graph.input[0])
    info.name = "input"
    return info


# What a module is called with, one tuple for each time; with several, each is another way in which it is used.
Samples = Sequence[tuple[Tensor, ...]]


class StageMaker:
    """Makes the graphs of one package in float32."""

    def __init__(self, weights: WeightsFile, scratch: Path, opset: int) -> None:
        self.weights, self.opset = weights, opset
        self._scratch = scratch

    def make(self, module: nn.Module, samples: Samples, inputs: Sequence[str], outputs: Sequence[str] | None) -> Stage:
        """The module, in evaluation mode, as a graph; `samples` are what it is called with.

        Tensors of two or more images have a free batch size in the graph; others keep their shape.
        """
        file = self._scratch / "stage.onnx"
        self._program(module, samples, inputs, outputs).save(file, external_data=True)
        return self._taken(file)

    def _program(
        self, module: nn.Module, samples: Samples, inputs: Sequence[str], outputs: Sequence[str] | None
    ) -> Any:
        example = tuple(images(tensor, 2) if len(tensor) > 1 else tensor for tensor in samples[0])
        return flatten(module, example, self.opset, inputs, outputs)

    def _taken(self, file: Path) -> Stage:
        """A flat graph on the disk, its weights moved into the package's file and itself removed."""
        import onnx

        model: Any = onnx.load(file, load_external_data=False)
        self.weights.take(model, file.parent)
        for each in file.parent.iterdir():
            each.unlink()
        return Stage(model)


@torch.no_grad()
def outputs_of(module: nn.Module, samples: Samples) -> list[Any]:
    """What the module gives for each of the samples."""
    return [module(*arguments) for arguments in samples]
