"""Try an edit on shapes alone: halve every free group of a copy, run it, and see where the model's own code objects.

A size written into the user's code (`x.view(b, 24, 784)`, a stored `groups`) shows as an operator that fails or
whose output has another shape than the map predicts. If an integer attribute of the running module holds that size,
the edit is told to keep it true; otherwise the channels that meet at that operator are frozen.
"""

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compressor.graph.channels import Group, Ids, Key, Size
from compressor.graph.trace import Op, Trace, run
from compressor.graph.walk import Track, Walk

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Objection:
    """The operator at which an edited model no longer does what the map predicts."""

    op: int
    reason: str


def half(groups: tuple[Group, ...], count: int) -> Mask:
    """Which identities stay in the trial: about half of every free group, of a different number in each."""
    kept = np.ones(count, dtype=bool)
    generator = np.random.default_rng(0)
    for turn, group in enumerate(groups):
        if group.frozen is None:
            leave = min(group.size - 1, max(1, group.size // 2 + turn % 3 - 1))
            kept[generator.choice(group.ids, leave, replace=False)] = False
    return kept


def edited(skeleton: nn.Module, identities: dict[Key, Ids], sizes: tuple[Size, ...], kept: Mask) -> nn.Module:
    """A copy of the skeleton with only the kept channels, its data meaningless."""
    model = copy.deepcopy(skeleton)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for (name, dim), ids in identities.items():
        if not kept[ids].all():
            rows = torch.from_numpy(np.flatnonzero(kept[ids])).to(tensors[name].device)
            tensors[name].data = tensors[name].data.index_select(dim, rows)
    for size in sizes:
        write_size(model.get_submodule(size.module), size, int(np.count_nonzero(kept[size.ids])))
    return model


def write_size(module: nn.Module, size: Size, value: int) -> None:
    """Set the integer, or the entry of a tuple or list, that `size` names."""
    if size.index is None:
        setattr(module, size.attribute, value)
        return
    held = getattr(module, size.attribute)
    entries = list(held)
    entries[size.index] = value
    setattr(module, size.attribute, type(held)(entries) if isinstance(held, tuple | list) else tuple(entries))


def objection(model: nn.Module, example: Any, walk: Walk, kept: Mask, roots: Ids, training: bool) -> Objection | None:
    """Run an edited copy and compare it, operator by operator, with what the map predicts; None when all agree.

    Copies are left out of the comparison: whether a reshape copies depends on sizes.
    """
    seen = run(model, example, training=training)
    ours = [number for number, op in enumerate(walk.trace.ops) if op.name not in _LAYOUT]
    theirs = [op for op in seen.ops if op.name not in _LAYOUT]
    for number, after in zip(ours, theirs, strict=False):
        before = walk.trace.ops[number]
        where = f"{before.name} in {before.module or 'the model'}"
        if before.name.removeprefix("_unsafe_") != after.name.removeprefix("_unsafe_"):
            return Objection(number, f"{where} does not run once channels are removed")
        predicted = [_predicted(ref.shape, track, kept, roots) for ref, track in _outputs(walk, number)]
        if predicted != [ref.shape for ref in after.outputs] or _moved(before, after, walk, kept, roots):
            return Objection(number, f"{where} has a size written into the code")
    if seen.error is None and len(theirs) == len(ours):
        return None
    number = ours[min(len(theirs), len(ours) - 1)]
    before = walk.trace.ops[number]
    return Objection(number, f"{before.name} in {before.module or 'the model'} has a size written into the code")


_LAYOUT = ("clone", "detach")  # whether these run depends on sizes, or on what ran before


def _outputs(walk: Walk, number: int) -> Iterator[tuple[Any, Track]]:
    return zip(walk.trace.ops[number].outputs, walk.op_outputs[number], strict=True)


def _predicted(shape: tuple[int, ...], track: Track, kept: Mask, roots: Ids) -> tuple[int, ...]:
    return tuple(
        int(np.count_nonzero(kept[roots[track[dim]]])) if dim in track else size for dim, size in enumerate(shape)
    )


def _moved(before: Op, after: Op, walk: Walk, kept: Mask, roots: Ids) -> bool:
    """Whether a slice takes other channels than it took: right in size but shifted."""
    if before.name != "slice":
        return False
    dim = before.args[1] if len(before.args) > 1 else 0
    ids = walk.track(before.args[0]).get(dim % len(before.args[0].shape))
    if ids is None:
        return False
    position = np.concatenate([[0], np.cumsum(kept[roots[ids]])])
    old, new = _bounds(before, len(ids)), _bounds(after, int(position[-1]))
    return [int(position[b]) for b in old] != new


def _bounds(op: Op, size: int) -> list[int]:
    start, end, _ = slice(*[*op.args[2:4], None, None][:2]).indices(size)
    return [start, max(start, end)]


def same_code(op: int, walk: Walk, model: nn.Module) -> list[int]:
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


def earlier_in_module(op: int, walk: Walk) -> list[list[Ids]]:
    """What meets at this operator and at every one before it in the same call of its module, submodules included."""
    module = walk.trace.ops[op].module
    first = op
    while first and _inside(walk.trace.ops[first - 1].module, module):
        first -= 1
    return walk.op_inputs[first : op + 1]


def _inside(module: str, outer: str) -> bool:
    return module == outer or not outer or module.startswith(outer + ".")


def stored_sizes(op: Op, walk: Walk, model: nn.Module) -> list[list[tuple[str, int | None, Ids]]]:
    """Attributes of the running module that may hold the sizes this operator used: alternatives to try, simplest first.

    An alternative names at most one attribute for each size, or one list that holds several.
    """
    held = vars(model.get_submodule(op.module))
    counted = {len(ids): ids for ids in _counted(op, walk)}
    lists: list[list[tuple[str, int | None, Ids]]] = [
        [(name, index, counted[entry]) for index, entry in enumerate(value) if _is_size(entry, counted)]
        for name, value in held.items()
        if isinstance(value, list | tuple)
    ]
    choices = [
        [None, *(name for name, value in held.items() if value == size and _is_size(value, counted))]
        for size in counted
    ]
    mixed: list[list[tuple[str, int | None, Ids]]] = [
        [(name, None, counted[held[name]]) for name in names if name is not None]
        for names in itertools.islice(itertools.product(*choices), _MOST_ALTERNATIVES)
    ]
    return sorted((found for found in (*lists, *mixed) if found), key=len)


_MOST_ALTERNATIVES = 64


def _is_size(value: object, counted: dict[int, Ids]) -> bool:
    return type(value) is int and value > 1 and value in counted


def _counted(op: Op, walk: Walk) -> Iterator[Ids]:
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
