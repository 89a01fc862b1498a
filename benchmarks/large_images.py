"""Seconds and memory of `prune_` with data on large images: ResNet-50, 512 of 224 x 224 pixels, half of the MACs.

    python -m benchmarks.large_images [--images N] [--threads N]

Random weights and images, which set neither time nor memory. Wall clock holds on a machine with nothing else to do;
processor seconds, divided by the threads, are the least that it can be. Writes benchmarks/results/large_images.json.
"""

import argparse
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor import prune_
from compressor.files.paths import write_json
from compressor.report.environment import device_words, versions
from compressor.vision import door as vision

OUT = Path(__file__).parent / "results" / "large_images.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = vision.build(arguments.network).eval()

    def images() -> Iterator[Tensor]:
        for _ in range(arguments.images // 32):
            yield torch.randn(32, 3, 224, 224)

    wall, processor = time.perf_counter(), time.process_time()
    report = prune_(model, torch.zeros(1, 3, 224, 224), target_macs=0.5, data=images())
    assert report.before.macs and report.after.macs
    result = {
        "network": arguments.network,
        "images": arguments.images,
        "threads": arguments.threads,
        "macs_left": report.after.macs / report.before.macs,
        "wall_seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(time.process_time() - processor, 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "machine": device_words(torch.device("cpu")),
        "versions": versions(),
        "refit": next((note for note in report.notes if "refitted" in note), ""),
    }
    write_json(arguments.out, result)
    print(json.dumps(result, indent=1))


def words(result: dict[str, Any]) -> str:
    """Time and memory, in a sentence."""
    return (
        f"{result['network']} to {result['macs_left']:.0%} of its multiply-adds by `prune_` with {result['images']} "
        f"images of 224 x 224 pixels: {result['wall_seconds'] / 60:.1f} minutes, {result['cpu_seconds'] / 60:.1f} "
        f"of the processor, {result['peak_gib']:.1f} GiB at most. {result['machine']}, "
        f"torch {result['versions']['torch']}."
    )


if __name__ == "__main__":
    main()
