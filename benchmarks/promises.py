"""Promises held against real images: a stranger's ResNet-20, cut to several sizes, on test images split 200 times.

    python -m benchmarks.promises --nets DIR --data folder:DIR

The networks are cut by block OBS and refitted by least squares on unlabelled training images, without training. Then,
200 times, so many of the test images are drawn to promise on, and all others show whether it was kept: the cheapest
network that is certified, and beside it the cheapest whose drop on the same images is within X, as is usual. The same
of 1,000 drawn data sets, on which a network exits early at 100 thresholds: there what is true is known.
Writes benchmarks/results/promises.json and goes on where it was broken off.
"""

import argparse
import copy
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import compressor
from benchmarks.real import NETWORKS
from benchmarks.resumable import opened
from compressor.certify import Paired, certified
from compressor.files.paths import write_json
from compressor.training.data import open_data
from compressor.training.evaluate import which_right
from tests.test_certify import MACS, draw, simulated

OUT = Path(__file__).parent / "results" / "promises.json"
LEFT = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5)
IMAGES, DROPS, SPLITS = (500, 2000, 6000), (0.005, 0.01, 0.02), 200
DRAWN, DRAWS = (0.002, 0.01, 0.02), 1000
ORDERED = 300  # draws


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--left", nargs="+", type=float, default=list(LEFT))
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    arguments.device = "cpu"
    settings = {"network": arguments.network, "left": arguments.left, "resplits": SPLITS}
    result = opened(arguments.out, settings, "cpu", torch.get_num_threads())
    network = NETWORKS[arguments.network]
    data = open_data(arguments.data, network.loading)
    dense = network.open(arguments, data).eval()
    done = {row["left"] for row in result["rows"]}
    for left in (1.0, *arguments.left):
        if left in done:
            continue
        small, example = copy.deepcopy(dense), torch.zeros(1, 3, 32, 32)
        macs = compressor.profile(small, example).macs
        if left < 1:
            few = data.drawn(data.train, 512, 0, torch.device("cpu"))
            macs = compressor.prune_(small, example, target_macs=left, data=[x for x, _ in few]).after.macs
        right = which_right(small, data.test, data).numpy()
        row = {"left": left, "macs": macs, "top1": float(right.mean()), "right": np.packbits(right).tobytes().hex()}
        result["rows"].append(row)
        write_json(arguments.out, result)
        print(json.dumps({key: row[key] for key in ("left", "macs", "top1")}), file=sys.stderr, flush=True)
    result["splits"] = splits(result["rows"], len(data.test))
    result["draws"] = [drawn(images, drop) for images in IMAGES for drop in DRAWN]
    result["orders"] = [row for drop in DRAWN[:2] for row in ordered(2000, drop)]
    write_json(arguments.out, result)
    print(table(result))


def splits(rows: list[dict[str, object]], count: int) -> list[dict[str, object]]:
    """How often a promise is broken on the images that were not drawn, and what it costs."""
    order = sorted(rows, key=lambda row: -row["macs"])  # type: ignore[operator]
    held = [_unpacked(str(row["right"]), count) for row in order]
    share = [row["macs"] / order[0]["macs"] for row in order]  # type: ignore[operator]
    found = []
    for images in IMAGES:
        for drop in DROPS:
            broken, cost = {"promised": 0, "usual": 0}, {"promised": 0.0, "usual": 0.0}
            for seed in range(SPLITS):
                chosen = np.random.default_rng([seed, images]).permutation(count)
                here, fresh = chosen[:images], chosen[images:]
                pairs = [Paired.of(held[0][here], each[here]) for each in held[1:]]
                usual = max((at for at, pair in enumerate(pairs, 1) if pair.drop <= drop), default=0)
                for way, at in (("promised", certified(pairs, drop)), ("usual", usual)):
                    broken[way] += Paired.of(held[0][fresh], held[at][fresh]).drop > drop
                    cost[way] += share[at] / SPLITS
            found.append({"images": images, "drop": drop, "broken": broken, "macs": cost, "splits": SPLITS})
    return found


