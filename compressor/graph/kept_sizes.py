"""Sizes that a class keeps for later (`num_features`, a block's `in_channels`), for which `forward` does not ask.

An integer counts channels where its name says so and its value is the width of channels in its module: those that enter
the module for `in_channels`, those that leave it for `out_channels`, those last of this width for `num_features`,
which is what a new head reads. Elsewhere it has to be the only kind of channels of this width there.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

from torch import nn

from compressor.graph.channels import Ids
from compressor.graph.resolve import Numbered
from compressor.graph.trace import ModuleCall, TensorRef
from compressor.graph.walk import RawSize, Walk

_WORDS = frozenset(
    """feature features channel channels plane planes inplanes outplanes filter filters width widths hidden embed dim
    dims chs chan chans ch nf inp oup""".split()  # noqa: SIM905 - a list of words
)
_ENTERS, _LEAVES = frozenset({"in", "input", "inp", "inplanes"}), frozenset({"out", "output", "oup", "outplanes"})
_LASTS = frozenset({"feature", "features", "embed", "head"})
_NOTED = 12  # names in the note


def kept_sizes(
    walk: Walk, numbered: Numbered, modules: Mapping[str, nn.Module], known: Iterable[tuple[str, str]]
) -> tuple[list[RawSize], list[str]]:
    """The attributes that follow from channels, and the names of those of which it cannot be told which.

    `known` holds module and attribute of the sizes that `forward` reads.
    """
    found, unclear, taken = [], [], set(known)
    calls: dict[str, ModuleCall] = {}
    for call in walk.trace.calls:
        calls.setdefault(call.module, call)
    for name, call in calls.items():
        asked = [each for each in _integers(modules[name]) if (name, each[0]) not in taken] if name in modules else []
        widths = _Widths(walk, numbered, name, call) if asked else None
        for path, value in asked:
            arrays = widths.of(path, value) if widths else []
            if len(arrays) == 1:
                found.append(RawSize(name, path, arrays[0]))
            elif arrays:
                unclear.append(f"{name}.{path}" if name else path)
    return found, unclear


def note(unclear: list[str]) -> str:
    more = f" and {len(unclear) - _NOTED} more" if len(unclear) > _NOTED else ""
    listed = ", ".join(unclear[:_NOTED]) + more
    return f"kept as they are, since several layers have their width: {listed}"


def _integers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Attributes that may count channels, entries of tuples and lists as "name.0"."""
    for name, held in vars(module).items():
        if name.startswith("_") or _WORDS.isdisjoint(_words(name)):
            continue
        entries = list(enumerate(held)) if type(held) in (tuple, list) else [(None, held)]
        for index, value in entries:
            if type(value) is int and value > 1:
                yield name if index is None else f"{name}.{index}", value


def _words(name: str) -> set[str]:
    return set(re.split(r"[_.\d]+", name.lower()))


class _Widths:
    """The channels that one module sees: those that enter, those that leave, and all in the order they come up."""

    def __init__(self, walk: Walk, numbered: Numbered, name: str, call: ModuleCall) -> None:
        self._numbered = numbered
        self._enters = _of(walk, call.inputs)
        self._leaves = _of(walk, call.outputs)
        prefix = f"{name}." if name else ""
        tracks = [track for outputs in walk.op_outputs[call.start : call.end] for track in outputs]
        parameters = [ids for (tensor, _), ids in walk.ties.blocks.items() if tensor.startswith(prefix)]
        self._inside = [*parameters, *(ids for track in tracks for ids in track.values())]

    def of(self, path: str, value: int) -> list[Ids]:
        """The kinds of channels, each once, that an attribute of this value may count."""
        words = _words(path)
        if words & (_ENTERS | _LEAVES):
            return self._different(self._enters if words & _ENTERS else self._leaves, value)
        kinds = self._different(self._inside, value)
        return kinds[-1:] if words & _LASTS else kinds

    def _different(self, arrays: Iterable[Ids], width: int) -> list[Ids]:
        """By their last appearance."""
        last: dict[int, Ids] = {}
        for ids in arrays:
            if len(ids) == width:
                key = id(self._numbered(ids))
                last.pop(key, None)
                last[key] = ids
        return list(last.values())


def _of(walk: Walk, refs: Iterable[TensorRef]) -> list[Ids]:
    return [ids for ref in refs for ids in walk.track(ref).values()]
