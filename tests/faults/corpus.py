"""The whole corpus of hostile and broken model files: `python -m tests.faults.corpus FOLDER` writes it."""

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.faults.hostile_archives import ARCHIVES
from tests.faults.hostile_bombs import BOMBS
from tests.faults.hostile_checkpoints import CHECKPOINTS, MUTATIONS, STATES
from tests.faults.hostile_headers import HEADERS
from tests.faults.hostile_onnx import ONNX
from tests.faults.hostile_pickles import FIRES, Make

PROFILE = ("profile", "FILE", "--input", "1x8x8")


@dataclass(frozen=True)
class Case:
    """One file, and the command that is to refuse it."""

    name: str
    file: str
    make: Make
    command: tuple[str, ...] = PROFILE


def _state(held: Any) -> Make:
    return lambda path, canary: torch.save(held, path)


_FAMILIES: dict[str, tuple[str, dict[str, Make]]] = {
    "fires": ("pt", FIRES),
    "bomb": ("pt", BOMBS),
    "archive": ("pt", ARCHIVES),
    "header": ("safetensors", HEADERS),
    "checkpoint": ("safetensors", CHECKPOINTS),
    "mutation": ("safetensors", MUTATIONS),
    "onnx": ("onnx", ONNX),
}

CASES: dict[str, Case] = {
    f"{family}-{name}": Case(f"{family}-{name}", f"{family}-{name}.{ending}", make)
    for family, (ending, makes) in _FAMILIES.items()
    for name, make in makes.items()
}
CASES |= {
    f"state-{name}": Case(
        f"state-{name}", f"state-{name}.pt", _state(held), ("profile", "FILE", "--arch", "torchvision:resnet18")
    )
    for name, held in STATES.items()
}


def write(folder: Path, canaries: Path) -> None:
    """Make every file of the corpus."""
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's remark on a name that is there twice is the point
        for case in CASES.values():
            case.make(folder / case.file, canaries / case.name)


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[1]) / "canaries")
    print(f"{len(CASES)} files in {sys.argv[1]}")
