"""Who is tied to whom, for people: the groups of a captured model as data and as a picture.

In the picture the layers stand one below the other in the order of execution. Each is a box whose left half has the
colour of the group it reads and whose right half that of the group it makes; grey is frozen. Arcs on the right join
the layers that make the same channels, so that none of them can lose one alone.
"""

import colorsys
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.graph.channels import Channels, Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FROZEN = "#c4c4c4"
_ROW = 0.24  # inches a layer
_MOST_ROWS = 400  # beyond this no one can read the picture


def groups_json(channels: Channels, moved: Mapping[str, Mapping[float, float]] | None = None) -> dict[str, Any]:
    """Every group with its members, size, whether it may be edited and how far the outputs move when shares of it go
    (see `Sensitivity`), as plain types.
    """
    return {
        "groups": [
            {
                "name": group.name,
                "size": group.size,
                "free": group.frozen is None,
                "why_frozen": group.frozen,
                "why_only_pruned": group.prune_only,
                **({} if moved is None else {"outputs_moved": moved.get(group.name, {})}),
                "makes": list(group.producers),
                "reads": list(group.readers),
                "places": [{"tensor": p.tensor, "dim": p.dim, "role": p.role} for p in group.places],
            }
            for group in channels.groups
        ],
        "macs": channels.macs(),
        "params": channels.params(),
        "notes": list(channels.notes),
    }


def draw_coupling(channels: Channels, path: Path) -> None:
    """Write the picture; the file's ending chooses the format (.svg, .png, .pdf)."""
    from matplotlib.figure import Figure

    layers = list(_layers(channels))[:_MOST_ROWS]
    row = {name: number for number, name in enumerate(layers)}
    figure = Figure(figsize=(7.5, 0.8 + _ROW * len(layers)), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-4.2, 4.2), ylim=(len(layers) - 0.4, -1.1))
    axes.axis("off")
    axes.text(-0.55, -0.75, "reads", ha="center", fontsize=7)
    axes.text(0.55, -0.75, "makes", ha="center", fontsize=7)
    colors = _colors(channels)
    for group in channels.groups:
        _draw_group(axes, group, row, colors[group.name])
    for name, number in row.items():
        axes.text(-1.25, number, name, ha="right", va="center", fontsize=7)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw_group(axes: "Axes", group: Group, row: Mapping[str, int], color: str) -> None:
    from matplotlib.patches import Arc, Rectangle

    for names, left in ((group.readers, -1.1), (group.producers, 0.0)):
        for name in names:
            if name in row:
                axes.add_patch(Rectangle((left, row[name] - 0.34), 1.1, 0.68, facecolor=color, edgecolor="white"))
    made = sorted(row[name] for name in group.producers if name in row)
    for number in made[:1]:
        axes.text(0.55, number, str(group.size), ha="center", va="center", fontsize=6.5)
    for above, below in itertools.pairwise(made):
        width = min(5.0, 0.5 + 0.12 * (below - above))
        axes.add_patch(
            Arc((1.15, (above + below) / 2), width, below - above, theta1=-90, theta2=90, color=color, lw=1.4)
        )


def _colors(channels: Channels) -> dict[str, str]:
    """Neighbouring groups far apart on the colour wheel; frozen ones grey."""
    turn = 0.618033988749895  # the golden ratio leaves no two neighbours alike
    return {
        group.name: _FROZEN if group.frozen else "#{:02x}{:02x}{:02x}".format(*_rgb(number * turn % 1))
        for number, group in enumerate(channels.groups)
    }


def _rgb(hue: float) -> Iterator[int]:
    return (round(255 * part) for part in colorsys.hls_to_rgb(hue, 0.66, 0.6))


def _layers(channels: Channels) -> dict[str, None]:
    """Every layer that makes or reads a group, in the order of execution."""
    tied = dict.fromkeys(name for group in channels.groups for name in (*group.producers, *group.readers))
    ran = dict.fromkeys(cost.module for cost in channels.costs if cost.module in tied)
    return ran | tied
