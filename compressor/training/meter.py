"""The figures of an epoch while it runs."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Reading:
    """Sums read from the device."""

    loss: float = 0.0  # times images
    right: float = 0.0
    images: int = 0

    def mean(self) -> tuple[float, float]:
        """Loss and top-1 per image; not a number before the first."""
        return self.loss / max(self.images, 1), self.right / max(self.images, 1)


@dataclass
class Meter:
    """Sums of an epoch that stay on the device until they are read: reading waits for the device, adding does not."""

    device: torch.device
    sums: Tensor = field(init=False)  # float64: loss times images, right answers
    bad_step: Tensor = field(init=False)  # int64: the first step with a loss that is not finite, -1 while there is none
    images: int = 0
    counts_right: bool = True
    _last: Reading = field(default_factory=Reading)
    _time: float = field(default_factory=time.monotonic)
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=self.device)

    def add(self, loss: Tensor, right: Tensor | None, images: int, step: int) -> None:
        """Add a batch's mean loss and its right answers."""
        self.sums[0] += loss.double() * images
        if right is None:
            self.counts_right = False
        else:
            self.sums[1] += right
        self.images += images
        first_bad = ~torch.isfinite(loss) & (self.bad_step < 0)
        self.bad_step = torch.where(first_bad, step, self.bad_step)

    def due(self, seconds: float) -> bool:
        """Whether the last reading is so long ago."""
        return time.monotonic() - self._time >= seconds

    def first_bad_step(self) -> int | None:
        """The first step whose loss was not finite; waits for the device."""
        step = int(self.bad_step)
        return None if step < 0 else step

    def since_last(self) -> tuple[float, float | None, float]:
        """Loss, top-1 and images per second since this was last asked; waits for the device."""
        loss, right = self.sums.tolist()
        now = time.monotonic()
        part = Reading(loss - self._last.loss, right - self._last.right, self.images - self._last.images)
        speed = part.images / max(now - self._time, 1e-9)
        self._last, self._time = Reading(loss, right, self.images), now
        mean, top1 = part.mean()
        return mean, top1 if self.counts_right else None, speed

    def total(self) -> tuple[float, float | None, float]:
        """Loss and top-1 over the epoch, and the seconds since it began or was resumed."""
        loss, right = self.sums.tolist()
        mean, top1 = Reading(loss, right, self.images).mean()
        return mean, top1 if self.counts_right else None, time.monotonic() - self.began

    def state(self) -> dict[str, Any]:
        """Plain data that `restore` takes."""
        return {"sums": self.sums.cpu(), "images": self.images, "counts_right": self.counts_right}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.sums = state["sums"].to(self.device)
        self.images, self.counts_right = state["images"], state["counts_right"]
        loss, right = self.sums.tolist()
        self._last = Reading(loss, right, self.images)
