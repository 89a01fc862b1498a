"""compressor's own checkpoint as data: what it says about a model, and how that is checked when it is read.

A dict of plain types and tensors. The network is kept as how to build it (`arch`), what was made of that (`steps`),
what surgery changed since (`structure`) and its `state`; where nobody can say how to build it, but all its layers are
torch's or torchvision's, the `module` itself is kept instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn

from compressor.errors import FileError
from compressor.loading.arch import FORM, Arch
from compressor.loading.plain import check_plain, shape_of, to_plain
from compressor.loading.programs import PROGRAM

FORMAT = "compressor"
VERSION = 1

_LONGEST_ARGUMENTS = 4000  # characters
_MOST_STEPS = 32  # transformations of one network after another

# What has to be plain; the weights and a whole module are looked at where they are used.
_PLAIN = ("arch", "steps", "structure", "input_shape", "classes", "mean", "std", "history", "measurements")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds; either `module`, or `arch`, `structure` and `state`."""

    arch: Arch | None
    steps: tuple[dict[str, Any], ...]  # what was made of the architecture, each with its kind; see loading.steps
    structure: dict[str, Any]  # sizes that were edited since
    state: dict[str, Tensor]
    module: nn.Module | None
    input_shape: tuple[int, ...] | None
    classes: tuple[str, ...] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    history: tuple[str, ...]
    measurements: dict[str, Any]


def is_checkpoint(held: Any) -> bool:
    """Whether what torch.save had written is one of ours."""
    return isinstance(held, Mapping) and held.get("format") == FORMAT


def to_dict(checkpoint: Checkpoint) -> dict[str, Any]:
    """The dict that is written."""
    arch = checkpoint.arch
    held: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    for field in fields(checkpoint):
        value = getattr(checkpoint, field.name)
        held[field.name] = value if field.name in ("state", "module", "arch") else to_plain(value, field.name)
    if arch is not None:
        held["arch"] = {"name": arch.name, "arguments": dict(arch.arguments), "sha256": arch.sha256}
    return held


def from_dict(held: Mapping[str, Any], where: str) -> Checkpoint:
    """Read the dict again; raises FileError where a field is missing or of another kind, or the version is newer."""
    version = held.get("version")
    if type(version) is not int or not 0 < version <= VERSION:
        of = f"version {version}" if type(version) is int and abs(version) < 1000 else "another version"
        raise FileError(f"{where} is a checkpoint of {of}, this compressor reads {VERSION}: upgrade it")
    try:
        for name in _PLAIN:
            check_plain(held.get(name), name)
        checkpoint = Checkpoint(
            arch=_arch(held["arch"]),
            steps=tuple(dict(each) for each in held.get("steps", ())),
            structure=dict(held["structure"]),
            state=dict(held["state"]),
            module=held["module"],
            input_shape=shape_of(held["input_shape"]),
            classes=_texts(held["classes"], "classes"),
            mean=_numbers(held["mean"], "mean"),
            std=_numbers(held["std"], "std"),
            history=_texts(held["history"], "history") or (),
            measurements=dict(held["measurements"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"{where} is a damaged checkpoint ({type(error).__name__}: {error})") from error
    whole = isinstance(checkpoint.module, nn.Module)
    weights = all(isinstance(key, str) and isinstance(each, Tensor) for key, each in checkpoint.state.items())
    if whole == (checkpoint.arch is not None) or not weights:
        raise FileError(f"{where} is a damaged checkpoint (it has neither a module nor a network's weights)")
    if len(checkpoint.steps) > _MOST_STEPS:
        raise FileError(f"{where} is a damaged checkpoint (it was transformed {len(checkpoint.steps)} times)")
    return checkpoint


def _arch(held: Any) -> Arch | None:
    if held is None:
        return None
    name, arguments, sha256 = held["name"], held["arguments"], held["sha256"]
    if not isinstance(name, str) or not (name == PROGRAM or FORM.fullmatch(name)) or not isinstance(sha256, str | None):
        raise ValueError("its architecture has no name of a known form")
    if not isinstance(arguments, dict) or not all(isinstance(key, str) and key.isidentifier() for key in arguments):
        raise ValueError("the arguments of its architecture are none")
    if name != PROGRAM and len(str(arguments)) > _LONGEST_ARGUMENTS:
        raise ValueError("the arguments of its architecture are longer than anyone would write")
    return Arch(name, arguments, sha256)


def _texts(value: Any, name: str) -> tuple[str, ...] | None:
    if value is not None and not (isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value)):
        raise ValueError(f"its {name} are no texts")
    return None if value is None else tuple(value)


def _numbers(value: Any, name: str) -> tuple[float, ...] | None:
    if value is None:
        return None
    numbers = tuple(float(each) for each in value)
    if not all(math.isfinite(each) for each in numbers):
        raise ValueError(f"its {name} is not finite")
    return numbers
