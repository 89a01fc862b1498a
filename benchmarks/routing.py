"""Layer-skip routing: the paper's three networks on MNIST, and routing against its peers on Fashion-MNIST.

    python -m benchmarks.routing --scale cpu --mnist mnist:DIR --fashion fashion-mnist:DIR
    python -m benchmarks.routing --scale full --seeds 0 1 2 --mnist mnist:DIR --fashion fashion-mnist:DIR

`cpu` takes about 30 minutes of one core and 12,000 training images; `full` has full widths and budgets, for a GPU.
Each part may be left out by leaving its data out. Writes benchmarks/results/routing-SCALE.json, adding to what stands
there.

On Fashion-MNIST a network is trained, then from these weights once as it is (the unrouted network) and once with ways
out, for the same epochs. The router, early exit by confidence (BranchyNet's rule) and each fixed depth then stand on
the same network and weights. Thresholds are chosen on validation images, all figures are of the test set.
"""

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressor.exporting.onnx import export_onnx
from compressor.exporting.runtime import OnnxModel
from compressor.profiling.latency import time_images
from compressor.report.environment import device_words, versions
from compressor.routing.curve import (
    Costs,
    Point,
    choose,
    costs,
    early_exit_at,
    early_exit_points,
    fixed_points,
    point_at,
    routed_points,
)
from compressor.routing.network import Routed, make_routed, survey
from compressor.routing.observing import Observation, observe
from compressor.routing.phases import Taught, Teacher, top1_at_labels
from compressor.routing.settings import PAPER_TRAINING, RouteSettings, every_unit, paper
from compressor.training.data import Data, open_data
from compressor.training.evaluate import evaluate
from compressor.training.events import EpochEvent, Event
from compressor.training.loop import fit
from compressor.training.numerics import choose_device
from compressor.training.settings import DataSettings, TrainSettings
from sample_models import cnn3, resnet_cifar

RESULTS = Path(__file__).parent / "results"
# Section 4 of the paper: fractions, on MNIST.
PAPER = {"cnn1_top1": 0.98, "router_top1": 0.62, "cnn3_top1": 1.0}
GRID = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # shares of the whole network's MACs at which curves are read
MAX_DROP = 0.002  # validation accuracy that a chosen threshold may lose


@dataclass(frozen=True)
class Scale:
    """A budget."""

    cnn3_width: float
    resnet_width: float
    depth: int  # of the ResNet
    images: int | None  # of each training set; None: all
    test_images: int | None  # of each test set, and at most so many validation images; None: all
    cnn1_epochs: int  # of the paper's first network
    skip_epochs: int  # of its third, on all images by the paper's labels
    epochs: int  # of each network on Fashion-MNIST before it gets ways out
    more_epochs: int  # after that, with and without them
    image_router_epochs: int
    timed_images: int


SCALES = {
    "smoke": Scale(0.125, 0.125, 8, 300, 75, 1, 1, 1, 1, 1, 4),
    "cpu": Scale(1.0, 0.5, 14, 12_000, None, 2, 2, 3, 3, 5, 200),
    "full": Scale(1.0, 1.0, 20, None, None, 20, 20, 30, 30, 30, 1000),
}
# Without batch norm, the three convolutions do not bear sgd's rate.
OPTIMIZERS = {
    "cnn3": TrainSettings(optimizer="adam", lr=1e-3, weight_decay=0.0, augment="none"),
    "resnet": TrainSettings(lr=0.05),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--mnist", metavar="SPEC", help="mnist:DIR")
    parser.add_argument("--fashion", metavar="SPEC", help="fashion-mnist:DIR")
    parser.add_argument("--networks", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    out = arguments.out or RESULTS / f"routing-{arguments.scale}.json"
    scale = SCALES[arguments.scale]
    about: dict[str, Any] = {
        "benchmark": "routing",
        "scale": arguments.scale,
        "budget": asdict(scale),
        "machine": device_words(choose_device(arguments.device)),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "paper": PAPER,
    }
    for seed in arguments.seeds:
        work: list[tuple[str, Callable[[], dict[str, Any]]]] = []
        if arguments.mnist:
            work.append(("mnist, the paper's", lambda s=seed: papers(arguments.mnist, scale, s, arguments.device)))
        for kind in arguments.networks if arguments.fashion else ():
            run = lambda k=kind, s=seed: fashion(arguments.fashion, k, scale, s, arguments.device)  # noqa: E731
            work.append((f"fashion-mnist, {kind}", run))
        for name, measure in work:
            start = time.perf_counter()
            row = {"name": name, "seed": seed, **measure(), "seconds": time.perf_counter() - start}
            _add(out, about, row)
    print(table(json.loads(out.read_text())))
    print(f"\n{out}")


def _add(out: Path, about: dict[str, Any], row: dict[str, Any]) -> None:
    """Put a row into the file as it stands now, in place of the one of the same name and seed."""
    rows = json.loads(out.read_text())["rows"] if out.exists() else []
    rows = [each for each in rows if (each["name"], each["seed"]) != (row["name"], row["seed"])]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**about, "rows": [*rows, row]}, indent=1) + "\n")


