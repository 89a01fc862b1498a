"""Makes a CNN cheaper to run; the public functions, imported when first used so that `import compressor` is instant."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressor.api import detach as detach
    from compressor.api import evaluate as evaluate
    from compressor.api import export as export
    from compressor.api import finetune as finetune
    from compressor.api import inspect as inspect
    from compressor.api import prune as prune
    from compressor.api import replace_early as replace_early
    from compressor.api import route as route
    from compressor.api import sweep as sweep
    from compressor.api import train as train
    from compressor.errors import CompressorError as CompressorError
    from compressor.errors import DataError as DataError
    from compressor.errors import FileError as FileError
    from compressor.errors import ModelError as ModelError
    from compressor.errors import UsageError as UsageError
    from compressor.exporting.verify import verify_package as verify_package
    from compressor.pipeline.compare import compare as compare
    from compressor.pipeline.models import load as load
    from compressor.pipeline.models import save as save
    from compressor.pipeline.oneshot import prune_ as prune_
    from compressor.pipeline.resume import resume as resume
    from compressor.profiling.model_profile import profile as profile
    from compressor.reporting.report import Report as Report

_VERBS = (
    "detach", "evaluate", "export", "finetune", "inspect", "prune", "replace_early", "route", "sweep", "train",
)  # fmt: skip
# Public name -> the module that defines it.
_HOMES = {
    "CompressorError": "compressor.errors",
    "UsageError": "compressor.errors",
    "FileError": "compressor.errors",
    "ModelError": "compressor.errors",
    "DataError": "compressor.errors",
    "load": "compressor.pipeline.models",
    "save": "compressor.pipeline.models",
    "profile": "compressor.profiling.model_profile",
    "prune_": "compressor.pipeline.oneshot",
    "compare": "compressor.pipeline.compare",
    "resume": "compressor.pipeline.resume",
    "verify_package": "compressor.exporting.verify",
    "Report": "compressor.reporting.report",
    **dict.fromkeys(_VERBS, "compressor.api"),
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
