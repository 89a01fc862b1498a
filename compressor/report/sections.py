"""Parts of a report that only some methods have, handed in as data: a title, words, tables and plots."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from compressor.errors import FileError


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


def section_from_json(data: Mapping[str, Any]) -> Section:
    """The section that `dataclasses.asdict` made plain.

    Raises:
        FileError: a key is missing or unknown.
    """
    try:
        return Section(
            title=data["title"],
            text=data["text"],
            tables=tuple(
                Table(tuple(table["columns"]), tuple(tuple(row) for row in table["rows"]), table["caption"])
                for table in data["tables"]
            ),
            plots=tuple(_plot_from_json(plot) for plot in data["plots"]),
            galleries=tuple(_gallery_from_json(gallery) for gallery in data.get("galleries", ())),
        )
    except (KeyError, TypeError) as error:
        raise FileError(f"a section of the report is broken ({error}); run the command again") from error


def _gallery_from_json(data: Mapping[str, Any]) -> Gallery:
    rows = tuple((str(label), tuple(map(str, pictures))) for label, pictures in data["rows"])
    return Gallery(data["title"], rows, data["caption"])


def _plot_from_json(data: Mapping[str, Any]) -> Plot:
    curves = tuple(
        Curve(each["label"], tuple(each["x"]), tuple(each["y"]), each.get("look", ""), tuple(each.get("names", ())))
        for each in data["curves"]
    )
    return Plot(data["title"], data["x_label"], data["y_label"], curves, data["kind"])
