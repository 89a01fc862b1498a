"""In words, on what a benchmark's rows were measured."""

from collections.abc import Iterable, Mapping
from typing import Any


def machines(rows: Iterable[Mapping[str, Any]]) -> str:
    """A sentence for each machine and torch, with the data that were measured there."""
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(f"{row['machine']}, torch {row['versions']['torch']}", []).append(row["data"])
    return " ".join(f"{', '.join(dict.fromkeys(data))}: {place}." for place, data in found.items())
