"""Write a model as torch's exported program (.pt2): one file that opens without the code it was made of.

Plain torch runs it (`torch.export.load(path).module()`), and so does compressor, which also edits and trains it.
"""

import json
import os
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import FileError, ModelError, first_line
from compressor.exporting.onnx import write_checked
from compressor.exporting.samples import (
    images,
    largest_difference,
    torch_outputs,
)
from compressor.graph.program import with_free_batch
from compressor.loading.opening import EXTRA, open_model
from compressor.report.manifest import Array, Card
from compressor.report.measurements import OnnxCheck


def export_program(
    module: nn.Module,
    example: Tensor,
    path: str | os.PathLike[str],
    *,
    card: Card | None = None,
    settings: dict[str, Any] | None = None,
    check_inputs: Tensor | None = None,
) -> OnnxCheck:
    """Write the module in evaluation mode as a program of any batch size, checked after opening it again.

    Args:
        example: an image (1, channels, height, width).
        card: what the file says of the model: classes, normalisation, history.
        settings: plain data of the caller's, kept in the file.
        check_inputs: real images on which the opened program is compared; random ones where left out.

    Raises:
        ModelError: the model cannot be written as one graph.
        CompressorError: the opened program computes something else. Nothing is left under `path` then, except what was
            there before.
        FileError: the file cannot be written.
    """

    if not isinstance(example, Tensor):
        raise ModelError("torch's program is written for models of one input: export this one with --out FILE.onnx")

    def write(reference: nn.Module, whole: Tensor, file: Path) -> None:
        _write(reference, images(whole, 2), file, _about(card or Card(), tuple(whole.shape[1:]), settings or {}))

    return write_checked(module, example, path, write, _compared, check_inputs)


def _about(card: Card, shape: tuple[int, ...], settings: dict[str, Any]) -> dict[str, Any]:
    preparation = None if card.preparation is None else asdict(card.preparation)
    known = {"classes": card.classes, "preparation": preparation, "history": card.history}
    return {"format": "compressor program", "version": 1, "input_shape": shape, **known, "settings": settings}


def _write(reference: nn.Module, example: Tensor, file: Path, about: dict[str, Any]) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's about torch's own internals
            program = with_free_batch(reference, example)
            torch.export.save(program, file, extra_files={EXTRA: json.dumps(about)})
    except OSError as error:
        raise FileError(f"{file.name} cannot be written ({error.strerror})") from error
    except Exception as error:  # the exporter and the user's code fail in many ways
        raise ModelError(f"torch cannot write this model as a program ({first_line(error)})") from error


def _opened(file: Path) -> list[nn.Module]:
    """The program as plain torch opens it, and as compressor does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = torch.export.load(file).module()
    return [plain, open_model(file, trust=True).module]


def _compared(file: Path, batch: Tensor, expected: list[Array]) -> tuple[float, float]:
    found = [largest_difference(expected, torch_outputs(opened, batch)) for opened in _opened(file)]
    return max(absolute for absolute, _ in found), max(relative for _, relative in found)
