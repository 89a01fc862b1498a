"""Try an edit on shapes alone: halve every free group of a copy, or let it grow, run it, and see where its operators
give other shapes than the map predicts.

A size written into the user's code (`x.view(b, 24, 784)`, a stored `groups`) shows as an operator that fails or
whose output has another shape than the map predicts. If an integer attribute of the running module holds that size,
the edit is told to keep it true; otherwise the channels that meet at that operator are frozen.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.errors import cause
from compressor.graph.attributes import put_, write_
from compressor.graph.channels import Counts, Group, Ids, Key, Size
from compressor.graph.propagate import Propagation, RawSize, Unions, where
from compressor.graph.records import Found, argument, dimension
from compressor.graph.skeleton import Replica
from compressor.graph.trace import Op, Ran, Trace, Way, outline

Copies = NDArray[np.int64]  # of every identity in a trial: 0 where it is removed, 2 where it stands twice


@dataclass(frozen=True)
class Mismatch:
    """The operator at which an edited model no longer does what the map predicts."""

    walk: Propagation
    op: int
    reason: str
    copies: Copies  # in the trial
    asked: tuple[tuple[int, int, int], ...] = ()  # (output, dimension, size) that the code wants instead


def half(groups: tuple[Group, ...], count: int, least: Mapping[str, int] | None = None) -> Copies:
    """The first trial: about half of every free group stays, of a different number in each.

    `least` says of how many groups more than one channel stays.
    """
    copies = np.ones(count, dtype=np.int64)
    generator = np.random.default_rng(0)
    for turn, group in enumerate(groups):
        if group.frozen is None:
            stay = 1 if least is None else least.get(group.name, 1)
            leave = min(group.size - stay, max(1, group.size // 2 + turn % 3 - 1))
            copies[generator.choice(group.ids, leave, replace=False)] = 0
    return copies


def uneven(groups: tuple[Group, ...], count: int, seed: int = 1) -> Copies:
    """The second: of some groups all stay, of others few, so that no two agree by chance."""
    copies = np.ones(count, dtype=np.int64)
    generator = np.random.default_rng(seed)
    for group in groups:
        if group.frozen is None:
            leave = int(generator.integers(0, max(2, group.size * 3 // 4)))
            copies[generator.choice(group.ids, leave, replace=False)] = 0
    return copies


def grown(groups: tuple[Group, ...], count: int) -> Copies:
    """The third: a newcomer in every group that may grow, and in every other one of them a second."""
    copies = np.ones(count, dtype=np.int64)
    for turn, group in enumerate(group for group in groups if group.frozen is None and group.prune_only is None):
        copies[group.ids[: 1 + turn % 2]] = 2
    return copies


@contextmanager
def edited(replica: Replica, identities: Mapping[Key, Ids], sizes: Iterable[Size], copies: Copies) -> Iterator[Replica]:
    """The replica with so many of every channel, its data meaningless; as it was afterwards."""
    counted = Counts(copies)
    changes: dict[str, dict[int, Copies]] = {}
    for (name, dim), ids in identities.items():
        if counted.of(ids) != len(ids):  # a trial removes or adds, never both
            changes.setdefault(name, {})[dim] = copies[ids]
    whole = {name: replica.tensors[name].data for name in changes}
    values = dict(replica.values.held)
    blanks: dict[Any, Tensor] = {}
    for name, dims in changes.items():
        tensor = replica.tensors[name]
        tensor.data = _blank(tensor, dims, blanks) if tensor.is_meta else _taken(tensor.data, dims)
        if id(tensor) in values:
            blank, data = values[id(tensor)]
            replica.values.held[id(tensor)] = blank, _taken(data, dims)
    counts = [(replica.modules[size.module], size.attribute, counted.of(size.ids), len(size.ids)) for size in sizes]
    changed = [(module, path, now) for module, path, now, before in counts if now != before]
    heads = dict.fromkeys((module, path.partition(".")[0]) for module, path, _ in changed)
    kept = [(module, head, getattr(module, head)) for module, head in heads]
    write_(changed)
    try:
        yield replica
    finally:
        replica.values.held = values
        for name, data in whole.items():
            replica.tensors[name].data = data
        for module, attribute, value in kept:
            put_(module, attribute, value)


def _blank(tensor: Tensor, dims: Mapping[int, Copies], known: dict[Any, Tensor]) -> Tensor:
    """The same without data; tensors of one shape share theirs."""
    shape = tuple(int(dims[dim].sum()) if dim in dims else size for dim, size in enumerate(tensor.shape))
    if (shape, tensor.dtype) not in known:
        known[shape, tensor.dtype] = torch.empty(shape, dtype=tensor.dtype, device="meta")
    return known[shape, tensor.dtype]


def _taken(data: Tensor, dims: Mapping[int, Copies]) -> Tensor:
    """The data with so many of every position of some dimensions."""
    for dim, times in dims.items():
        data = data.index_select(dim, torch.from_numpy(np.repeat(np.arange(len(times)), times)).to(data.device))
    return data


def mismatch(
    replica: Replica, way: Way, walk: Propagation, copies: Copies, roots: Ids, ties: Unions
) -> Mismatch | None:
    """Run an edited copy and compare it, operator by operator, with what the map predicts; None when all agree.

    Copies are left out of the comparison: whether a reshape copies depends on sizes.
    """
    left = _Left(copies, roots, ties)
    run = outline(replica, replace(way, found=_found(walk, left)))
    error = run.error
    ours = [number for number, op in enumerate(walk.trace.ops) if not op.operator.incidental]
    theirs = [op for op in run.ops if not op.operator.incidental]
    for number, after in zip(ours, theirs, strict=False):
        why = _difference(walk, number, after, left)
        if why is not None:
            if error is not None and after is theirs[-1] and not after.shapes:
                why = _failure(walk.trace.ops[number], after, error)
            asked = tuple(each for each in _asked(walk, number, after) if not left.agrees(walk, number, *each))
            return Mismatch(walk, number, f"{_place(walk, number)} {why}", copies, asked)
    if error is None and len(theirs) == len(ours) and run.gave == walk.trace.gave:
        return None
    number = ours[min(len(theirs), len(ours) - 1)]
    why = f"does not run with other numbers of channels ({cause(error)})" if error is not None else _OTHERS
    if error is None and len(theirs) == len(ours):
        why = "comes before results of other shapes, by operators that are not seen"
    return Mismatch(walk, number, f"{_place(walk, number)} {why}", copies)


def _place(walk: Propagation, number: int) -> str:
    op = walk.trace.ops[number]
    return f"{op.name} in {where(op)}"


def _found(walk: Propagation, left: "_Left") -> tuple[tuple[str, Found], ...]:
    """What operators found on data in features of which no channel is gone, such as which boxes remain.

    The trial takes it as it is: its own weights mean nothing. What does not come from the input may be a size.
    """
    if not walk.trace.found:
        return ()
    features = {ref.index for ref in walk.trace.inputs}
    told = []
    for op, touched, found in zip(walk.trace.ops, walk.op_inputs, walk.trace.found, strict=True):
        seen = bool(touched) or any(ref.index in features for ref in op.inputs)
        if seen:
            features.update(ref.index for ref in op.outputs)
        if not op.operator.incidental:
            told.append((op.name, found if seen and all(left.of(ids) == len(ids) for ids in touched) else ()))
    return tuple(told)


_WRITTEN = "has a size written into the code"
_ELSEWHERE = "takes a size from something else"
_OTHERS = "is another operator once channels are removed"


def _failure(before: Op, after: Ran, error: Exception) -> str:
    """Why an operator ended a run: the same sizes are asked for as before, or torch says it."""
    return _WRITTEN if _same_sizes(before, after) else f"does not run with other numbers of channels ({cause(error)})"


def _same_sizes(before: Op, after: Ran) -> bool:
    """Whether an operator that takes sizes was given the same ones."""
    return (before.operator.sized or before.operator.kind == "reshape") and all(
        now in (None, tuple(was) if isinstance(was, list) else was)
        for was, now in zip(before.args, after.args, strict=False)
    )


def _asked(walk: Propagation, number: int, after: Ran) -> Iterator[tuple[int, int, int]]:
    """The sizes of an operator's outputs in a trial; of one that failed, those that it was asked for."""
    op = walk.trace.ops[number]
    if after.shapes:
        for output, (ref, shape) in enumerate(zip(op.outputs, after.shapes, strict=False)):
            if len(ref.shape) == len(shape):
                yield from ((output, dim, size) for dim, size in enumerate(shape))
    elif op.operator.kind == "reshape":
        yield from ((0, dim, size) for dim, size in enumerate(_list(after)) if dim < len(op.outputs[0].shape))
    elif argument(op, "split_sizes") is not None:
        dim = dimension(op, op.args[0])
        yield from ((output, dim, size) for output, size in enumerate(_list(after)) if output < len(op.outputs))


