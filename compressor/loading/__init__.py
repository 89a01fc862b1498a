"""Open a model safely, whatever file it comes in, and write compressor's own checkpoint.

The names are imported when first used: telling what a file is must not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressor.loading.arch import Arch, data_arguments, parse_arch
    from compressor.loading.opening import OpenedModel, load, open_model
    from compressor.loading.saving import save, save_model, transformed

_HOMES = {
    "arch": ("Arch", "data_arguments", "parse_arch"),
    "opening": ("OpenedModel", "load", "open_model"),
    "saving": ("save", "save_model", "transformed"),
}

__all__ = [
    "Arch",
    "OpenedModel",
    "data_arguments",
    "load",
    "open_model",
    "parse_arch",
    "save",
    "save_model",
    "transformed",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"compressor.loading.{home}"), name)
    raise AttributeError(f"module 'compressor.loading' has no attribute {name!r}")
