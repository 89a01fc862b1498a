"""Who is tied to whom, for people: the groups of a captured model as data and as a picture.

In the picture the layers stand one below the other in the order of execution. Each is a box whose left half has the
colour of the group it reads and whose right half that of the group it makes; grey is frozen. Arcs on the right join
the layers that make the same channels, so that none of them can lose one alone.
"""

import colorsys
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from compressor.report import units
from compressor.report.tables import plain_table, with_remarks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FROZEN = "#c4c4c4"
_ROW = 0.24  # inches a layer
_MOST_ROWS = 400  # beyond this no one can read the picture


def draw_coupling(coupling: Mapping[str, Any], path: Path) -> None:
    """Write the picture of what `Channels.to_json` gives; the file's ending chooses the format (.svg, .png, .pdf)."""
    from matplotlib.figure import Figure

    layers = coupling["layers"][:_MOST_ROWS]
    row = {name: number for number, name in enumerate(layers)}
    figure = Figure(figsize=(7.5, 0.8 + _ROW * len(layers)), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-4.2, 4.2), ylim=(len(layers) - 0.4, -1.1))
    axes.axis("off")
    axes.text(-0.55, -0.75, "reads", ha="center", fontsize=7)
    axes.text(0.55, -0.75, "makes", ha="center", fontsize=7)
    colors = _colors(coupling["groups"])
    for group in coupling["groups"]:
        _draw_group(axes, group, row, colors[group["name"]])
    for name, number in row.items():
        axes.text(-1.25, number, name, ha="right", va="center", fontsize=7)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw_group(axes: "Axes", group: Mapping[str, Any], row: Mapping[str, int], color: str) -> None:
    from matplotlib.patches import Arc, Rectangle

    for names, left in ((group["reads"], -1.1), (group["makes"], 0.0)):
        for name in names:
            if name in row:
                axes.add_patch(Rectangle((left, row[name] - 0.34), 1.1, 0.68, facecolor=color, edgecolor="white"))
    made = sorted(row[name] for name in group["makes"] if name in row)
    for number in made[:1]:
        axes.text(0.55, number, str(group["size"]), ha="center", va="center", fontsize=6.5)
    for above, below in itertools.pairwise(made):
        width = min(5.0, 0.5 + 0.12 * (below - above))
        axes.add_patch(
            Arc((1.15, (above + below) / 2), width, below - above, theta1=-90, theta2=90, color=color, lw=1.4)
        )


def _colors(groups: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Neighbouring groups far apart on the colour wheel; frozen ones grey."""
    turn = 0.618033988749895  # the golden ratio leaves no two neighbours alike
    return {
        group["name"]: _FROZEN if group["why_frozen"] else "#{:02x}{:02x}{:02x}".format(*_rgb(number * turn % 1))
        for number, group in enumerate(groups)
    }


def _rgb(hue: float) -> Iterator[int]:
    return (round(255 * part) for part in colorsys.hls_to_rgb(hue, 0.66, 0.6))


def groups_table(coupling: Mapping[str, Any]) -> RenderableType:
    """A row for each group: how many channels, what may be done to them and why not all, and how far the outputs move
    when shares of them go, the dearest group first; which layers make and read it stands below its name.
    """
    groups = coupling["groups"]
    moved: dict[str, Mapping[float, float]] = {group["name"]: group.get("outputs_moved", {}) for group in groups}
    shares: Mapping[float, float] = next(filter(None, moved.values()), {})
    table = plain_table(
        "group", ("channels", "right"), *((f"{share:.0%} gone", "right") for share in shares), ("edits", "left")
    )
    for group in sorted(groups, key=lambda group: sum(moved[group["name"]].values()), reverse=True):
        edits = "all" if group["why_only_pruned"] is None else "prune only"
        cells = [units.share(value, 2) for value in moved[group["name"]].values()] or [""] * len(shares)
        table.add_row(_about(group), str(group["size"]), *cells, edits if group["free"] else "frozen")
    free = [group["size"] for group in groups if group["free"]]
    summary = f"{len(free)} of {len(groups)} groups are free: {sum(free)} channels"
    scale = ["gone: how far the outputs move, in shares of their variance, when what reads the channels is refitted"]
    return with_remarks(table, summary, *(scale if shares else ()), *coupling["notes"])


def _about(group: Mapping[str, Any]) -> RenderableType:
    lines = {
        "with": ", ".join(name for name in group["makes"] if name != group["name"]),
        "read by": ", ".join(group["reads"]),
        "because": group["why_frozen"] or group["why_only_pruned"] or "",
    }
    below = Table.grid(padding=(0, 1, 0, 0))
    below.add_column(style="dim", no_wrap=True)
    below.add_column(overflow="fold")
    for label, text in lines.items():
        if text:
            below.add_row(f"  {label}", Text(text))
    return Group(Text(group["name"]), below) if below.row_count else Text(group["name"])
