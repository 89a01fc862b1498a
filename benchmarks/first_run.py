"""Run the first command of README.md as it stands there, and keep its report: `benchmarks/results/first.json`.

    python -m benchmarks.first_run --nets DIR --data DIR

DIR: the folder of the published ResNet-56, and CIFAR-10 in folders. `benchmarks/stranger_resnet.py` takes the place of
the stranger's `resnet.py`: the same network with the same names of parameters.
"""

import argparse
import re
import shlex
import time
from pathlib import Path

from benchmarks.typed import report_of
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
    typed, begun = command(), time.perf_counter()
    model = shlex.split(typed)[2]
    places = {
        model: arguments.nets / model,
        "DIR": arguments.data,
        "resnet.py": ROOT / "benchmarks" / "stranger_resnet.py",
    }
    report = report_of([typed], places)
    write_json(arguments.out, {**report, "typed": typed, "seconds": round(time.perf_counter() - begun)})


if __name__ == "__main__":
    main()
