"""Prune a YOLO in ultralytics' own trainer by two callbacks; its loop, data, losses and average of weights stay.

    pip install ultralytics                     # AGPL-3.0; compressor itself never imports it
    python examples/ultralytics_callbacks.py yolo11n.pt coco8.yaml --epochs 15 --left 0.6

The channels go at once, after the first step; layers that read them are refitted by least squares to what the network
gave before, on training images without labels. What is saved as best.pt is the smaller network: `YOLO("best.pt")`.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch

import compressor


def pruning(
    left: float, tell: Callable[[compressor.Report], None], **settings: Any
) -> dict[str, Callable[[Any], None]]:
    """Callbacks of a trainer that leave this share of the multiply-adds and, at the end of training, `tell` what was
    done; `settings` are those of compressor.Pruner.
    """

    def images(trainer: Any) -> Iterator[torch.Tensor]:
        for batch in trainer.train_loader:
            yield trainer.preprocess_batch(batch)["img"]

    def start(trainer: Any) -> None:
        example = torch.zeros(1, 3, trainer.args.imgsz, trainer.args.imgsz, device=trainer.device)
        trainer.pruner = compressor.Pruner(
            trainer.model, example, trainer.optimizer, target_macs=left, data=images(trainer),
            followers=[trainer.ema.ema], **settings,
        )  # fmt: skip

    def step(trainer: Any) -> None:
        trainer.pruner.step()

    def end(trainer: Any) -> None:
        tell(trainer.pruner.finish())

    return {"on_train_start": start, "on_train_batch_end": step, "on_train_end": end}


def train(weights: str, data: str, left: float, **arguments: Any) -> compressor.Report:
    """Fine-tune a network of ultralytics' and prune it on the way."""
    from ultralytics import YOLO

    model, reports = YOLO(weights), list[compressor.Report]()
    for event, callback in pruning(left, reports.append).items():
        model.add_callback(event, callback)
    model.train(data=data, **arguments)
    [report] = reports
    print(f"{report.after.macs / report.before.macs:.0%} of the multiply-adds are left")
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("data")
    parser.add_argument("--left", type=float, default=0.6)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--imgsz", type=int, default=640)
    given = parser.parse_args()
    train(given.weights, given.data, given.left, epochs=given.epochs, imgsz=given.imgsz)
