"""What a report says of AdapNet's periods: curves of filters and concepts, and pictures of what concepts look like."""

import base64
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from compressor.pruning.adapnet.unit import Unit
from compressor.report.sections import Curve, Gallery, Look, Plot, Section, Table
from compressor.report.units import counted

_MOST_CURVES = 12


def section(
    rows: Sequence[Mapping[str, Any]], edits: Sequence[Mapping[str, Any]] = (), galleries: tuple[Gallery, ...] = ()
) -> tuple[Section, ...]:
    """Filters and concepts of every layer over the periods, with the edits and what concepts look like.

    Args:
        rows: what each period found; without any there is no section.
        edits: what was carried out, as the report has it.
        galleries: pictures of concepts.
    """
    if not rows:
        return ()
    names = list(dict.fromkeys(each["group"] for row in rows for each in row["groups"]))
    shown = names[:: -(-len(names) // _MOST_CURVES)]
    left_out = f" Of {len(names)} layers {len(shown)} are drawn." if len(shown) < len(names) else ""
    periods = tuple(float(row["period"]) for row in rows)
    kinds = {"frozen": "frozen", "prunes": "pruned", "merges": "merged", "inserts": "inserted"}
    counts = tuple(Curve(label, periods, tuple(float(row[key]) for row in rows)) for key, label in kinds.items())
    text = (
        "At the end of every period the feature maps that each layer showed are clustered; clusters on which filters "
        "differ are concepts. Filters equally active on all concepts are frozen for one period and then removed, "
        "filters that are alike become one, and layers whose filters are active on too many grow. Marks show where a "
        f"layer's filters were pruned, merged or inserted.{left_out}"
    )
    plots = (
        Plot("Filters of each layer", "period", "filters", _filters(rows, shown, edits)),
        Plot("Concepts of each layer", "period", "concepts", _curves(rows, shown, lambda each: each["concepts"])),
        Plot("Edits", "period", "filters", counts),
    )
    last = {each["group"]: each for row in rows for each in row["groups"]}
    table = Table(
        ("layer", "filters", "clusters", "concepts"),
        tuple((name, last[name]["filters"], last[name]["clusters"], last[name]["concepts"]) for name in names),
        "At the last period that judged the layer.",
    )
    return (Section("AdapNet", text, (table,), plots, galleries),)


_MARKS: dict[str, tuple[str, Look]] = {
    "prune": ("pruned", "gone"),
    "merge": ("merged", "joined"),
    "insert": ("inserted", "come"),
}


def _filters(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], edits: Sequence[Mapping[str, Any]]
) -> tuple[Curve, ...]:
    """Filters of every layer over the periods, with a mark wherever an edit changed them."""
    curves = _curves(rows, names, lambda each: each["filters"])
    count = {(curve.label, period): value for curve in curves for period, value in zip(curve.x, curve.y)}
    marks = []
    for kind, (label, look) in _MARKS.items():
        places = {(edit["group"], float(edit["period"])) for edit in edits if edit["kind"] == kind} & count.keys()
        if places:
            ordered = sorted(places, key=lambda place: place[1])
            marks.append(Curve(label, tuple(at for _, at in ordered), tuple(count[place] for place in ordered), look))
    return (*curves, *marks)


def _curves(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], value: Callable[[Mapping[str, Any]], float]
) -> tuple[Curve, ...]:
    curves = []
    for name in names:
        found = [(row["period"], each) for row in rows for each in row["groups"] if each["group"] == name]
        curves.append(Curve(name, tuple(float(at) for at, _ in found), tuple(float(value(each)) for _, each in found)))
    return tuple(curves)


_MOST_LAYERS, _MOST_CONCEPTS, _MOST_MAPS = 6, 6, 6


def galleries(units: Iterable[Unit]) -> tuple[Gallery, ...]:
    """One gallery a layer that has concepts, evenly chosen where there are many; a row a concept, strongest first.

    The maps are the unit's exemplars, which AdapNet keeps nearest to the centre first. Black is a map's least
    activation, white its largest.
    """
    found = [unit for unit in units if unit.concepts]
    return tuple(_gallery(unit) for unit in found[:: max(1, -(-len(found) // _MOST_LAYERS))])


def _gallery(unit: Unit) -> Gallery:
    strength = unit.table.sum(0)
    ranked = sorted(unit.concepts, key=lambda concept: -float(strength[concept]))
    shown = ranked[:_MOST_CONCEPTS]
    shares = (strength / strength.sum()).tolist()
    rows = tuple((f"{100 * shares[each]:.0f} %", tuple(_pictures(unit, each))) for each in shown)
    more = f", the {len(shown)} strongest of {len(ranked)}" if len(shown) < len(ranked) else ""
    side = f"{unit.size}x{unit.size}"
    left = "left: share of all maps"
    caption = f"{counted(len(shown), 'concept')}{more}; maps at {side}, nearest to the centre first; {left}"
    return Gallery(unit.name, rows, caption)


def _pictures(unit: Unit, concept: int) -> Iterator[str]:
    for picture in unit.exemplars[(unit.owners == concept).to(unit.device)][:_MOST_MAPS]:
        yield _data_uri(picture)


def _data_uri(picture: Tensor) -> str:
    """A map (height, width) as a grey PNG inside an address."""
    from PIL import Image

    values = picture.float().cpu().numpy()
    least, most = float(values.min()), float(values.max())
    grey = np.zeros_like(values) if most <= least else (values - least) / (most - least)
    buffer = io.BytesIO()
    Image.fromarray((255 * grey).round().astype(np.uint8)).save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