def papers(spec: str, scale: Scale, seed: int, device: str) -> dict[str, Any]:
    """The paper's setting: CNN 1, labels by its activations, CNN 2 the router, CNN 3 with layers skipped."""
    data = _data(spec, scale, seed)
    first = _trained(cnn3.build(width=scale.cnn3_width), data, _paper_training(scale.cnn1_epochs, seed, device))
    row: dict[str, Any] = {"cnn1_top1": evaluate(first, data.test, data).top1}
    settings = every_unit(paper({}), 3)
    letter = replace(settings, skip_set="paper", init="scratch")
    # Keras's batches of 32: a few hundred images make too few steps of larger ones.
    training = replace(_paper_training(20, seed, device), batch_size=32)
    taught, routed, labelled = _skipping(first, data, letter, training)
    row["letter"] = {
        "labels": list(taught.labels.counts),
        "router_top1": taught.router_top1,
        "router_majority": taught.router_majority,
        "cnn3_top1_on_selected": taught.labelled_top1,
        "cnn1_top1_on_selected": labelled,
        **_whole_test(routed, data),
    }
    everything = replace(settings, skip_set="train", init="copy")
    taught, routed, _ = _skipping(first, data, everything, _paper_training(scale.skip_epochs, seed, device))
    row["all_images"] = {"cnn3_top1_on_selected": taught.labelled_top1, **_whole_test(routed, data)}
    return row


def fashion(spec: str, kind: str, scale: Scale, seed: int, device: str) -> dict[str, Any]:
    """One network on Fashion-MNIST: unrouted, routed, left early by confidence, at fixed depths."""
    data = _data(spec, scale, seed)
    settings = replace(OPTIMIZERS[kind], seed=seed, device=device)
    torch.manual_seed(seed)
    start = cnn3.build(width=scale.cnn3_width) if kind == "cnn3" else _resnet(scale)
    start = _trained(start, data, replace(settings, epochs=scale.epochs))
    gentle = replace(settings, epochs=scale.more_epochs, lr=(settings.lr or 0.05) / 2, first_epoch=scale.epochs)
    whole = _trained(copy.deepcopy(start), data, gentle)
    routed, taught = _routed(copy.deepcopy(start), data, RouteSettings(), gentle)
    counted = costs(routed)
    seen, test = observe(routed, taught.calibration, data), observe(routed, data.test, data)
    gate = choose(routed_points(seen, counted), counted, target_macs=None, max_drop=MAX_DROP)
    peer = choose(early_exit_points(seen, counted), counted, target_macs=None, max_drop=MAX_DROP)
    routed.set_threshold_(gate.setting)
    unrouted = evaluate(whole, data.test, data).top1
    at = point_at(test, counted, gate.setting)
    row = {
        "labels": list(taught.labels.counts),
        "notes": taught.notes,
        "units": list(routed.unit_names),
        "leave_after": list(routed.layout.leave_after),
        "costs": asdict(counted),
        "unrouted": {"macs": counted.whole, "top1": unrouted, "top1_before_more_epochs": _top1(start, data)},
        "router": asdict(at),
        "early_exit": asdict(early_exit_at(test, counted, peer.setting)),
        "fixed": [asdict(point) for point in fixed_points(test, counted)],
        "curves": _curves(test, counted),
        "image_router": _image_router(routed, start, data, scale, gentle),
        "goal": {"macs_saved": 1 - at.macs / counted.whole, "points_lost": 100 * (unrouted - at.top1)},
    }
    return {**row, "latency_ms": _latency(whole, routed, gate, data, scale.timed_images)}


def _skipping(
    first: nn.Module, data: Data, settings: RouteSettings, training: TrainSettings
) -> tuple[Taught, Routed, float]:
    """Teach a copy of CNN 1 by labels; also CNN 1's own accuracy on the training images that the labels chose."""
    from compressor.routing.observing import activations, paper_labels

    network = copy.deepcopy(first)
    chain, found = survey(network, data.input_shape)
    routed = make_routed(chain, found.units, settings)
    chosen, _ = paper_labels(activations(routed, data.train, data))
    selected = data.train.take(chosen)
    deepest = torch.full((len(selected),), routed.depths - 1)
    labelled = top1_at_labels(routed, selected, deepest, data)
    return Teacher(network, routed, data, training, settings, _show).teach(), routed, labelled


