"""Whatever a forward keeps from one run to the next, every run of a capture is the same one, and nothing is left."""

import functools
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressor.graph import capture
from compressor.graph.neutral import seeded
from compressor.graph.skeleton import Replica
from compressor.graph.state import State, _refill
from compressor.graph.trace import Way, run

CACHE: dict[Any, Tensor] = {}
LAST: Tensor | None = None
SOURCE = np.random.default_rng(3)
X = torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize("held", [["a", "b"], ["a", "c"], ["c", "b"], ["a"], ["a", "b", "c"], []])
def test_a_list_or_a_dict_holds_again_what_it_held(held: list[str]) -> None:
    changed, mapped = list(held), dict.fromkeys(held, 1) | dict.fromkeys(held[:1], 2)
    _refill(changed, list, ["a", "b"])
    _refill(mapped, dict, {"a": 1, "b": 1})
    assert changed == ["a", "b"] and mapped == {"a": 1, "b": 1} and list(mapped) == ["a", "b"]


class Network(nn.Module):
    """`between` stands between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 1)
        self.prepare()

    def prepare(self) -> None:
        pass

    def between(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.between(self.first(x))).relu())


def ramp(like: Tensor) -> Tensor:
    return torch.linspace(1, 2, like.shape[-1], device=like.device).exp()


@functools.lru_cache
def cached_ramp(count: int) -> Tensor:
    return torch.linspace(1, 2, count).exp()


class Attribute(Network):
    def between(self, y: Tensor) -> Tensor:
        if not hasattr(self, "ramp"):
            self.ramp = ramp(y)
        return y * self.ramp


class Depthwise(Attribute):
    """What a trial changes on the module (`groups`) is not put back with what the forward left there."""

    def prepare(self) -> None:
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=8)


class InnerAttribute(Network):
    def between(self, y: Tensor) -> Tensor:
        if not hasattr(self.first, "ramp"):
            self.first.ramp = ramp(y)
        return y * self.first.ramp


class Buffer(Network):
    def between(self, y: Tensor) -> Tensor:
        if "ramp" not in self._buffers:
            self.register_buffer("ramp", ramp(y))
        return y * self.ramp


class Mapping(Network):
    def prepare(self) -> None:
        self.ramps: dict[Any, Tensor] = {}

    def between(self, y: Tensor) -> Tensor:
        if y.shape[-1] not in self.ramps:
            self.ramps[y.shape[-1]] = ramp(y)
        return y * self.ramps[y.shape[-1]]


class Registry(dict):
    """A dict whose methods are not those of a dict."""

    def get(self, key: str) -> Any:
        raise LookupError(key)

    update = clear = values = items = get  # type: ignore[assignment]


class Queue(list):
    def extend(self, one: Any, two: Any) -> None:
        raise LookupError

    clear = extend  # type: ignore[assignment]


class Overridden(Network):
    def __init__(self) -> None:
        super().__init__()
        self.registry, self.queue = Registry(), Queue()

    def between(self, y: Tensor) -> Tensor:
        first = "shape" not in self.registry
        self.registry["shape"] = y.shape
        self.queue.append(1)
        return y * 2 if first and len(self.queue) == 1 else y.flatten(1).unflatten(1, y.shape[1:])


class OfTheClass(Network):
    ramps: dict[Any, Tensor] = {}  # noqa: RUF012 - the fault under test
    ramp: Tensor | None = None

    def between(self, y: Tensor) -> Tensor:
        if y.shape[-1] not in self.ramps:
            self.ramps[y.shape[-1]] = type(self).ramp = ramp(y)
        return y * self.ramps[y.shape[-1]]


class Global(Network):
    def between(self, y: Tensor) -> Tensor:
        global LAST
        if LAST is None:
            LAST = CACHE["ramp"] = ramp(y)
        return y * CACHE["ramp"]


class CachedFunction(Network):
    @functools.cached_property
    def two(self) -> Tensor:
        return torch.full((), 2.0).exp()

    def between(self, y: Tensor) -> Tensor:
        return y * cached_ramp(y.shape[-1]) * self.two


class Counting(Network):
    def prepare(self) -> None:
        self.runs, self.seen = 0, []
        self.register_buffer("counted", torch.zeros((), dtype=torch.int64))

    def between(self, y: Tensor) -> Tensor:
        self.runs += 1
        self.counted += 1
        self.seen.append(y.shape)
        return y.relu() if self.runs == len(self.seen) == int(self.counted) == 1 else y.tanh().exp()


def counting_function() -> Any:
    runs, seen = 0, []

    def act(y: Tensor, again: list[int] = []) -> Tensor:  # noqa: B006 - the fault under test
        nonlocal runs
        runs += 1
        seen.append(runs)
        again.append(runs)
        act.runs = getattr(act, "runs", 0) + 1
        return y.relu() if runs == len(seen) == len(again) == act.runs == 1 else y

    return act


class Closure(Network):
    def prepare(self) -> None:
        self.act = counting_function()

    def between(self, y: Tensor) -> Tensor:
        return self.act(y)


class Slot:
    __slots__ = ("runs",)

    def __init__(self) -> None:
        self.runs = 0


class Helper:
    runs = 0

    def __init__(self) -> None:
        self.runs, self.slot = 0, Slot()

    def __call__(self, y: Tensor) -> Tensor:
        self.runs += 1
        Helper.runs += 1
        self.slot.runs += 1
        return y.relu() if self.runs == Helper.runs == self.slot.runs == 1 else y


class Held(Network):
    def prepare(self) -> None:
        self.helper = Helper()

    def between(self, y: Tensor) -> Tensor:
        return self.helper(y)


class Drawing(Network):
    """From global generators, from generators that it holds and from one of its module's."""

    def prepare(self) -> None:
        self.sources = random.Random(1), np.random.default_rng(2), torch.Generator().manual_seed(0)

    def between(self, y: Tensor) -> Tensor:
        python, numpys, torchs = self.sources
        draws = [random.random(), np.random.rand(), torch.rand(()), torch.rand((), device=y.device).item()]  # noqa: NPY002
        draws += [python.random(), numpys.random(), torch.rand(1, generator=torchs), SOURCE.random()]
        for draw in draws:
            y = y.relu() if draw < 0.5 else y.tanh().exp()
        return y


