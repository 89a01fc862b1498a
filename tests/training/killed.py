"""Kills a small training run again and again, resumes it each time, and says whether it ends where it should.

Run by test_resume.py in a process of its own: it forks, so that torch is imported only once.
"""

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from compressor.training.checkpoint import Saving
from compressor.training.loop import fit
from tests.training.small import small_data, small_net, weights
from tests.training.test_resume import SETTINGS

LONG = replace(SETTINGS, epochs=8)


def die_at_rename(number: int) -> None:
    """Die before the n-th rename of a checkpoint file."""
    original, count = Path.replace, [0]

    def replace_or_die(self: Path, target: Path) -> Path:
        count[0] += 1
        if count[0] == number:
            signal.raise_signal(signal.SIGKILL)
        return original(self, target)

    Path.replace = replace_or_die


def unhurried(state: object) -> None:
    """Rest after every step, so that on a fast machine, too, the run outlasts all who would kill it."""
    time.sleep(0.05)


def attempt(folder: Path, seconds: float, rename: int) -> bool:
    """Resume in a child that is killed after some seconds, or before a rename; whether it was killed."""
    child = os.fork()
    if child == 0:
        if rename:
            die_at_rename(rename)
        saving = Saving(folder, resume=True, every_seconds=0)
        fit(small_net(seed=5), small_data(), LONG, saving=saving, after_step=unhurried)
        os._exit(0)
    if not rename:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def main(folder: Path) -> None:
    """Print how often the run was killed and whether its weights are those of a run left alone."""
    draw, kills = random.Random(0), 0
    alone = small_net(seed=5)
    fit(alone, small_data(), LONG)
    for rename in (1, 0, 2, 0, 3, 0, 4, 0, 9, 0):
        kills += attempt(folder, draw.uniform(0.05, 0.15), rename)
    resumed = small_net(seed=6)
    fit(resumed, small_data(), LONG, saving=Saving(folder, resume=True))
    first, second = weights(alone), weights(resumed)
    print(json.dumps({"kills": kills, "equal": all(torch.equal(first[name], second[name]) for name in first)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
