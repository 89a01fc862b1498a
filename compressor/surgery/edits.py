"""What may be done to a group of channels, as plain data: a plan can be printed, counted, saved and tested."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from compressor.errors import FileError
from compressor.graph.blocks import Values


@dataclass(frozen=True)
class Prune:
    """Remove channels everywhere.

    `means`, where given, holds each channel's mean activation: readers are compensated for it, through the running
    mean of the batch norm that follows them or through their bias.
    """

    group: str
    channels: tuple[int, ...]
    why: str
    means: tuple[float, ...] | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)  # what decided it, for the report
    kind: Literal["prune"] = "prune"


@dataclass(frozen=True)
class Merge:
    """Make one channel of two: producers and statistics become their mean, readers' columns their sum."""

    group: str
    keep: int
    drop: int
    why: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    kind: Literal["merge"] = "merge"

    @property
    def channels(self) -> tuple[int, ...]:
        return (self.keep, self.drop)


@dataclass(frozen=True)
class Insert:
    """Add a channel right after its master.

    `rows` gives the new slices of producers by tensor name, in the shape of the master's slice; tensors that are not
    named copy the master's. Readers see it through columns of zeros, or share the master's columns by halves.
    """

    group: str
    after: int
    why: str
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    columns: Literal["zero", "split"] = "zero"
    numbers: Mapping[str, float] = field(default_factory=dict)
    kind: Literal["insert"] = "insert"

    @property
    def channels(self) -> tuple[int, ...]:
        return (self.after,)


@dataclass(frozen=True)
class Bypass:
    """Leave out the branch of a residual block, a module: its shortcut stands alone."""

    group: str  # the module's name
    why: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    kind: Literal["bypass"] = "bypass"


@dataclass(frozen=True)
class Fold:
    """Put one convolution of the block's input in the place of its branch, of zeros where it has no values."""

    group: str
    kernel: int  # its height and width
    why: str
    values: Values | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    kind: Literal["fold"] = "fold"


Edit = Prune | Merge | Insert
BlockEdit = Bypass | Fold


@dataclass(frozen=True)
class Plan:
    """Edits to be made together; no channel appears in two of them. `period` says when it was decided."""

    edits: tuple[Edit, ...] = ()
    period: int = 0

    @property
    def removed(self) -> tuple[int, ...]:
        """Identities that will be gone."""
        return tuple(itertools.chain.from_iterable(map(_gone, self.edits)))

    def parted(self) -> "tuple[Plan, Plan]":
        """The edits that take channels away, and those that add some: two plans, in this order."""
        adding = tuple(edit for edit in self.edits if isinstance(edit, Insert))
        removing = tuple(edit for edit in self.edits if not isinstance(edit, Insert))
        return replace(self, edits=removing), replace(self, edits=adding)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The edits as plain types, for the report."""
        return rows_of(self.edits, self.period)


def rows_of(edits: Iterable[Edit | BlockEdit], period: int = 0) -> Iterator[dict[str, Any]]:
    """Edits as plain types."""
    for edit in edits:
        of_block = {"kernel": edit.kernel} if isinstance(edit, Fold) else {}
        channels = of_block if isinstance(edit, Bypass | Fold) else {"channels": list(edit.channels)}
        yield {
            "kind": edit.kind,
            "period": period,
            "group": edit.group,
            **channels,
            "why": edit.why,
            **({"numbers": dict(edit.numbers)} if edit.numbers else {}),
        }


def plan_of(rows: Sequence[Mapping[str, Any]]) -> Plan:
    """The plan whose `rows` these are: the same shapes come of it, but no means and no new filters' values.

    Raises:
        FileError: the rows are no plan.
    """
    try:
        return Plan(tuple(_edit_of(row) for row in rows), rows[0]["period"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise FileError(f"the checkpoint holds an edit that is none ({error}): it is broken") from error


def _edit_of(row: Mapping[str, Any]) -> Edit:
    group, channels, why, numbers = row["group"], tuple(row["channels"]), row["why"], row.get("numbers", {})
    if row["kind"] == "prune":
        return Prune(group, channels, why, numbers=numbers)
    if row["kind"] == "merge":
        keep, drop = channels
        return Merge(group, keep, drop, why, numbers)
    (after,) = channels
    return Insert(group, after, why, numbers=numbers)


def _gone(edit: Edit) -> tuple[int, ...]:
    if isinstance(edit, Prune):
        return edit.channels
    return (edit.drop,) if isinstance(edit, Merge) else ()
