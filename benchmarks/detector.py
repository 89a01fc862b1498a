"""A detector brought to 0.6 of its multiply-adds in ultralytics' own trainer: YOLO11n on blood cells, mAP50.

    tar xf bccd.tar -C DIR
    python -m benchmarks.detector --nets NETS --data DIR/bccd --epochs 0         # least squares alone, nothing trained
    python -m benchmarks.detector --nets NETS --data DIR/bccd --epochs 15 --seeds 0 1 2

The network is a stranger's (60 epochs at 320 pixels). `examples/ultralytics_callbacks.py` prunes it in the trainer,
which trains the whole network as long beside it. Validation and test images judge together; "drop" is that of mAP50 in
points against the network as it came, with its 95 % interval of a paired bootstrap over images. Torch-Pruning is tried
on it, attention and heads left whole; where it fails, the result says how. What the network costs as it came and pruned
is measured in turn in ONNX Runtime. Needs ultralytics (AGPL-3.0). Writes benchmarks/results/detector.json and goes on
where it was broken off.
"""

import argparse
import copy
import os
import tempfile
import time
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import compressor
from benchmarks.real_costs import ROUNDS, timed
from benchmarks.resumable import opened
from compressor.files.paths import write_json
from compressor.vision import door
from examples.ultralytics_callbacks import pruning