def _list(after: Ran) -> tuple[int, ...]:
    return after.args[1] if len(after.args) > 1 and isinstance(after.args[1], tuple) else ()


class _Left(Counts):
    """How many of an array's channels, and which positions, there are in a trial."""

    def __init__(self, copies: Copies, roots: Ids, ties: Unions) -> None:
        super().__init__(copies[roots])
        self._ties = ties
        self._marked: Ids | None = None

    def loose(self, ids: Ids | None) -> bool:
        """Whether these are positions of a tensor of any size, which nothing that depends on their number has read."""
        if ids is None or not self._ties.made[ids].all():
            return False
        if self._marked is None:
            marks = [mark for mark, _ in (*self._ties.frozen, *self._ties.prune_only)]
            self._marked = np.unique(np.concatenate([mark.ravel() for mark in marks])) if marks else ids[:0]
        return not np.isin(ids, self._marked).any()

    def agrees(self, walk: Propagation, number: int, output: int, dim: int, size: int) -> bool:
        """Whether a size of an operator's output is as predicted."""
        ref, ids = walk.trace.ops[number].outputs[output], walk.op_outputs[number][output].get(dim)
        return size == (ref.shape[dim] if ids is None else self.of(ids)) or self.loose(ids)

    def before(self, ids: Ids) -> list[int]:
        """For every bound between positions, how many are in front of it."""
        return [0, *np.cumsum(self.times[ids]).tolist()]


