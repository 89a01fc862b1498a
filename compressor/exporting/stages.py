"""Torch modules become flat ONNX graphs, one after another, whose weights all go into one file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.exporting.compose import Stage
from compressor.exporting.flat import flatten
from compressor.exporting.samples import images
from compressor.exporting.weights import WeightsFile

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