class Rebinding(Network):
    def prepare(self) -> None:
        self.register_buffer("grown", torch.zeros(1))

    def between(self, y: Tensor) -> Tensor:
        self.grown.data = torch.cat([self.grown, self.grown.new_ones(1)])
        for _ in range(len(self.grown)):
            y = y + 1
        return y


class Reading(Network):
    """Values that no channel goes into, of every kind; on shapes alone none of them has data."""

    def prepare(self) -> None:
        self.strides, self.scale = torch.tensor([1.0, 2.0]), nn.Parameter(torch.tensor(2.0))
        self.register_buffer("sizes", torch.tensor([8, 8]))

    def between(self, y: Tensor) -> Tensor:
        for stride in self.strides:
            y = y * stride.item() + float(stride)
        height, width = self.sizes.tolist()
        y = y[:, :, : int(self.sizes[0]), :width].view(len(y), -1, height, int(self.sizes.numpy()[0]))
        for number in torch.arange(3, device=y.device).mul(2).tolist():
            y = y + number
        picked = torch.tensor([1, 0, 1], device=y.device)
        if self.scale > 1 and picked.any() and torch.equal(picked, y.new_tensor([1, 0, 1], dtype=torch.int64)):
            y = y.relu()
        steps = torch.zeros(4, device=y.device)
        steps[1:3] = 1
        return y * len(picked.nonzero()) * steps.sum().cpu().numpy().item()


class Forgetting(Network):
    """A cache of weights by device, which training mode empties, as in LeViT."""

    def prepare(self) -> None:
        self.biases, self.cache = nn.Parameter(torch.rand(3, 8)), {}
        self.channels = 8

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        if mode and self.cache:
            self.cache = {}
        return self

    def between(self, y: Tensor) -> Tensor:
        biases = self.biases[[0, 2]].sum(0) if self.training else self.cache.get(str(y.device))
        if biases is None:
            biases = self.cache[str(y.device)] = self.biases[[0, 2]].sum(0)
        return (y + biases).view(len(y), self.channels, 8, 8)  # a size that is learnt by a second trial


