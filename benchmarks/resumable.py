"""Result files that are written row by row, and gone on with where they were broken off."""

import json
import sys
from pathlib import Path
from typing import Any

import torch_pruning

from compressor.report.environment import device_words, versions
from compressor.training.numerics import choose_device


def opened(out: Path, told: dict[str, Any], device: str, threads: int) -> dict[str, Any]:
    """The result as it stands, or a new one without rows: the settings `told`, the machine and the versions.

    Ends the program where the file was measured with other settings.
    """
    if out.exists():
        result: dict[str, Any] = json.loads(out.read_text())
        changed = [key for key, value in told.items() if result[key] != value]
        if changed:
            sys.exit(f"{out} was measured with other settings ({', '.join(changed)}): give another --out")
        return result
    out.parent.mkdir(parents=True, exist_ok=True)
    machine = {"machine": device_words(choose_device(device)), "versions": versions()}
    return told | machine | {"torch_pruning": torch_pruning.__version__, "threads": threads, "rows": []}
