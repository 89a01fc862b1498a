"""Small runs of every command that trains, as command lines, for whoever breaks them off."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "sample_models" / "digits_cnn.safetensors")
ARCH = f"{ROOT / 'sample_models' / 'digits_cnn.py'}:build"
_BARE = ("--no-latency", "--no-onnx", "--device", "cpu")

RUNS: dict[str, tuple[str, ...]] = {
    "train": ("train", "--arch", ARCH, "--arch-arg", "width=0.25", "--data", "digits", "--epochs", "3", *_BARE),
    "finetune": ("finetune", MODEL, "--data", "digits", "--epochs", "2", *_BARE),
    "prune": ("prune", MODEL, "--method", "l1", "--ratio", "0.5", "--data", "digits", "--epochs", "2", *_BARE),
    "adapnet": (
        "prune",
        MODEL,
        "--method",
        "adapnet",
        "--data",
        "digits",
        "--max-epochs",
        "3",
        "--finetune-epochs",
        "1",
        "--lsep",
        "8",
        "--batch-size",
        "64",
        *_BARE,
    ),
    "detach": ("detach", MODEL, "--data", "digits", "--epochs", "2", *_BARE),
    "route": ("route", MODEL, "--data", "digits", "--epochs", "2", *_BARE),
    "replace": (
        "replace",
        MODEL,
        "--data",
        "digits",
        "--epochs",
        "2",
        "--retrain-epochs",
        "1",
        "--fit",
        "stride",
        *_BARE,
    ),
}


def environment(folder: Path) -> dict[str, str]:
    """One thread, the repository's package, and a state folder of its own."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "XDG_STATE_HOME": str(folder / "state"),
    }
