"""What stands at an operator to which a trial objects: the same code in other modules, what met before it, and the
attributes that may hold the sizes it used.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn

from compressor.graph.channels import Ids
from compressor.graph.propagate import Propagation, RawSize
from compressor.graph.records import Ran, argument, dimension
from compressor.graph.trace import Op


def bounds(op: Op | Ran, size: int) -> list[int]:
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
    unit = math.gcd(len(ids), *(bounds(op, len(ids)) if slices else op.args[1]))
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


def same_reshapes(
    op: int, walk: Propagation, model: nn.Module, walks: Iterable[Propagation]
) -> Iterator[tuple[int, Propagation, int]]:
    """Of the same reshape in every module of the same class, in all walks: which walk, the walk itself, its number.

    A module without submodules is a layer like any other, whose numbers are its own.
    """
    module = walk.trace.ops[op].module
    kinds = {name: type(each) for name, each in model.named_modules() if any(each.children())}
    turn = [each for each in walk.choices if walk.trace.ops[each].module == module].index(op)
    for run, other in enumerate(walks):
        of_module: dict[str, list[int]] = {}
        for each in other.choices:
            of_module.setdefault(other.trace.ops[each].module, []).append(each)
        for name, numbers in of_module.items():
            alike = name == module or (module in kinds and kinds.get(name) is kinds[module])
            if alike and turn < len(numbers):
                yield run, other, numbers[turn]


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