OUT = Path(__file__).parent / "results" / "detector.json"
DRAWS = 300  # of the bootstrap
Found = dict[str, list[np.ndarray]]  # of each image: whether a box is right, how sure it is, its class; true classes
KEPT = ("tp", "conf", "pred_cls", "target_cls")
PRUNED = "obs, least squares"
ARMS: dict[str, dict[str, Any] | None] = {
    PRUNED: {"method": "obs"},
    "whole": None,
    "l1, batch norm only": {"method": "l1", "allocate": "uniform", "reconstruct": False},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, nargs="+", default=[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--left", type=float, default=0.6)
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    result = opened(given.out, {"left": given.left, "imgsz": given.imgsz}, "cpu", torch.get_num_threads())
    done = {(row["arm"], row["epochs"], row["seed"]) for row in result["rows"]}
    weights = str(given.nets / "yolo11n_bccd.pt")
    dense: Found | None = None
    result["torch_pruning_says"] = _peer(_opened(weights).model, torch.zeros(1, 3, given.imgsz, given.imgsz))
    write_json(given.out, result)
    with tempfile.TemporaryDirectory() as folder:
        if "costs" not in result:
            small, _ = _made(weights, "", PRUNED, given, 0, 0, folder)
            modules = {"as it came": _opened(weights).model, PRUNED: small.model}
            example = torch.rand(1, 3, given.imgsz, given.imgsz)
            result["costs"] = timed({name: module.float().eval() for name, module in modules.items()}, example)
            write_json(given.out, result)
        data = _described(given.data, Path(folder))
        for epochs, seed, arm in ((e, s, a) for e in given.epochs for s in given.seeds for a in given.arms):
            if (arm, epochs, seed) in done or (ARMS[arm] is None and not epochs):
                continue
            if dense is None:
                _, dense = judged(_opened(weights), data, given.imgsz)
            began = time.process_time()
            model, left = _made(weights, data, arm, given, epochs, seed, folder)
            seconds = time.process_time() - began
            row, found = judged(model, data, given.imgsz)
            low, high = bootstrap(dense, found)
            row |= {"drop": 100 * (_map50(dense) - _map50(found)), "drop_95": [low, high]}
            told = {"arm": arm, "epochs": epochs, "seed": seed, "macs_left": left, "cpu_seconds": round(seconds, 1)}
            result["rows"].append(told | row)
            result["as_it_came"] = {"mAP50": _map50(dense), "images": len(dense["tp"])}
            write_json(given.out, result)
            print(result["rows"][-1], flush=True)


def _described(data: Path, folder: Path) -> str:
    text = (
        f"path: {data.resolve()}\ntrain: images/train\nval: [images/val, images/test]\nnames: [RBC, WBC, Platelets]\n"
    )
    (folder / "data.yaml").write_text(text)
    return str(folder / "data.yaml")


def _opened(weights: str) -> Any:
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    from ultralytics import YOLO
    from ultralytics.utils import nms

    if not isinstance(nms.non_max_suppression, partial):  # how busy the machine is must not decide what is found
        nms.non_max_suppression = partial(nms.non_max_suppression, max_time_img=60.0)
    if not door.torchvision.extension._has_ops():
        door.torchvision.ops.nms = nms.TorchNMS.nms  # which it takes itself where torchvision was never imported
    return YOLO(weights)


def _peer(model: Any, example: Tensor) -> str:
    """What becomes of the network when Torch-Pruning takes a quarter of every layer's filters.

    Detection heads stay whole, and so does the block with attention: a group that begins in its layers takes over 9 GB
    and does not end in minutes.
    """
    import torch_pruning

    model = model.float().eval()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    kept = [layer for layer in model.modules() if type(layer).__name__ in ("Detect", "C2PSA")]
    kept += [layer for each in kept for layer in each.modules()]
    before = compressor.profile(model, example).macs
    try:
        importance = torch_pruning.importance.GroupMagnitudeImportance()
        torch_pruning.pruner.MagnitudePruner(
            model, example, importance=importance, pruning_ratio=0.25, ignored_layers=kept
        ).step()
        left = compressor.profile(model, example).macs / before
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return f"{left:.0%} of the multiply-adds are left"


def _made(weights: str, data: str, arm: str, given: Any, epochs: int, seed: int, folder: str) -> tuple[Any, float]:
    """The network of an arm, and what is left of its multiply-adds."""
    model, choice, reports = _opened(weights), ARMS[arm], list[compressor.Report]()
    if not epochs:
        example = torch.zeros(1, 3, given.imgsz, given.imgsz)
        learned = _images(given.data / "images" / "train", given.imgsz)
        told = {"target_macs": given.left, "seed": seed, "data": learned, **choice}
        reports.append(compressor.prune_(model.model, example, **told))
        return model, _left(reports)
    if choice is not None:
        for event, callback in pruning(given.left, reports.append, seed=seed, **choice).items():
            model.add_callback(event, callback)
    model.train(
        data=data, epochs=epochs, imgsz=given.imgsz, batch=16, seed=seed, device="cpu", workers=0, plots=False,
        val=False, project=folder, name=f"{arm}-{epochs}-{seed}", exist_ok=True, verbose=False,
    )  # fmt: skip
    return _opened(str(model.trainer.best)), _left(reports)  # as it was saved


def _left(reports: list[compressor.Report]) -> float:
    return reports[0].after.macs / reports[0].before.macs if reports else 1.0


def _images(folder: Path, size: int) -> list[Tensor]:
    """As ultralytics prepares them to be looked at: the longer side to `size`, grey around."""
    found = []
    for path in sorted(folder.iterdir()):
        image = Image.open(path).convert("RGB")
        image.thumbnail((size, size), Image.Resampling.BILINEAR)
        whole = Image.new("RGB", (size, size), (114, 114, 114))
        whole.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
        found.append(torch.from_numpy(np.array(whole)).permute(2, 0, 1).float() / 255)
    return list(torch.stack(found).split(16))


def judged(model: Any, data: str, size: int) -> tuple[dict[str, float], Found]:
    """mAP of ultralytics' own validation, and per image what it counts."""
    model, found = copy.deepcopy(model), Found()  # validation fuses the network
    model.add_callback("on_val_batch_end", lambda v: found.update({key: list(v.metrics.stats[key]) for key in KEPT}))
    measured = model.val(data=data, imgsz=size, batch=16, device="cpu", workers=0, plots=False, verbose=False)
    return {"mAP50": float(measured.box.map50), "mAP50-95": float(measured.box.map)}, found


def _map50(found: Found, drawn: np.ndarray | None = None) -> float:
    """Of some images, which may come several times."""
    from ultralytics.utils.metrics import ap_per_class

    taken = range(len(found["tp"])) if drawn is None else drawn
    hits, sure, said, true = (np.concatenate([found[key][image] for image in taken]) for key in KEPT)
    return float(ap_per_class(hits[:, :1], sure, said, true)[5][:, 0].mean())


def bootstrap(dense: Found, found: Found) -> tuple[float, float]:
    """Between which the drop of mAP50, in points, lies in 95 % of draws of the same images for both."""
    generator, count = np.random.default_rng(0), len(dense["tp"])
    draws = (generator.integers(count, size=count) for _ in range(DRAWS))
    low, high = np.quantile([100 * (_map50(dense, draw) - _map50(found, draw)) for draw in draws], [0.025, 0.975])
    return float(low), float(high)


def table(result: dict[str, Any]) -> str:
    """The result as Markdown, each arm's seeds beside each other."""
    lines = [
        "| | multiply-adds left | epochs | mAP50 lost by each seed, with its 95 % interval | mean |",
        "|---|---|---|---|---|",
    ]
    rows = sorted(result["rows"], key=lambda row: (row["epochs"], list(ARMS).index(row["arm"]), row["seed"]))
    for (arm, epochs), group in groupby(rows, lambda row: (row["arm"], row["epochs"])):
        held = list(group)
        drops = "; ".join(f"{row['drop']:.1f} ({row['drop_95'][0]:.1f} to {row['drop_95'][1]:.1f})" for row in held)
        mean, left = np.mean([row["drop"] for row in held]), held[0]["macs_left"]
        lines.append(f"| {arm} | {left:.0%} | {epochs} | {drops} | {mean:.1f} |")
    lines += ["", "| | multiply-adds | parameters | ONNX Runtime | file |", "|---|---|---|---|---|"]
    whole = result["costs"]["as it came"]["ms"]
    for arm, cost in result["costs"].items():
        lines.append(
            f"| {arm} | {cost['macs'] / 1e6:,.0f} M | {cost['params'] / 1e6:.2f} M | "
            f"{cost['ms']:.1f} ms, {cost['ms'] / whole:.2f}x | {cost['bytes'] / 1e6:.2f} MB |"
        )
    came = result["as_it_came"]
    lines += ["", f"In points, of {came['mAP50']:.1%} on {came['images']} images. {result['machine']}."]
    lines[-1] += f" Time of one image on one thread, processor time, medians of {ROUNDS} rounds in turn."
    if said := result.get("torch_pruning_says"):
        peer = f"Torch-Pruning {result['torch_pruning']}"
        lines[-1] += f" {peer}, a quarter of the filters, attention and heads left whole: {said}."
    return "\n".join(lines)


if __name__ == "__main__":
    main()