KINDS = [
    *(
        Attribute,
        Depthwise,
        InnerAttribute,
        Buffer,
        Mapping,
        Overridden,
        OfTheClass,
        Global,
        CachedFunction,
        Counting,
        Closure,
    ),
    *(Held, Drawing, Rebinding, Reading, Forgetting),
]


def state() -> Any:
    generators = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    sizes = len(CACHE), len(OfTheClass.ramps), cached_ramp.cache_info().currsize
    return generators, sizes, LAST, OfTheClass.ramp, Helper.runs, SOURCE.bit_generator.state


def attributes(model: nn.Module) -> Any:
    held = {f"{name}.{key}": value for name, module in model.named_modules() for key, value in vars(module).items()}
    seen = {key: list(value) for key, value in held.items() if isinstance(value, dict | list | set)}
    return {key: id(value) for key, value in held.items()}, seen, {k: v.tolist() for k, v in model.named_buffers()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_run_of_a_capture_starts_alike_and_leaves_nothing(kind: type[Network]) -> None:
    model = kind().eval()
    before, held = state(), attributes(model)
    channels = capture(model, X)
    assert [group.name for group in channels.free] == (["first"] if kind is Depthwise else ["first", "second"])
    assert not channels.notes, "and in training mode as well"
    assert state() == before and attributes(model) == held


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not Rebinding])  # whose every run is another
def test_a_model_that_was_run_before_is_captured_alike(kind: type[Network]) -> None:
    """Its caches are full."""
    model = kind().eval()
    new = capture(model, X)
    with torch.no_grad():
        model(X)
    assert [group.name for group in capture(model, X).free] == [group.name for group in new.free]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_run_of_the_model_itself_changes_is_put_back(kind: type[Network]) -> None:
    model = kind().eval()
    before, held = state(), attributes(model)
    with State(model.modules()).kept(), seeded(0), torch.no_grad():
        model(X)
        model(X)
    assert state() == before and attributes(model) == held


class Hidden(Slot):
    """A slot under the name of a property, as the constants of mpmath have."""

    __slots__ = ("new",)

    @property
    def runs(self) -> tuple[int]:
        return (1,)

    @runs.setter
    def runs(self, value: int) -> None:
        raise AttributeError("no setter")

    def __init__(self) -> None:
        Slot.__dict__["runs"].__set__(self, 0)


class Hiding(Network):
    def prepare(self) -> None:
        self.helper = Hidden()

    def between(self, y: Tensor) -> Tensor:
        self.helper.new = y.shape
        Slot.__dict__["runs"].__set__(self.helper, 7)
        return y.relu()


def test_slots_are_put_back_where_a_class_below_has_something_else_of_their_name() -> None:
    model = Hiding().eval()
    assert not capture(model, X).notes
    with State(model.modules()).kept(), torch.no_grad():
        model(X)
    assert Slot.__dict__["runs"].__get__(model.helper) == 0 and not hasattr(model.helper, "new")


def test_what_a_reading_network_reads_is_known_on_shapes_alone() -> None:
    assert run(Replica(Reading().eval()), Way(X)).error is None


class Overwriting(Network):
    """What it reads is no constant any more: features went into it."""

    def prepare(self) -> None:
        self.register_buffer("flag", torch.zeros(4))

    def between(self, y: Tensor) -> Tensor:
        self.flag[:2] += y.abs().sum() + 1
        return y.relu() if self.flag[0] > 0 else y.tanh().exp()


def test_what_features_were_written_into_is_read_on_data() -> None:
    model = Overwriting().eval()
    ran: list[str] = []
    tanh = Tensor.tanh
    Tensor.tanh = lambda self: (ran.append("tanh"), tanh(self))[1]  # type: ignore[method-assign]
    try:
        assert len(capture(model, X).free) == 2
    finally:
        Tensor.tanh = tanh  # type: ignore[method-assign]
    assert not ran


def test_a_map_does_not_depend_on_chance() -> None:
    found = set()
    for seed in range(6):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)  # noqa: NPY002
        found.add(tuple(group.name for group in capture(Drawing(), X).free))
    assert found == {("first", "second")}
