"""The main figure of a task: its name, which way is better, how it is written."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compressor.report import units

TOP1 = "top1"  # fraction in 0..1 of the images whose largest score is their class's
_LOST = 0.01  # of top-1, or of the size of any other figure: a smaller change is about the same


@dataclass(frozen=True)
class Figure:
    """What a network is measured by: top-1, or what a user's task calls its main figure."""

    name: str = TOP1
    higher: bool = True  # is better

    @property
    def label(self) -> str:
        """As a table says it."""
        return "top-1" if self.name == TOP1 else self.name

    @property
    def axis(self) -> tuple[str, float]:
        """As a plot says it, and the factor of its values."""
        return ("top-1, %", 100.0) if self.name == TOP1 else (self.name, 1.0)

    def write(self, value: float, digits: int = 2) -> str:
        """A value: "93.20 %", 0.8123."""
        return f"{100 * value:.{digits}f} %" if self.name == TOP1 else f"{value:.4g}"

    def change(self, before: float, after: float) -> str:
        """From one value to another: "-0.80 pp", "+0.0123"."""
        return units.points(before, after) if self.name == TOP1 else f"{after - before:+.3g}"

    def drop(self, before: float, after: float) -> float:
        """How much worse the second is; below zero where it is better."""
        return before - after if self.higher else after - before

    def gain(self, before: float, after: float) -> float:
        """How much better the second is, where 1 is what one would notice."""
        scale = _LOST if self.name == TOP1 else _LOST * abs(before) or _LOST
        return -self.drop(before, after) / scale


TOP = Figure()


def validated(row: Mapping[str, Any]) -> tuple[Figure, float | None] | None:
    """The main figure in an epoch's row, of the validation set; None where it was not looked for."""
    names = [key.removeprefix("validation_") for key in row if key.startswith("validation_")]
    name = next((name for name in names if name not in ("loss", "local_losses")), None)
    return None if name is None else (Figure(name), row[f"validation_{name}"])
