"""Small runs of every command that trains, as command lines, for whoever breaks them off; and processes for that."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_WORDS = {
    "MODEL": str(ROOT / "sample_models" / "digits_cnn.safetensors"),
    "ARCH": f"{ROOT / 'sample_models' / 'digits_cnn.py'}:build",
}
MODEL, ARCH = _WORDS["MODEL"], _WORDS["ARCH"]
_RUNS = {
    "train": "train --arch ARCH --arch-arg width=0.25 --epochs 3",
    "finetune": "finetune MODEL --epochs 2",
    "prune": "prune --arch ARCH --arch-arg width=0.25 --method l1 --ratio 0.5 --epochs 2",
    "adapnet": "prune MODEL --method adapnet --max-epochs 3 --finetune-epochs 1 --lsep 8 --batch-size 64",
    "detach": "detach MODEL --epochs 2",
    "route": "route MODEL --epochs 2",
    "replace": "replace MODEL --epochs 2 --retrain-epochs 1 --fit stride",
}
RUNS: dict[str, tuple[str, ...]] = {
    name: tuple(_WORDS.get(word, word) for word in f"{words} --data digits --no-latency --no-onnx --device cpu".split())
    for name, words in _RUNS.items()
}


def environment(folder: Path) -> dict[str, str]:
    """One thread, the repository's package, and a state folder of its own."""
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder / "state")}
    return {**os.environ, **own}


def told_by(module: str, folder: Path, *words: str) -> dict[str, Any]:
    """The JSON that a module of these tests prints, in a process of its own: it forks."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"tests.faults.{module}", str(folder), *words],
        capture_output=True, text=True, timeout=1200, env=environment(folder), cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found
