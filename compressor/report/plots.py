"""What of a run is drawn: its metrics over the epochs, its layers' filters, and where the time goes."""

import itertools
from collections.abc import Iterator
from typing import Any

from compressor.report.measurements import TOP, LayerSize, Measurements, validated
from compressor.report.sections import Curve, Plot

_MOST_TIMES = 30  # layers in the pictures of where the time goes
_MOST_BARS = 20  # layers in one picture, which is then as high as a screen


def run_plots(rows: tuple[dict[str, Any], ...], original: Measurements | None = None) -> tuple[Plot, ...]:
    """Plots of a run's metrics over its epochs: accuracy, loss and, where a method writes them, costs.

    What the network that came could do is a line in the plot of the accuracy, from epoch 0 on.
    """
    return tuple(plot for plot in _candidates(rows, original) if plot.curves)


def _candidates(rows: tuple[dict[str, Any], ...], original: Measurements | None) -> Iterator[Plot]:
    wanted = {
        ("Accuracy", *TOP.axis): {"validation_top1": "validation", "train_top1": "training"},
        **_own_figures(rows),
        ("Loss", "loss", 1.0): {"validation_loss": "validation", "train_loss": "training"},
        ("Multiply-adds", "MMAC per image", 1e-6): {"macs": "model"},
        ("Parameters", "million", 1e-6): {"params": "model"},
        ("Filters", "filters", 1.0): {"filters": "model"},
    }
    epochs = _epochs(rows)
    for (title, y_label, factor), keys in wanted.items():
        curves = []
        for key, label in keys.items():
            y = tuple(_times(row.get(key), factor) for row in rows)
            if any(value is not None for value in y):
                curves.append(Curve(label, epochs, y))
        if curves and original is not None and f"validation_{original.figure.name}" in keys:
            level = _times(original.main, factor)
            if level is not None:
                curves.append(Curve("original, on test data", (0, epochs[-1]), (level, level), look="dashed"))
        yield Plot(title, "epoch", y_label, tuple(curves))


def _own_figures(rows: tuple[dict[str, Any], ...]) -> dict[tuple[str, str, float], dict[str, str]]:
    """The main figure of a user's task."""
    found = [validated(row) for row in rows]
    figures = {each[0].name: each[0] for each in found if each is not None and each[0] != TOP}
    return {(name, *figures[name].axis): {f"validation_{name}": "validation"} for name in sorted(figures)}


def _epochs(rows: tuple[dict[str, Any], ...]) -> tuple[float, ...]:
    """Epochs done after each row, or the rows' numbers where a phase starts its epochs anew."""
    epochs = [row.get("epoch") for row in rows]
    if all(isinstance(epoch, int | float) for epoch in epochs):
        done = [epoch + 1 for epoch in epochs if epoch is not None]
        if all(earlier < later for earlier, later in itertools.pairwise(done)):
            return tuple(done)
    return tuple(range(1, len(rows) + 1))


def _times(value: Any, factor: float) -> float | None:
    return None if value is None else float(value) * factor


def filters_plots(layers: tuple[LayerSize, ...]) -> tuple[Plot, ...]:
    """Filters of every layer, before and after."""
    names = tuple(layer.name for layer in layers)
    before, after = (tuple(float(getattr(layer, side)) for layer in layers) for side in ("before", "after"))
    return _bars("Filters", "filters", names, before, after)


def times_plots(*networks: Measurements) -> tuple[Plot, ...]:
    """Where the time goes: the layers that took most of it, before and after."""
    sides = [((side.latency_ms or {}).get("onnxruntime") or {}).get("layers") or {} for side in networks]
    if not all(sides):
        return ()
    names = tuple(dict.fromkeys(itertools.chain(*sides)))[:_MOST_TIMES]
    before, after = (tuple(side.get(name, 0.0) for name in names) for side in sides)
    return _bars("Time of the layers", "ms of one image in ONNX Runtime", names, before, after)


def _bars(title: str, unit: str, names: tuple[str, ...], *sides: tuple[float, ...]) -> tuple[Plot, ...]:
    """Before and after, in as many plots as are no higher than a screen; all have one scale."""
    parts = -(-len(names) // _MOST_BARS) or 1
    size = -(-len(names) // parts)
    plots = []
    for part in range(parts):
        here = slice(part * size, (part + 1) * size)
        curves = tuple(Curve(label, names[here], side[here]) for label, side in zip(("before", "after"), sides))
        heading = title if parts == 1 else f"{title}, {part + 1} of {parts}"
        plots.append(Plot(heading, unit, "", curves, kind="bars", longest=max(itertools.chain(*sides), default=0.0)))
    return tuple(plots)
