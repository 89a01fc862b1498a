"""Prune a network in a plain training loop: bfloat16 autocast, an average of the weights, a schedule, checkpoints.

    python examples/plain_loop.py                 # 10 epochs; half of the multiply-adds go in the first 6
    python examples/plain_loop.py --resume        # goes on from last.pt, to the same network bit for bit

Only the lines marked with <- are compressor's.
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

import compressor

STEPS = 0.6  # of the training, over which channels go


def network(width: int = 32) -> nn.Module:
    """A small CNN for images of 8x8."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10),
    )  # fmt: skip


def digits() -> tuple[DataLoader, tuple[torch.Tensor, torch.Tensor]]:
    """Training batches and the test set of scikit-learn's digits."""
    found = load_digits()
    images = torch.from_numpy(found.images).float()[:, None] / 16
    labels = torch.from_numpy(found.target).long()
    shuffled = DataLoader(TensorDataset(images[:1400], labels[:1400]), batch_size=64, shuffle=True, drop_last=True)
    return shuffled, (images[1400:], labels[1400:])


def accuracy(model: nn.Module, test: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Top-1 in 0..1."""
    model.eval()
    with torch.no_grad():
        return float((model(test[0]).argmax(1) == test[1]).float().mean())


def train(epochs: int = 10, width: int = 32, last: Path | None = None, resume: bool = False) -> compressor.Report:
    """Train and prune; `last` is the checkpoint that every epoch leaves."""
    torch.manual_seed(0)
    model, (loader, test) = network(width), digits()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * len(loader))
    pruner = compressor.Pruner(  # <-
        model, torch.zeros(1, 1, 8, 8), optimizer, "taylor", target_macs=0.5, data=loader,
        steps=int(STEPS * epochs * len(loader)), every=len(loader) // 2, followers=[average.module],
    )  # <- # fmt: skip
    first = 0
    if resume and last is not None:
        saved = torch.load(last)
        pruner.load_state_dict(saved["pruner"])  # <- before the others: it gives the networks their shapes
        for name, held in {"model": model, "average": average, "optimizer": optimizer, "schedule": schedule}.items():
            held.load_state_dict(saved[name])
        torch.set_rng_state(saved["random"])
        first = saved["epoch"] + 1
    for epoch in range(first, epochs):
        model.train()
        for x, y in loader:
            with torch.autocast("cpu", torch.bfloat16):
                loss = functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            average.update_parameters(model)
            pruner.step()  # <-
        print(f"epoch {epoch}: {accuracy(model, test):.1%}, the average {accuracy(average.module, test):.1%}")
        states = {"model": model, "average": average, "optimizer": optimizer, "schedule": schedule, "pruner": pruner}
        saved = {name: held.state_dict() for name, held in states.items()}
        if last is not None:
            torch.save(saved | {"epoch": epoch, "random": torch.get_rng_state()}, last)
    report = pruner.finish()  # <-
    left = report.after.macs / report.before.macs
    print(f"{left:.0%} of the multiply-adds are left; compressor.save(model, ...) or torch.save keep the network")
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args()
    train(given.epochs, last=Path("last.pt"), resume=given.resume)
