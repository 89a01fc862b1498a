"""What watching a certificate on a device costs, and how soon it speaks: the digits sample, routed with a promise.

    python -m benchmarks.watch --out benchmarks/results/watch.json        # two minutes

The package's `run.py` classifies the test images one by one, on one thread; beside it the network alone, the counting
alone and the comparing alone, in turn, medians of their CPU time. Then images of the test set, as they are and with
noise, are drawn until the watch speaks.
"""

import argparse
import importlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import compressor
from compressor.exporting.run import Network, fed, manifest
from compressor.exporting.watch import OVERHEAD, Watch, Watched
from compressor.files.paths import write_json
from compressor.report.environment import device_words, versions
from compressor.report.manifest import Array
from compressor.training.data import open_data

DIGITS = Path(__file__).parents[1] / "sample_models" / "digits_cnn.safetensors"
_SHORT = 100  # passes together of what takes a microsecond
NOISE, MOST = (0.0, 0.5, 1.0), 2000  # of the images' deviation; images that are compared before a stream is given up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "watch.json")
    arguments = parser.parse_args()
    data = open_data("digits")
    with tempfile.TemporaryDirectory() as folder:
        routed, package = Path(folder) / "routed", Path(folder) / "package"
        given: dict[str, Any] = {"data": "digits", "max_drop": 0.05, "epochs": 10, "latency": False, "device": "cpu"}
        compressor.route(DIGITS, out=routed, **given)
        compressor.export(routed / "model.safetensors", data="digits", to="onnx", out=package, latency=False)
        about = manifest(package)
        network, images = Network(package, threads=1, about=about), data.examples(data.test, len(data.test)).numpy()
        facts = {**about["watch"], **{name: fed(about["watch"][name]) for name in ("feeds", "deepest")}}
        result = {
            "benchmark": "watch",
            "facts": about["watch"],
            "macs": {"mean": about["routing"]["mean_macs"], "deepest": about["exits"][-1]["macs"]},
            "cost": cost(package, images, arguments.rounds),
            "streams": [spoken(network, images, facts, noise, arguments.streams) for noise in NOISE],
            "machine": device_words(torch.device("cpu")),
            "versions": {**versions(), "onnxruntime": about["made_with"].get("onnxruntime", "")},
        }
    write_json(arguments.out, result)
    print(words(result), file=sys.stderr)


def cost(package: Path, images: Array, rounds: int) -> dict[str, Any]:
    """CPU microseconds for one image: of `run.py` from a file, of the network alone, and what the watch adds.

    A pass with the watch beside one without differs by less than the machine's noise. So the counting is timed apart,
    on a network that does nothing, with a comparison's own calls apart from it.
    """
    sys.path.insert(0, str(package))
    run = importlib.import_module("run")
    held = run.Network(package, threads=1)  # several would spin while they wait
    run.network = lambda: held
    draw, paths = np.random.default_rng(0), []
    for number, image in enumerate(images):
        paths.append(str(package.parent / f"{number}.npy"))
        shape = (*image.shape[1:], image.shape[0])
        np.save(paths[-1], draw.integers(0, 256, shape, np.uint8))
    watched, feeds = run.watched(), run.asked(run.network().about, None)
    batches = [{"input": images[number : number + 1], **feeds} for number in range(len(images))]
    answers = held(batches[0])
    counting = Watched(lambda _: answers, len(held.about["exits"]), None)
    passes: dict[str, Callable[[], object]] = {
        "file": lambda: [run.classify(path) for path in paths],
        "network": lambda: [held(batch) for batch in batches],
        "nothing": lambda: [counting.network(batch) for _ in range(_SHORT) for batch in batches],
        "counting": lambda: [counting(batch) for _ in range(_SHORT) for batch in batches],
        "comparing": lambda: [watched._compare(batch, answers[0], [-1]) for batch in batches],
    }
    times: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds):
        for name, once in passes.items():
            start = time.process_time()
            once()
            calls = len(images) * (_SHORT if name in ("nothing", "counting") else 1)
            times[name].append(1e6 * (time.process_time() - start) / calls)
    found: dict[str, Any] = {name: statistics.median(held) for name, held in times.items()}
    share = watched.facts["share"]
    found["added"] = found["counting"] - found["nothing"] + share * found["comparing"]
    return {**found, "share": share, "passed": len(images), "rounds": rounds}


def spoken(network: Network, images: Array, facts: dict[str, Any], noise: float, streams: int) -> dict[str, Any]:
    """In how many streams of such images the watch spoke, and after how many images."""
    random = np.random.default_rng(0)
    x = images + noise * images.std() * random.standard_normal(images.shape).astype(np.float32)
    answers = [network({"input": x, **facts[name]})[0].argmax(1) for name in ("feeds", "deepest")]
    differs, after = answers[0] != answers[1], []
    for _ in range(streams):
        watch = Watch(facts["limit"], facts["level"])
        for number in random.integers(len(x), size=MOST):
            watch.add(bool(differs[number]))
            if watch.exceeded:
                after.append(watch.seen)
                break
    middle = statistics.median(after) if after else None
    return {"noise": noise, "differ": float(differs.mean()), "streams": streams, "spoke": len(after), "after": middle}


def words(result: dict[str, Any]) -> str:
    """The figures as sentences."""
    cost, facts = result["cost"], result["facts"]
    lines = [
        f"One image of {1 / facts['share']:,.0f} is compared, which costs {100 * OVERHEAD:g} % of the multiply-adds. "
        f"An image takes {cost['network']:,.0f} microseconds of the CPU in the network and {cost['file']:,.0f} from a "
        f"file; counting and comparing add {cost['added']:.1f} ({cost['added'] / cost['network']:.1%} and "
        f"{cost['added'] / cost['file']:.1%}); medians of {cost['rounds']} passes over {cost['passed']} images."
    ]
    for each in result["streams"]:
        when = "" if each["after"] is None else f", after {each['after'] / facts['share']:,.0f} images in the median"
        lines.append(
            f"Noise of {each['noise']:g} deviations ({each['differ']:.1%} of the answers differ, at most "
            f"{facts['limit']:.1%} expected): it spoke in {each['spoke']} of {each['streams']} streams{when}."
        )
    return " ".join((*lines, f"{result['machine']}, torch {result['versions']['torch']}."))


if __name__ == "__main__":
    main()
