"""compressor's own checkpoint as data: what it says about a model, and how that is checked when it is read.

A dict of plain types and tensors. The network is kept as how to build it (`arch`), what was made of that (`steps`),
what surgery changed since (`structure`) and its `state`; where nobody can say how to build it, but all its layers are
torch's or torchvision's, the `module` itself is kept instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn

from compressor.errors import FileError
from compressor.loading.arch import Arch
from compressor.loading.plain import to_plain

FORMAT = "compressor"
VERSION = 1


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
    if not isinstance(version, int) or version > VERSION:
        raise FileError(f"{where} is a checkpoint of version {version}, this compressor reads {VERSION}: upgrade it")
    try:
        arch = held["arch"]
        checkpoint = Checkpoint(
            arch=None if arch is None else Arch(str(arch["name"]), dict(arch["arguments"]), _text(arch["sha256"])),
            steps=tuple(dict(each) for each in held.get("steps", ())),
            structure=dict(held["structure"]),
            state=dict(held["state"]),
            module=held["module"],
            input_shape=_tuple(held["input_shape"], int),
            classes=_tuple(held["classes"], str),
            mean=_tuple(held["mean"], float),
            std=_tuple(held["std"], float),
            history=_tuple(held["history"], str) or (),
            measurements=dict(held["measurements"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"{where} is a damaged checkpoint ({type(error).__name__}: {error})") from error
    whole = isinstance(checkpoint.module, nn.Module)
    weights = all(isinstance(each, Tensor) for each in checkpoint.state.values())
    if whole == (checkpoint.arch is not None) or not weights:
        raise FileError(f"{where} is a damaged checkpoint (it has neither a module nor a network's weights)")
    return checkpoint


def _tuple(value: Any, kind: type[Any]) -> tuple[Any, ...] | None:
    return None if value is None else tuple(kind(each) for each in value)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
