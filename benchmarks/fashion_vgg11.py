"""A quarter-width VGG-11 on Fashion-MNIST, trained for four epochs and pruned by half its MACs, by two commands.

    python -m benchmarks.fashion_vgg11 --data DIR --out benchmarks/results/fashion_vgg11.json

DIR is a torchvision root with FashionMNIST/raw. The result is the report of the second run with both commands.
"""

import argparse
import json
from pathlib import Path

from benchmarks.typed import report_of

COMMANDS = (
    "compressor train --arch sample_models/vgg11.py:build:width=0.25 --data fashion-mnist:DIR --epochs 4 "
    "--out runs/vgg11",
    "compressor prune runs/vgg11/model.safetensors --method l1 --target-macs 0.5 --round-to 8 --data fashion-mnist:DIR "
    "--epochs 4 --out runs/half",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    report = report_of(COMMANDS, {"DIR": arguments.data})
    report["commands"] = list(COMMANDS)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
