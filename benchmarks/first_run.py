"""Run the first command of README.md as it stands there, and keep its report: `benchmarks/results/first.json`.

    python -m benchmarks.first_run --nets DIR --data DIR

DIR: the folder of the published ResNet-56, and CIFAR-10 in folders.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from compressor.files.paths import write_json

ROOT = Path(__file__).parents[1]
OUT = ROOT / "benchmarks" / "results" / "first.json"


def command() -> str:
    """What README.md says to type first, in one line."""
    text = (ROOT / "README.md").read_text()
    found = re.search(r"^    (compressor prune (?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert found is not None
    return re.sub(r"\s*\\\n\s*", " ", found.group(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    shown = shlex.split(command())[1:]
    with tempfile.TemporaryDirectory() as runs:
        out = Path(runs) / "run"
        own = {
            shown[1]: str(arguments.nets.resolve() / shown[1]),
            "folder:DIR": f"folder:{arguments.data.resolve()}",
            shown[shown.index("--out") + 1]: str(out),
        }
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "compressor", *(own.get(word, word) for word in shown)], check=True)
        seconds = time.perf_counter() - begun
        text = (out / "report.json").read_text()
    for name, place in own.items():
        text = text.replace(place, name)
    write_json(arguments.out, {**json.loads(text), "typed": command(), "seconds": round(seconds)})


if __name__ == "__main__":
    main()