def _whole_test(routed: Routed, data: Data) -> dict[str, Any]:
    counted, test = costs(routed), observe(routed, data.test, data)
    return {
        "routed_test": asdict(point_at(test, counted, 0.0)),
        "fixed": [asdict(point) for point in fixed_points(test, counted)],
        "whole_macs": counted.whole,
    }


def _routed(network: nn.Module, data: Data, settings: RouteSettings, training: TrainSettings) -> tuple[Routed, Taught]:
    chain, found = survey(network, data.input_shape)
    routed = make_routed(chain, found.units, settings)
    return routed, Teacher(network, routed, data, training, settings, _show).teach()


def _image_router(
    routed: Routed, start: nn.Module, data: Data, scale: Scale, training: TrainSettings
) -> dict[str, Any]:
    """The paper's kind of router on the same network and ways out, with labels by outcome."""
    settings = RouteSettings(router="image", router_epochs=scale.image_router_epochs)
    network = copy.deepcopy(start)
    chain, found = survey(network, data.input_shape)
    other = make_routed(chain, found.units, settings)
    other.parts.load_state_dict(routed.parts.state_dict())
    other.heads.load_state_dict(routed.heads.state_dict())
    taught = Teacher(network, other, data, replace(training, epochs=0), settings, _show).teach()
    counted = costs(other)
    seen, test = observe(other, taught.calibration, data), observe(other, data.test, data)
    chosen = choose(routed_points(seen, counted), counted, target_macs=None, max_drop=MAX_DROP)
    points = routed_points(test, counted)
    return {
        **asdict(point_at(test, counted, chosen.setting)),
        "router_top1": taught.router_top1,
        "router_majority": taught.router_majority,
        "top1_at_share": {str(share): _best(points, share * counted.whole) for share in GRID},
    }


def _best(points: list[Point], macs: float) -> float | None:
    """The best accuracy among the points that cost at most so much; None where none does."""
    return max((point.top1 for point in points if point.macs <= macs), default=None)


def _curves(test: Observation, counted: Costs) -> dict[str, dict[str, float | None]]:
    """Test accuracy of both rules over all thresholds, read at equal costs."""
    both = {"router": routed_points(test, counted), "early_exit": early_exit_points(test, counted)}
    return {
        name: {str(share): _between(points, share * counted.whole) for share in GRID} for name, points in both.items()
    }


def _between(points: list[Point], macs: float) -> float | None:
    """The accuracy at a cost, on the line between the two points around it."""
    below = [point for point in points if point.macs <= macs]
    above = [point for point in points if point.macs > macs]
    if not below or not above:
        return None
    left, right = below[-1], above[0]
    return left.top1 + (right.top1 - left.top1) * (macs - left.macs) / (right.macs - left.macs)


def _latency(whole: nn.Module, routed: Routed, chosen: Point, data: Data, count: int) -> dict[str, Any]:
    """Mean milliseconds of single test images: the unrouted network, and the routed one at three thresholds."""
    images = data.examples(data.test, count)
    settings = {"cheapest": -1.0, "chosen": chosen.setting, "all layers": 2.0}
    networks: dict[str, nn.Module] = {"unrouted": whole.cpu().eval()}
    for name, threshold in settings.items():
        networks[name] = copy.deepcopy(routed).cpu().eval()
        networks[name].set_threshold_(threshold)  # type: ignore[operator]
    threads = torch.get_num_threads()
    found: dict[str, Any] = {}
    with torch.inference_mode():
        calls = {name: lambda i, n=net: n(images[i : i + 1]) for name, net in networks.items()}
        found["torch"] = {name: asdict(t) for name, t in time_images(calls, count, threads=threads).items()}
    with tempfile.TemporaryDirectory() as folder:
        models = {}
        for name, net in networks.items():
            export_onnx(net, images[:2], Path(folder) / f"{name}.onnx", check_inputs=images)
            models[name] = OnnxModel(Path(folder) / f"{name}.onnx", threads=threads, own=True)
        batches = [image[None].numpy() for image in images]
        asked = {name: lambda i, m=model: m(batches[i]) for name, model in models.items()}
        times = time_images(asked, count, threads=threads)
    found["onnxruntime"] = {name: asdict(t) for name, t in times.items()}
    with torch.inference_mode():
        found["depths_of_timed_images"] = networks["chosen"].route(images)[1].bincount().tolist()  # type: ignore[operator]
    return found


def _data(spec: str, scale: Scale, seed: int) -> Data:
    data = open_data(spec, DataSettings(seed=seed))
    counts = {"train": scale.images, "validation": scale.test_images, "test": scale.test_images}
    parts = {name: getattr(data, name).take(torch.arange(count)) for name, count in counts.items() if count}
    return replace(data, **parts)