def drawn(images: int, drop: float) -> dict[str, float]:
    """How often a promise is broken of 1,000 draws, and what it costs beside the usual choice, as shares."""
    names = "broken", "broken as usual", "dearer", "dearer where the spread is known"
    found = simulated(images, drop, DRAWS)
    return {"images": images, "drop": drop, "draws": DRAWS, **dict(zip(names, map(float, found), strict=True))}


ORDERS: dict[str, Callable[[list[Paired], float], range]] = {
    "from the safest, all of them": lambda apart, drop: range(len(apart)),
    "from the safest, every fifth": lambda apart, drop: range(4, len(apart), 5),
    "from the safest, every tenth": lambda apart, drop: range(9, len(apart), 10),
    "from the one that other images speak for most": lambda apart, drop: range(
        min(range(len(apart)), key=lambda at: _deviations(apart[at], drop)), len(apart)
    ),
}


def ordered(images: int, drop: float) -> list[dict[str, object]]:
    """What other orders of the candidates cost; other images, as many, may choose the first that is tested."""
    here, apart = np.random.default_rng(0), np.random.default_rng(1)
    dearer = dict.fromkeys(ORDERS, 0.0)
    for _ in range(ORDERED):
        found, other = draw(images, here), draw(images, apart)
        usual = max((at for at, pair in enumerate(found, 1) if pair.drop <= drop), default=0)
        for name, order in ORDERS.items():
            tested = order(other, drop)
            count = certified([found[at] for at in tested], drop)
            dearer[name] += float(MACS[tested[count - 1] + 1 if count else 0] - MACS[usual]) / ORDERED
    return [{"images": images, "drop": drop, "order": name, "dearer": each} for name, each in dearer.items()]


def _deviations(pair: Paired, drop: float) -> float:
    """By how many standard deviations less is lost than may be, as a negative number."""
    spread = math.sqrt(pair.images * (pair.lost + pair.won + 1) - (pair.lost - pair.won) ** 2) / pair.images
    return (pair.drop - drop) * math.sqrt(pair.images) / spread


def _unpacked(text: str, count: int) -> NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))[:count].astype(bool)


def table(result: dict[str, object]) -> str:
    """The result as Markdown."""
    found = result["splits"]
    assert isinstance(found, list)
    lines = [
        "| images | at most, points | broken: promised | broken: usual | MACs: promised | MACs: usual |",
        "|---|---|---|---|---|---|",
    ]
    for row in found:
        cells = [f"{row['images']:,}", f"{100 * row['drop']:g}"]
        cells += [f"{row['broken'][way] / row['splits']:.1%}" for way in ("promised", "usual")]
        cells += [f"{row['macs'][way]:.1%}" for way in ("promised", "usual")]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"Drawn data sets, {DRAWS:,} a row: MACs are points more than the usual choice takes; the last are those of a "
        "test that knew each candidate's spread, and no test takes fewer.",
        "",
        "| images | at most, points | broken: promised | broken: usual | MACs: promised | where the spread is known |",
        "|---|---|---|---|---|---|",
    ]
    draws = result["draws"]
    assert isinstance(draws, list)
    for row in draws:
        cells = [f"{row['images']:,}", f"{100 * row['drop']:g}"]
        cells += [f"{row[name]:.1%}" for name in ("broken", "broken as usual")]
        cells += [f"{100 * row[name]:+.1f}" for name in ("dearer", "dearer where the spread is known")]
        lines.append(f"| {' | '.join(cells)} |")
    orders = result["orders"]
    assert isinstance(orders, list)
    lines += ["", f"Other orders of the candidates, {ORDERED} draws, MACs in points as above:", ""]
    lines += ["| images | at most, points | tested | MACs |", "|---|---|---|---|"]
    for row in orders:
        cells = [f"{row['images']:,}", f"{100 * row['drop']:g}", row["order"], f"{100 * row['dearer']:+.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
