"""Parts of a report that only some methods have, handed in as data: a title, words, tables and plots."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Table:
    """A table of texts and numbers; numbers are set flush right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | None, ...], ...]
    caption: str = ""


# A dashed line without points, or points alone: x for what goes, a triangle for what comes, a ring for what joins.
Look = Literal["", "dashed", "gone", "come", "joined"]


@dataclass(frozen=True)
class Curve:
    """One series of a plot; `y` may hold None where there is no value."""

    label: str
    x: tuple[str | float, ...]  # names for bars, else numbers
    y: tuple[float | None, ...]
    look: Look = ""  # "": as the plot's kind says
    names: tuple[str, ...] = ()  # written beside the points


@dataclass(frozen=True)
class Plot:
    """Curves over one axis, points in a plane, or horizontal bars, several a name."""

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    kind: Literal["line", "points", "bars"] = "line"
    longest: float | None = None  # of the bars on the axis, where several plots are to have the same; None: these bars'


@dataclass(frozen=True)
class Gallery:
    """Small pictures in rows, each row with a label; pictures are addresses that begin with "data:image/png"."""

    title: str
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page below the common ones.

    Example:
        losses = Curve("exit 1", x=(1, 2, 3), y=(0.9, 0.5, 0.4))
        Section("Detached models", "Loss of each exit.", plots=(Plot("Loss", "epoch", "loss", (losses,)),))
    """

    title: str
    text: str = ""
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    galleries: tuple[Gallery, ...] = ()