def _resnet(scale: Scale) -> nn.Module:
    return resnet_cifar.build(in_channels=1, depth=scale.depth, width=scale.resnet_width)


def _trained(network: nn.Module, data: Data, training: TrainSettings) -> nn.Module:
    fit(network, data, training, on_event=_show)
    return network.eval()


def _paper_training(epochs: int, seed: int, device: str) -> TrainSettings:
    return replace(PAPER_TRAINING, epochs=epochs, seed=seed, device=device)


def _top1(network: nn.Module, data: Data) -> float:
    return evaluate(network, data.test, data).top1


def _show(event: Event) -> None:
    if isinstance(event, EpochEvent):
        row = {key: round(value, 4) if isinstance(value, float) else value for key, value in event.row.items()}
        print(row, file=sys.stderr, flush=True)


def table(results: dict[str, Any]) -> str:
    """The results as Markdown: accuracy against mean cost, then what single images take."""
    lines = ["| network | way | mean MACs | of the whole | test top-1 |", "|---|---|---|---|---|"]
    routed = [row for row in results["rows"] if "letter" not in row]
    for row in results["rows"]:
        if "letter" in row:
            lines += _paper_lines(row)
            continue
        whole = row["unrouted"]["macs"]
        ways = [("unrouted", row["unrouted"]), ("router", row["router"]), ("early exit", row["early_exit"])]
        ways += [("image router", row["image_router"])]
        ways += [(f"always depth {depth}", point) for depth, point in enumerate(row["fixed"])]
        for name, point in ways:
            cells = (f"{point['macs'] / 1e6:.2f} M", f"{point['macs'] / whole:.1%}", f"{point['top1']:.2%}")
            lines.append(f"| {row['name']}, seed {row['seed']} | {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, *_latency_lines(routed), "", *(_goal(row) for row in routed)])


def _latency_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Mean milliseconds of one image at a time, of the network left at depth 0, as routed, and whole."""
    engines = ("torch", "onnxruntime")
    lines = ["", "| network, mean ms an image | engine | unrouted | left at the first depth | as the router decides |"]
    lines.append("|---|---|---|---|---|")
    for row in rows:
        for engine in engines:
            times = row["latency_ms"][engine]
            whole = times["unrouted"]["mean"]
            cells = [f"{times[way]['mean']:.3f} ({times[way]['mean'] / whole:.2f}x)" for way in ("cheapest", "chosen")]
            lines.append(f"| {row['name']}, seed {row['seed']} | {engine} | {whole:.3f} | {' | '.join(cells)} |")
    return lines


def _goal(row: dict[str, Any]) -> str:
    """Whether it came to 30 % fewer MACs within half a point, and how early exit compares."""
    saved, lost = row["goal"]["macs_saved"], row["goal"]["points_lost"]
    reached = "reached" if saved >= 0.3 and lost <= 0.5 else "not reached"
    router, peer = row["router"], row["early_exit"]
    change = f"{lost:.2f} points lost" if lost > 0 else f"{-lost:.2f} points won"
    than = "fewer" if router["macs"] <= peer["macs"] else "more"
    apart, points = abs(1 - router["macs"] / peer["macs"]), 100 * (router["top1"] - peer["top1"])
    return (
        f"{row['name']}, seed {row['seed']}: {saved:.1%} fewer MACs than unrouted with {change}; the goal of 30 % "
        f"within half a point is {reached}. Against early exit {apart:.1%} {than} MACs, {points:+.2f} points."
    )


def _paper_lines(row: dict[str, Any]) -> list[str]:
    letter, name = row["letter"], f"{row['name']}, seed {row['seed']}"
    routed, whole = letter["routed_test"], letter["whole_macs"]
    later = row["all_images"]["routed_test"]
    share, share_later = (f"{each['macs'] / 1e6:.2f} M | {each['macs'] / whole:.1%}" for each in (routed, later))
    return [
        f"| {name} | CNN 1, all test images (paper 98 %) | {whole / 1e6:.2f} M | 100 % | {row['cnn1_top1']:.2%} |",
        f"| {name} | CNN 2, labels named (paper 62 %) | | | {letter['router_top1']:.2%} |",
        f"| {name} | CNN 3, selected images (paper near 100 %) | | | {letter['cnn3_top1_on_selected']:.2%} |",
        f"| {name} | CNN 3 of all images, selected images | | | {row['all_images']['cnn3_top1_on_selected']:.2%} |",
        f"| {name} | CNN 3 of the selected images, all test images | {share} | {routed['top1']:.2%} |",
        f"| {name} | CNN 3 of all images, all test images | {share_later} | {later['top1']:.2%} |",
    ]


if __name__ == "__main__":
    main()
