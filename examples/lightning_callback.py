"""Prune a network that Lightning trains, by a callback.

pip install lightning
python examples/lightning_callback.py
"""

from typing import Any

import lightning
import torch
from plain_loop import accuracy, digits, network
from torch import nn
from torch.nn import functional

import compressor


class Pruning(lightning.Callback):
    """Hands a `compressor.Pruner` the network and its optimizer when training starts, and lets it work after each step
    of the optimizer; `settings` are the pruner's.
    """

    def __init__(self, example: torch.Tensor, **settings: Any) -> None:
        self.example, self.settings = example, settings
        self.report: compressor.Report | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        [optimizer] = trainer.optimizers
        self.pruner = compressor.Pruner(pl_module.network, self.example, optimizer, **self.settings)
        self.steps = trainer.global_step

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step > self.steps:  # else gradients of several batches are added up
            self.steps = trainer.global_step
            self.pruner.step()

    def on_train_end(self, *_: Any) -> None:
        self.report = self.pruner.finish()


class Digits(lightning.LightningModule):
    """A classifier as Lightning has it; nothing here knows of pruning."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.network = net

    def training_step(self, batch: Any) -> torch.Tensor:
        x, y = batch
        return functional.cross_entropy(self.network(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def train(epochs: int = 8, width: int = 32, **trainer: Any) -> compressor.Report:
    """Half of the multiply-adds go, gradually, over the first half of training."""
    lightning.seed_everything(0, verbose=False)
    module, (loader, test) = Digits(network(width)), digits()
    pruning = Pruning(
        torch.zeros(1, 1, 8, 8), target_macs=0.5, steps=epochs * len(loader) // 2, every=len(loader), data=loader
    )
    lightning.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=[pruning], **trainer).fit(module, loader)
    report = pruning.report
    assert report is not None
    left = report.after.macs / report.before.macs
    print(f"{accuracy(module.network, test):.1%} with {left:.0%} of the multiply-adds")
    return report


if __name__ == "__main__":
    train()
