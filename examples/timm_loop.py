"""Prune a network of timm's in a loop as its train.py has it: timm's optimizer, schedule, average of weights, mixup.

    pip install timm
    python examples/timm_loop.py

Only the lines marked with <- are compressor's.
"""

from typing import Any

import timm
import timm.data
import timm.loss
import timm.optim
import timm.scheduler
import timm.utils
import torch
from plain_loop import accuracy, digits

import compressor


def train(epochs: int = 8, name: str = "resnet10t", **model_arguments: Any) -> compressor.Report:
    """Half of the multiply-adds go, gradually, over the first half of training."""
    timm.utils.random_seed(0)
    model = timm.create_model(name, num_classes=10, in_chans=1, **model_arguments)
    loader, test = digits()
    average = timm.utils.ModelEmaV3(model, decay=0.9)
    optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", lr=3e-3, weight_decay=0.05)
    schedule, epochs = timm.scheduler.create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=epochs,
        warmup_epochs=1,
        updates_per_epoch=len(loader),
        step_on_epochs=False,
    )
    mixup = timm.data.Mixup(mixup_alpha=0.1, num_classes=10, label_smoothing=0.1)
    loss_of = timm.loss.SoftTargetCrossEntropy()
    pruner = compressor.Pruner(  # <-
        model, torch.zeros(1, 1, 8, 8), optimizer, target_macs=0.5, steps=epochs * len(loader) // 2, every=len(loader),
        data=loader, followers=[average.module],
    )  # <- # fmt: skip
    for epoch in range(epochs):
        model.train()
        for number, (x, y) in enumerate(loader, epoch * len(loader) + 1):
            x, y = mixup(x, y)
            loss = loss_of(model(x), y)
            loss.backward()
            timm.utils.dispatch_clip_grad(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            average.update(model, step=number)
            schedule.step_update(num_updates=number)
            pruner.step()  # <-
    report = pruner.finish()  # <-
    left = report.after.macs / report.before.macs
    print(f"{accuracy(average.module, test):.1%} with {left:.0%} of the multiply-adds")
    return report


if __name__ == "__main__":
    train()
