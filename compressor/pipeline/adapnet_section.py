"""AdapNet's part of a report's page: what happened in every period, layer by layer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from compressor.reporting.sections import Curve, Plot, Section, Table

_MOST_CURVES = 12


def section(rows: Sequence[Mapping[str, Any]]) -> tuple[Section, ...]:
    """Filters and concepts of every layer over the periods, and the edits of each period; nothing without periods."""
    if not rows:
        return ()
    names = list(dict.fromkeys(each["group"] for row in rows for each in row["groups"]))
    shown = names[:: -(-len(names) // _MOST_CURVES)]
    left_out = f" Of {len(names)} layers {len(shown)} are drawn." if len(shown) < len(names) else ""
    periods = tuple(float(row["period"]) for row in rows)
    kinds = {"frozen": "frozen", "prunes": "pruned", "merges": "merged", "inserts": "inserted"}
    edits = tuple(Curve(label, periods, tuple(float(row[key]) for row in rows)) for key, label in kinds.items())
    text = (
        "At the end of every period the feature maps that each layer showed are clustered; clusters on which filters "
        "differ are concepts. Filters equally active on all concepts are frozen for one period and then removed, "
        f"filters that are alike become one, and layers whose filters are active on too many grow.{left_out}"
    )
    plots = (
        Plot("Filters of each layer", "period", "filters", _curves(rows, shown, lambda each: each["filters"])),
        Plot("Concepts of each layer", "period", "concepts", _curves(rows, shown, lambda each: each["concepts"])),
        Plot("Edits", "period", "filters", edits),
    )
    last = {each["group"]: each for row in rows for each in row["groups"]}
    table = Table(
        ("layer", "filters", "clusters", "concepts"),
        tuple((name, last[name]["filters"], last[name]["clusters"], last[name]["concepts"]) for name in names),
        "At the last period that judged the layer.",
    )
    return (Section("AdapNet", text, (table,), plots),)


def _curves(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], value: Callable[[Mapping[str, Any]], float]
) -> tuple[Curve, ...]:
    curves = []
    for name in names:
        found = [(row["period"], each) for row in rows for each in row["groups"] if each["group"] == name]
        curves.append(Curve(name, tuple(float(at) for at, _ in found), tuple(float(value(each)) for _, each in found)))
    return tuple(curves)