def _difference(walk: Propagation, number: int, after: Ran, left: _Left) -> str | None:
    """In what an operator of an edited run is not what the map predicts."""
    before = walk.trace.ops[number]
    if before.name.removeprefix("_unsafe_") != after.name.removeprefix("_unsafe_"):
        return _OTHERS
    if len(before.outputs) != len(after.shapes):
        return _WRITTEN
    for output, (ref, found) in enumerate(zip(before.outputs, after.shapes, strict=True)):
        if len(ref.shape) != len(found):
            return _WRITTEN
        for dim, size in enumerate(found):
            if not left.agrees(walk, number, output, dim, size):
                return _WRITTEN if size == ref.shape[dim] or _same_sizes(before, after) else _ELSEWHERE
    if before.operator.kind == "slice" and argument(before, "step") == 1 and _moved(before, after, walk, left):
        return _WRITTEN
    if torch.Tag.pointwise in before.func.tags and _numbers(before.args) != _numbers(after.args):
        return "computes with the number of channels"
    return None


def _numbers(args: Iterable[Any]) -> list[int | float]:
    return [value for value in args if type(value) in (int, float)]


def _moved(before: Op, after: Ran, walk: Propagation, left: _Left) -> bool:
    """Whether a slice takes other channels than it took: right in size but shifted."""
    dim = before.args[1] if len(before.args) > 1 else 0
    ids = walk.track(before.args[0]).get(dim % len(before.args[0].shape))
    if ids is None:
        return False
    position = left.before(ids)
    return [position[bound] for bound in _bounds(before, len(ids))] != _bounds(after, position[-1])


