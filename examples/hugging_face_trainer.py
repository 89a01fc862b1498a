"""Prune a network that Hugging Face's Trainer trains, by a callback.

pip install "transformers[torch]"
python examples/hugging_face_trainer.py
"""

from typing import Any

import torch
from plain_loop import digits
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

import compressor


class Pruning(TrainerCallback):
    """Hands a `compressor.Pruner` the network and its optimizer when training starts, and lets it work after each step
    of the optimizer; `settings` are the pruner's.
    """

    def __init__(self, example: Any, **settings: Any) -> None:
        self.example, self.settings = example, settings
        self.report: compressor.Report | None = None

    def on_train_begin(self, *_: Any, model: Any, optimizer: Any, **others: Any) -> None:
        optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate has wrapped it
        self.pruner = compressor.Pruner(model, self.example, optimizer, **self.settings)

    def on_step_end(self, *_: Any, **others: Any) -> None:
        self.pruner.step()

    def on_train_end(self, *_: Any, **others: Any) -> None:
        self.report = self.pruner.finish()


def train(epochs: int = 8, widths: tuple[int, ...] = (32, 64), **arguments: Any) -> compressor.Report:
    """Half of the multiply-adds go, gradually, over the first half of training."""
    set_seed(0)
    sizes = {"embedding_size": widths[0], "hidden_sizes": list(widths), "depths": [1] * len(widths)}
    model = ResNetForImageClassification(
        ResNetConfig(num_channels=1, num_labels=10, layer_type="basic", downsample_in_first_stage=False, **sizes)
    )
    loader, (images, labels) = digits()
    learned = [{"pixel_values": x, "labels": y} for x, y in loader.dataset]
    steps = epochs * (len(learned) // 64)
    pruning = Pruning({"pixel_values": torch.zeros(1, 1, 8, 8)}, target_macs=0.5, steps=steps // 2)
    given = TrainingArguments(
        num_train_epochs=epochs, per_device_train_batch_size=64, learning_rate=3e-3, dataloader_drop_last=True,
        use_cpu=True, **arguments,
    )  # fmt: skip
    tested = [{"pixel_values": x, "labels": y} for x, y in zip(images, labels, strict=True)]
    right = lambda found: {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())}  # noqa: E731
    trainer = Trainer(
        model, given, train_dataset=learned, eval_dataset=tested, compute_metrics=right, callbacks=[pruning]
    )
    trainer.train()
    report = pruning.report
    assert report is not None
    left = report.after.macs / report.before.macs
    print(f"{trainer.evaluate()['eval_accuracy']:.1%} with {left:.0%} of the multiply-adds")
    return report


if __name__ == "__main__":
    train()
