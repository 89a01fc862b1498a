"""Makes a CNN cheaper to run; the public functions, imported when first used so that `import compressor` is instant."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressor.errors import CompressorError as CompressorError
    from compressor.errors import DataError as DataError
    from compressor.errors import FileError as FileError
    from compressor.errors import ModelError as ModelError
    from compressor.errors import UsageError as UsageError
    from compressor.exporting.latency import profile as profile
    from compressor.exporting.verify import verify_package as verify_package
    from compressor.report.report import Report as Report
    from compressor.runs.compare import compare as compare
    from compressor.runs.models import load as load
    from compressor.runs.models import save as save
    from compressor.runs.oneshot import prune_ as prune_
    from compressor.runs.pruner import Pruner as Pruner
    from compressor.runs.resume import resume as resume
    from compressor.runs.verbs import detach as detach
    from compressor.runs.verbs import evaluate as evaluate
    from compressor.runs.verbs import export as export
    from compressor.runs.verbs import finetune as finetune
    from compressor.runs.verbs import inspect as inspect
    from compressor.runs.verbs import prune as prune
    from compressor.runs.verbs import replace_early as replace_early
    from compressor.runs.verbs import route as route
    from compressor.runs.verbs import shrink as shrink
    from compressor.runs.verbs import sweep as sweep
    from compressor.runs.verbs import train as train

_VERBS = (
    "detach", "evaluate", "export", "finetune", "inspect", "prune", "replace_early", "route", "shrink", "sweep",
    "train",
)  # fmt: skip
# Public name -> the module that defines it.
_HOMES = {
    "CompressorError": "compressor.errors",
    "UsageError": "compressor.errors",
    "FileError": "compressor.errors",
    "ModelError": "compressor.errors",
    "DataError": "compressor.errors",
    "load": "compressor.runs.models",
    "save": "compressor.runs.models",
    "profile": "compressor.exporting.latency",
    "prune_": "compressor.runs.oneshot",
    "Pruner": "compressor.runs.pruner",
    "compare": "compressor.runs.compare",
    "resume": "compressor.runs.resume",
    "verify_package": "compressor.exporting.verify",
    "Report": "compressor.report.report",
    **dict.fromkeys(_VERBS, "compressor.runs.verbs"),
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("compressor.report.environment").VERSION
    if name not in _HOMES:
        raise AttributeError(f"module 'compressor' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