def _bounds(op: Op | Ran, size: int) -> list[int]:
    start, end, _ = slice(*[*op.args[2:4], None, None][:2]).indices(size)
    return [start, max(start, end)]


def parts(op: Op, walk: Propagation) -> Ids | None:
    """The dimension that a slice or a split cuts, as a matrix: a row for each equal part that the bounds count in."""
    slices = op.operator.kind == "slice"
    if not slices and argument(op, "split_sizes") is None:
        return None
    ids = walk.track(op.args[0]).get(dimension(op, op.args[0]))
    if ids is None:
        return None
    unit = math.gcd(len(ids), *(_bounds(op, len(ids)) if slices else op.args[1]))
    return ids.reshape(-1, unit) if 1 < unit < len(ids) else None


def same_operators(one: Propagation, other: Propagation) -> bool:
    """Whether channels go through the same operators of the same modules; element-wise ones (dropout) are left out."""
    return _passed(one) == _passed(other)


def _passed(walk: Propagation) -> list[tuple[str, str]]:
    ops = zip(walk.trace.ops, walk.op_inputs, strict=True)
    return [(op.name, op.module) for op, touched in ops if not (_is_plain(op) or all(map(walk.is_made, touched)))]


def _is_plain(op: Op) -> bool:
    return op.operator.incidental or op.operator.kind in ("creation", "dropout") or torch.Tag.pointwise in op.func.tags


def asks_for_sizes(walk: Propagation) -> bool:
    """Whether an operator takes a size that the code may have from anywhere, other than to flatten."""
    return any(
        (touched and (op.operator.sized or _unflattens(op)))
        or (op.operator.makes and len(op.args) > len(op.inputs) and max(op.outputs[0].shape[1:], default=1) > 1)
        for op, touched in zip(walk.trace.ops, walk.op_inputs, strict=True)
    )


def _unflattens(op: Op) -> bool:
    return op.operator.kind == "reshape" and len(op.outputs[0].shape) >= len(op.args[0].shape)


def same_code(op: int, walk: Propagation, model: nn.Module) -> list[int]:
    """The operators that stand at the same place in a run of a module of the same class, the given one included.

    A module without submodules is a layer like any other: what it objects to depends on its input, not on its code.
    """
    if not list(model.get_submodule(walk.trace.ops[op].module).children()):
        return [op]
    classes = {name: type(module) for name, module in model.named_modules()}
    turn: dict[str, int] = {}
    places: dict[tuple[type, int, str], list[int]] = {}
    asked: list[int] = []
    for number, one in enumerate(walk.trace.ops):
        turn[one.module] = turn.get(one.module, -1) + 1
        place = places.setdefault((classes[one.module], turn[one.module], one.name), [])
        place.append(number)
        if number == op:
            asked = place
    return asked


def earlier_in_module(op: int, walk: Propagation, model: nn.Module) -> list[list[Ids]]:
    """What meets at this operator and at every one before it in the same call of its module, submodules included; of a
    layer also at those behind.
    """
    module = walk.trace.ops[op].module
    first = op
    while first and inside(walk.trace.ops[first - 1].module, module):
        first -= 1
    return walk.op_inputs[first : _call(op, walk, model).stop]


def _call(op: int, walk: Propagation, model: nn.Module) -> range:
    """The operators of one call of a layer, which may look at all its sizes before it begins, as recurrent ones do; of
    a module with submodules only the operator itself.
    """
    module = walk.trace.ops[op].module
    first, end = op, op + 1
    if not list(model.get_submodule(module).children()):
        while first and walk.trace.ops[first - 1].module == module:
            first -= 1
        while end < len(walk.trace.ops) and walk.trace.ops[end].module == module:
            end += 1
    return range(first, end)


