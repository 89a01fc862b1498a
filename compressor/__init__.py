"""Makes a CNN cheaper to run; the public functions, imported when first used so that `import compressor` is instant."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressor.errors import CompressorError as CompressorError
    from compressor.errors import DataError as DataError
    from compressor.errors import FileError as FileError
    from compressor.errors import ModelError as ModelError
    from compressor.errors import UsageError as UsageError
    from compressor.loading import load as load
    from compressor.loading import save as save
    from compressor.pipeline.oneshot import prune_ as prune_
    from compressor.profiling.model_profile import profile as profile

# Public name -> the module that defines it.
_HOMES = {
    "CompressorError": "compressor.errors",
    "UsageError": "compressor.errors",
    "FileError": "compressor.errors",
    "ModelError": "compressor.errors",
    "DataError": "compressor.errors",
    "load": "compressor.loading",
    "save": "compressor.loading",
    "profile": "compressor.profiling.model_profile",
    "prune_": "compressor.pipeline.oneshot",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("compressor")
    if name not in _HOMES:
        raise AttributeError(f"module 'compressor' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
