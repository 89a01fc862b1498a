"""Further ways to run a model: other methods that the user names, other draws, the other side of what it decides.

What no run reached is followed by nothing; it keeps its width, and the report names it.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from compressor.errors import ModelError, UsageError, cause, did_you_mean, listed
from compressor.graph.outline import Answer
from compressor.graph.records import TensorRef, Trace
from compressor.graph.skeleton import Replica
from compressor.graph.tensors import named_modules
from compressor.graph.trace import Way, run

Run = tuple[Trace, Way]
Also = Iterable[str] | Mapping[str, Any]
_DRAWS = 8  # seeds that are tried where code decides by a generator
_FLIPS = 6  # readings that are turned round one by one
_MOST_READS = 2_000  # a loop that asks for ever ends here


def entries(model: nn.Module, also: Also, example: Any) -> list[Way]:
    """A way for every method that `also` names, with the example or one of its own.

    Raises:
        UsageError: the model has no such method.
    """
    named = also if isinstance(also, Mapping) else dict.fromkeys((also,) if isinstance(also, str) else also, example)
    ways = [Way(given, entry=name) for name, given in named.items()]
    for way in ways:
        try:
            found = callable(way.called(model))
        except AttributeError:
            found = False
        if not found:
            public = [name for name in dir(type(model)) if not name.startswith("_")]
            raise UsageError(f"also: the model has no method {way.entry!r}{did_you_mean(way.entry, public)}")
    return ways


def entered(replica: Replica, ways: Iterable[Way]) -> list[Run]:
    """A run of every way in evaluation mode, and in training mode where that runs.

    Raises:
        ModelError: a method does not run on the example.
    """
    found = []
    for way in ways:
        trace = run(replica, way)
        if trace.error is not None:
            raise ModelError(f"also: {way.entry} does not run on the example ({cause(trace.error)})")
        trained = replace(way, training=True)
        found += [(trace, way), (run(replica, trained), trained)]
    return [each for each in found if each[0].error is None]


def further(replica: Replica, runs: Sequence[Run]) -> list[Run]:
    """Runs that go through other operators than those given: by other draws, and where something was never used by
    other answers to what the code asks for.
    """
    found = list(runs)
    for trace, way in runs:
        if trace.drew:
            _add(replica, found, ((replace(way, seed=seed), None) for seed in range(1, _DRAWS)))
    if any(trace.reads for trace, _ in runs):
        for trace, way in runs:
            if not unused(replica.tensors, found):
                break
            _add(replica, found, ((way, answer) for answer in _answers(len(trace.reads))))
    return found[len(runs) :]


def _add(replica: Replica, found: list[Run], ways: Iterable[tuple[Way, Answer | None]]) -> None:
    """Run each way; those that do not run, or through operators that are known, are left out."""
    known = [_operators(trace) for trace, _ in found]
    for way, answer in ways:
        trace = run(replica, way, answer)
        if trace.error is None and _operators(trace) not in known:
            known.append(_operators(trace))
            found.append((trace, replace(way, reads=tuple(trace.reads))))


def _operators(trace: Trace) -> list[tuple[str, str]]:
    return [(op.name, op.module) for op in trace.ops]


def _answers(reads: int) -> Iterable[Answer]:
    """All true and large, all false and small, each of the first turned round; then small whole numbers."""
    yield _told(lambda number, value: True if type(value) is bool else value + 1e4)
    yield _told(lambda number, value: False if type(value) is bool else value - 1e4)
    yield from (_turned(number) for number in range(min(reads, _FLIPS)))
    yield from (_whole(number) for number in range(_DRAWS))


def _told(answer: Answer) -> Answer:
    """Of truths and fractions: a whole number may be a size."""
    return _ending(lambda number, value: answer(number, value) if type(value) in (bool, float) else value)


def _turned(at: int) -> Answer:
    opposite: Answer = lambda number, value: not value if type(value) is bool else -value or 1.0  # noqa: E731
    return _told(lambda number, value: opposite(number, value) if number == at else value)


def _whole(to: int) -> Answer:
    return _ending(lambda number, value: value if type(value) is bool else type(value)(to))


def _ending(answer: Answer) -> Answer:
    def tell(number: int, value: Any) -> Any:
        if number > _MOST_READS:
            raise RuntimeError("the code asks for ever")
        return answer(number, value)

    return tell


# Python modules whose code does the same with channels in either mode; what drops out gives what it is given.
_DROPS = frozenset({"torch.nn.modules.dropout", "timm.layers.drop", "torchvision.ops.stochastic_depth"})
MODELESS = _DROPS | {"torch.nn.modules.batchnorm", "torch.nn.modules.instancenorm", "timm.layers.norm_act"}


def same_wiring(one: Trace, other: Trace, modules: Mapping[str, nn.Module]) -> bool:
    """Whether two runs are the same operators of the same modules on the same tensors, for two images or one.

    What counts batches or drops out is left out, and so are the statistics that a batch norm gives.
    """
    return _wiring(one, modules) == _wiring(other, modules)


def _wiring(trace: Trace, modules: Mapping[str, nn.Module]) -> list[Any]:
    gone, given = set[int](), dict[int, int]()  # operators that drop out, and for what they give what they are given
    for call in trace.calls:
        if type(modules.get(call.module)).__module__ in _DROPS and len(call.inputs) == len(call.outputs) == 1:
            gone.update(range(call.start, call.end))
            given[call.outputs[0].index] = given.get(call.inputs[0].index, call.inputs[0].index)
    ops = [op for number, op in enumerate(trace.ops) if number not in gone]
    numbers: dict[int, int] = {}

    def place(ref: TensorRef) -> Any:
        """The number of one of the model's tensors, else in the order in which they come up; a shape without batch."""
        number = given.get(ref.index, ref.index)
        number = number if number < trace.own else numbers.setdefault(number, trace.own + len(numbers))
        return number, ref.shape[:1] if ref.shape[:1] > (2,) else (), ref.shape[1:]

    found: list[Any] = [*map(place, trace.inputs)]
    for op in ops:
        if any(ref.shape for ref in (*op.inputs, *op.outputs)):
            made = op.outputs[:1] if op.operator.kind == "batch norm" else op.outputs
            found += [(op.name, op.module), *map(place, op.inputs), *map(place, made)]
    return [*found, *((where, place(ref)) for ref, where in trace.left), *map(place, trace.outputs)]