def inside(module: str, outer: str) -> bool:
    return module == outer or not outer or module.startswith(outer + ".")


def _parts(op: Op, walk: Propagation) -> list[Ids | None]:
    dim = dimension(op, op.args[0])
    return [walk.track(ref).get(dim) for ref in op.outputs]


Named = tuple[tuple[str, int], ...]  # paths of attributes, and which of the channels of that number each counts


def stored_sizes(
    number: int, walk: Propagation, name: str, module: nn.Module, model: nn.Module
) -> dict[Named, list[RawSize]]:
    """Attributes of a running module, called `name`, that may hold the sizes this operator used.

    By their paths and which of the channels of that number they count: alternatives to try, simplest first, of at most
    one attribute for each size, or one list that holds several.
    """
    op, held = walk.trace.ops[number], vars(module)
    nearest = sorted(_call(number, walk, model), key=lambda other: abs(other - number), reverse=True)
    counted: dict[int, list[Ids]] = {}  # the likeliest first: what the operator gives comes before what it is given
    for ids in (ids for each in nearest for ids in _counted(walk.trace.ops[each], walk)):
        alike = counted.setdefault(len(ids), [])
        counted[len(ids)] = [ids, *(other for other in alike if other is not ids)][:_MOST_ALIKE]
    lists = {path: value for path, value in held.items() if isinstance(value, list | tuple)}
    exact = [
        [(f"{path}.{index}", 0, ids) for index, ids in enumerate(_parts(op, walk)) if ids is not None]
        for path, value in lists.items()
        if list(value) == argument(op, "split_sizes")
    ]
    entries = [
        [(f"{path}.{index}", 0, counted[entry][0]) for index, entry in enumerate(value) if _is_size(entry, counted)]
        for path, value in lists.items()
    ]
    sizes = {path: value for path, value in held.items() if _is_size(value, counted)}
    mixed = [chosen for most in range(1, _MOST_ALIKE + 1) for chosen in _chosen(sizes, counted, most)]
    found: dict[Named, list[RawSize]] = {}
    simple = lambda each: (sum(at for _, at, _ in each), len(each))  # noqa: E731
    for each in (*exact, *sorted(filter(None, (*entries, *mixed)), key=simple)):
        found.setdefault(tuple(one[:2] for one in each), [RawSize(name, path, ids) for path, _, ids in each])
    return found


def _chosen(
    sizes: Mapping[str, int], counted: Mapping[int, list[Ids]], most: int
) -> Iterator[list[tuple[str, int, Ids]]]:
    """At most one attribute for each size, for one of the `most` likeliest arrays of so many channels."""
    choices = [
        [None, *((path, at, ids) for at, ids in enumerate(alike[:most]) for path in sizes if sizes[path] == size)]
        for size, alike in counted.items()
    ]
    for chosen in itertools.islice(itertools.product(*choices), _MOST_ALTERNATIVES):
        yield [each for each in chosen if each is not None]


_MOST_ALIKE = 2  # as where a layer has as many inputs as outputs
_MOST_ALTERNATIVES = 64


def _is_size(value: object, counted: dict[int, list[Ids]]) -> bool:
    return type(value) is int and value > 1 and value in counted


def _counted(op: Op, walk: Propagation) -> Iterator[Ids]:
    refs = [*(ref for ref in op.inputs if ref.index not in walk.trace.parameters), *op.outputs]
    for ref in refs:
        yield from walk.track(ref).values()


def first_use(trace: Trace, tensors: dict[str, int]) -> dict[str, int]:
    """For every parameter, when the network first reads it: the order in which groups are named and listed."""
    order: dict[str, int] = {}
    for op in trace.ops:
        for ref in op.inputs:
            name = trace.parameters.get(ref.index)
            if name is not None:
                order.setdefault(name, len(order))
    return order | {name: len(order) + place for name, place in tensors.items() if name not in order}
