"""A run as the pipeline makes it, small: AdapNet on a training loop, every plan carried out at once."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.graph.capture import capture
from compressor.graph.channels import Channels
from compressor.pruning.adapnet.freeze import Held
from compressor.pruning.adapnet.method import AdapNet
from compressor.pruning.adapnet.observe import Watch
from compressor.pruning.adapnet.settings import AdapNetSettings
from compressor.surgery import Plan, operate_
from compressor.training.data import open_data


def small_net(width: int = 12) -> nn.Sequential:
    """Four convolutions for digits (1, 8, 8), trainable in a second."""

    def layer(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *layer(1, width),
        *layer(width, width),
        nn.MaxPool2d(2),
        *layer(width, 2 * width),
        *layer(2 * width, 2 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    )


def digits() -> tuple[Tensor, Tensor]:
    train = open_data("digits").train
    return train.images.float() / 255, train.labels  # type: ignore[union-attr]


@dataclass
class Running:
    """One model in the second phase; `train` goes on for so many steps and keeps every plan that was carried out."""

    settings: AdapNetSettings
    model: nn.Module
    seed: int = 0
    batch: int = 64
    plans: list[Plan] = field(default_factory=list)
    born: dict[int, int] = field(default_factory=dict)  # inserted channel -> period
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.images, self.labels = digits()
        self.epoch_steps = len(self.images) // self.batch
        self.channels: Channels = capture(self.model, self.images[:2])
        self.method = AdapNet(self.settings, classes=10, steps_per_epoch=self.epoch_steps, seed=self.seed)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.8)
        self.held: Held | None = None
        self.watch: Watch | None = None
        self.step = 0

    def train(self, steps: int, on_step: Callable[[], None] | None = None) -> None:
        with ExitStack() as hooks:
            self._watch(hooks)
            for _ in range(steps):
                self._step()
                if on_step is not None:
                    on_step()
                if self.watch is not None and self.method.step_done(self.watch.take()):
                    hooks.close()
                    self._change()
                    self._watch(hooks)
                if self.step % self.epoch_steps == 0:
                    self.method.epoch_done()

    def _watch(self, hooks: ExitStack) -> None:
        self.watch = hooks.enter_context(self.method.watch(self.model, self.channels).on(self.model))
        self.held = self.method.hold(self.model, self.channels, self.optimizer)

    def _step(self) -> None:
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(self.step // self.epoch_steps))
        place = self.step % self.epoch_steps * self.batch
        chosen = order[place : place + self.batch]
        self.model.train()
        self.optimizer.zero_grad()
        functional.cross_entropy(self.model(self.images[chosen]), self.labels[chosen]).backward()
        self.optimizer.step()
        assert self.held is not None
        self.held.restore_()
        self.step += 1

    def _change(self) -> None:
        for plan in self.method.plans(self.model, lambda: self.channels):
            known = self.channels.next_id
            self.channels = operate_(self.model, plan, self.channels, self.optimizer)
            self.born |= dict.fromkeys(range(known, self.channels.next_id), plan.period)
            self.plans.append(plan)
        self.rows += self.method.rows

    def kinds(self) -> list[str]:
        return [edit.kind for plan in self.plans for edit in plan.edits]