def unused(tensors: Mapping[str, Tensor], runs: Iterable[Run]) -> frozenset[str]:
    """Of a model's parameters and buffers, by name, those that no operator of any run read or wrote.

    Single numbers in buffers are left out: batch norm counts its batches there.
    """
    used = {name for trace, _ in runs for name in trace.first_use}
    rest = ((name, tensor) for name, tensor in tensors.items() if name not in used)
    return frozenset(name for name, tensor in rest if tensor.ndim or isinstance(tensor, nn.Parameter))


def idle(model: nn.Module, names: frozenset[str]) -> list[str]:
    """The parameters among `names`, by the outermost modules all of whose parameters they are."""
    if not names:
        return []
    own = [name for name, _ in model.named_parameters()]
    around = {name: _outer(name) for name in own}
    inside = Counter(path for name in own for path in ("", *around[name]))
    missed = Counter(path for name in own if name in names for path in ("", *around[name]))
    whole = {path for path, count in missed.items() if count == inside[path]}
    if "" in whole:
        return [""]
    found = [path for path, _ in named_modules(model) if path in whole and whole.isdisjoint(_outer(path))]
    return [*found, *sorted(name for name in own if name in names and whole.isdisjoint(around[name]))]


def _outer(path: str) -> list[str]:
    """The modules around one."""
    return [*itertools.accumulate(path.split(".")[:-1], "{}.{}".format)]


def beside(model: nn.Module, never: frozenset[str]) -> dict[str, str]:
    """Used modules that stand in a list or dict of modules beside one of their class that no run used -> why what
    joins them to the rest is left as it is: what feeds the one may feed the other.
    """
    modules = dict(named_modules(model)) if never else {}
    idle_ones = [name for name in idle(model, never) if name in modules]
    found = {}
    for name in idle_ones:
        parent = name.rpartition(".")[0]
        if not isinstance(modules.get(parent), nn.ModuleList | nn.ModuleDict):
            continue
        for key, other in modules[parent].named_children():
            path = f"{parent}.{key}" if parent else key
            same = type(other) is type(modules[name]) and _shapes(other) == _shapes(modules[name])
            if same and path not in idle_ones:
                found[path] = f"{name}, which no run used, may be fed by it"
    return found


def left_over(replica: Replica, never: frozenset[str]) -> dict[str, list[str]]:
    """Modules some of whose own tensors no run used, such as the bias of a layer of which only the weight is read."""
    read = {_owner(name) for name in replica.tensors if name not in never}
    found: dict[str, list[str]] = {}
    for name in sorted(never):
        if _owner(name) in read:
            found.setdefault(_owner(name), []).append(name)
    return found


def _owner(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _shapes(module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(parameter.shape)) for name, parameter in module.named_parameters()]


def unreached(model: nn.Module, usually: frozenset[str], never: frozenset[str]) -> Iterator[str]:
    """Names the tensors that the usual runs did not use, and those that none did."""
    unseen = idle(model, never)
    if usually != never and idle(model, usually) != unseen:
        found = idle(model, usually - never)
        yield f"used on other branches than the example takes, which were followed: {listed(found, 12)}"
    if unseen:
        yield (
            f"no run on the example used {listed(unseen, 12)}: kept as they are, and do not fit where what feeds them "
            "was cut; `also` NAME follows other methods of the model"
        )
