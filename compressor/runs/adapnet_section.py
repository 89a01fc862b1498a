"""AdapNet's part of a report's page: what happened in every period, layer by layer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from compressor.report.sections import Curve, Gallery, Look, Plot, Section, Table

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
