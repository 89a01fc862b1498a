"""Sizes that a class keeps for later (`num_features`, a block's `in_channels`), for which `forward` does not ask.

An integer counts channels where its name says so and its value is the width of channels in its module: those that enter
the module for `in_channels`, those that leave it for `out_channels`, those last of this width for `num_features`,
which is what a new head reads. In a dict that names a module it counts what leaves that one. Elsewhere it has to be the
only kind of channels of this width there.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from compressor.errors import listed
from compressor.graph.attributes import can_write, integers, value_at, words
from compressor.graph.channels import Ids
from compressor.graph.groups import Numbered
from compressor.graph.propagate import Propagation, RawSize
from compressor.graph.trace import ModuleCall, TensorRef

_ENTERS, _LEAVES = frozenset({"in", "input", "inp", "inplanes"}), frozenset({"out", "output", "oup", "outplanes"})
_LASTS = frozenset({"feature", "features", "embed", "head"})
_NOTED = 12  # names in the note


def kept_sizes(
    walk: Propagation, numbered: Numbered, modules: Mapping[str, nn.Module], known: Iterable[tuple[str, str]]
) -> tuple[list[RawSize], list[str]]:
    """The attributes that follow from channels, and notes on those that cannot, or of which it cannot be told which.

    `known` holds module and attribute of the sizes that `forward` reads.
    """
    taken = set(known)
    owned: dict[str, list[Ids]] = {}  # by the module that has them, however far inside
    for (path, _), ids in walk.ties.blocks.items():
        while path:
            path = path.rpartition(".")[0]
            owned.setdefault(path, []).append(ids)
    calls: dict[str, ModuleCall] = {}
    for call in walk.trace.calls:
        calls.setdefault(call.module, call)
    asked: dict[tuple[Any, str], list[_Candidate]] = {}  # by where it stands: what several modules hold is one place
    for name, call in calls.items():
        asked_of = integers(modules[name], widths=True) if name in modules else ()
        paths = [(path, value) for path, value in asked_of if value > 1 and (name, path) not in taken]
        widths = _Widths(walk, numbered, owned.get(name, []), call) if paths else None
        for path, value in paths:
            head, _, rest = path.partition(".")
            held = vars(modules[name])[head]
            arrays = widths.of(path, value, _told(modules[name], path, name, calls)) if widths else []
            place = (id(held), rest) if rest else (name, path)
            asked.setdefault(place, []).append(_Candidate(name, path, held, value, arrays))
    found, unclear, fixed = [], [], []
    for each in asked.values():
        outermost = min(each, key=lambda one: len(one.module))
        called = f"{outermost.module}.{outermost.path}".removeprefix(".")
        said = {id(numbered(one.arrays[0])): one for one in each if len(one.arrays) == 1}
        if len(said) == 1:
            [one] = said.values()
            head, _, rest = one.path.partition(".")
            if rest and not can_write(one.held, rest, one.value + 1):
                fixed.append(called)
                continue
            holders = [n for n, m in modules.items() if vars(m).get(head) is one.held] if rest else [one.module]
            found += [RawSize(holder, one.path, one.arrays[0]) for holder in holders]
        elif any(not walk.is_fixed(ids) for one in each for ids in one.arrays):
            unclear.append(called)
    return found, [*_note("several layers have their width", unclear), *_note("their objects refuse changes", fixed)]


@dataclass(frozen=True)
class _Candidate:
    """An integer that may count channels, and the kinds of channels that it may count."""

    module: str
    path: str
    held: Any  # what the module holds by the first name of the path
    value: int
    arrays: list[Ids]


def _note(reason: str, names: list[str]) -> list[str]:
    return [f"kept as they are, since {reason}: {listed(names, _NOTED)}"] if names else []


def _told(module: nn.Module, path: str, name: str, calls: Mapping[str, ModuleCall]) -> ModuleCall | None:
    """Of a size in a dict that says whose it is, as timm's `feature_info`, the call of that module."""
    around, _, _ = path.rpartition(".")
    whose = value_at(module, f"{around}.module") if around else None
    return calls.get(f"{name}.{whose}" if name else whose) if type(whose) is str else None


class _Widths:
    """The channels that one module sees: those that enter, those that leave, and all in the order they come up."""

    def __init__(self, walk: Propagation, numbered: Numbered, owned: list[Ids], call: ModuleCall) -> None:
        self._walk, self._numbered = walk, numbered
        self._enters = _of(walk, call.inputs)
        self._leaves = _of(walk, call.outputs)
        self._owned = owned
        self._outputs = walk.op_outputs[call.start : call.end]

    @cached_property
    def _inside(self) -> dict[int, list[Ids]]:
        """By their width."""
        found: dict[int, list[Ids]] = {}
        tracks = [track for outputs in self._outputs for track in outputs]
        for ids in (*self._owned, *(ids for track in tracks for ids in track.values())):
            found.setdefault(len(ids), []).append(ids)
        return found

    def of(self, path: str, value: int, told: ModuleCall | None) -> list[Ids]:
        """The kinds of channels, each once, that an attribute of this value may count; those that leave `told`."""
        kinds = self._different(_of(self._walk, told.outputs), value) if told else []
        if kinds:
            return kinds
        named = words(path)
        if named & (_ENTERS | _LEAVES):
            return self._different(self._enters if named & _ENTERS else self._leaves, value)
        kinds = self._different(self._inside.get(value, ()), value)
        return kinds[-1:] if named & _LASTS else kinds

    def _different(self, arrays: Iterable[Ids], width: int) -> list[Ids]:
        """By their last appearance."""
        last: dict[int, Ids] = {}
        for ids in arrays:
            if len(ids) == width:
                key = id(self._numbered(ids))
                last.pop(key, None)
                last[key] = ids
        return list(last.values())


def _of(walk: Propagation, refs: Iterable[TensorRef]) -> list[Ids]:
    return [ids for ref in refs for ids in walk.track(ref).values()]
