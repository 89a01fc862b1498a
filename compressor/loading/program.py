"""Open exported programs (.pt2) and TorchScript, which run code of their own: on the user's word only."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from compressor.errors import FileError, first_line
from compressor.graph.program import trainable
from compressor.loading.content import Content
from compressor.vision.preparation import Preparation

EXTRA = "compressor.json"  # our own file in the archive: classes, normalisation, history


def open_program(path: Path, content: Content, trust: bool) -> tuple[nn.Module, dict[str, Any]]:
    """The network that a program is, and what is known about it, by the fields of OpenedModel.

    A checkpoint cannot be saved of it without an architecture. Raises FileError without `trust`, since torch runs what
    the file holds.
    """
    if not trust:
        raise FileError(
            f"{path} holds code ({content.value}), and opening one runs what it holds: give --trust if you know who "
            "made it, or a state dict with --arch"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's about torch's own internals
            if content is Content.SCRIPT:
                return torch.jit.load(path, map_location="cpu"), {}
            extra = {EXTRA: ""}
            program = torch.export.load(path, extra_files=extra)
            return trainable(program), _about(program, json.loads(extra[EXTRA] or "{}"))
    except Exception as error:
        raise FileError(f"{path} cannot be opened ({type(error).__name__}: {first_line(error)})") from error


def _about(program: ExportedProgram, told: dict[str, Any]) -> dict[str, Any]:
    """What export wrote beside the program; of another's program the size of its images, where it is fixed."""
    shape = next(
        node.meta["val"].shape for node in program.graph.nodes if node.name in program.graph_signature.user_inputs
    )
    fixed = tuple(shape[1:]) if all(isinstance(size, int) for size in shape[1:]) else None
    fields = {key: told.get(key) for key in ("input_shape", "classes", "history")}
    found: dict[str, Any] = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
    if isinstance(told.get("preparation"), dict):
        found["preparation"] = Preparation.from_json(told["preparation"])
    return {"input_shape": fixed, **found}
