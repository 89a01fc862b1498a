"""Attributes of every kind: what refers to the model refers to the copy afterwards, what cannot be copied is shared."""

import functools
import logging
import math
import sys
import threading
import weakref
from collections import OrderedDict, defaultdict
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from compressor.graph.skeleton import skeleton


class Net(nn.Module):
    """One layer, and whatever a test hangs on it as `held`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y

    def twice(self, x: Tensor) -> Tensor:
        return 2 * self.forward(x)


class Slotted:
    __slots__ = ("inner",)

    def __init__(self, inner: object) -> None:
        self.inner = inner


class Closing:
    closed = 0

    def __del__(self) -> None:
        Closing.closed += 1


class Refusing:
    def __deepcopy__(self, memo: object) -> None:
        raise RuntimeError("no copies")


def _generator():
    yield 1


SHARED = {
    "module": lambda: math,
    "lock": threading.Lock,
    "generator": _generator,
    "logger": lambda: logging.getLogger("nets"),
    "file": lambda: sys.__stderr__,
    "pool": lambda: ThreadPoolExecutor(1),
    "class": lambda: nn.ReLU,
    "builtin": lambda: torch.relu,
    "refusing": Refusing,
    "closing": Closing,
    "thread": threading.current_thread,
    "stray reference": lambda: weakref.ref(STRAY),
    "function": lambda: torch.nn.functional.relu,
    "closure": lambda: (lambda scale: lambda x: scale * x)(2),
}
STRAY = Refusing()


@pytest.mark.parametrize("kind", SHARED)
@pytest.mark.parametrize("around", ["alone", "list", "dict", "object"])
def test_what_cannot_be_copied_is_shared_and_what_is_around_it_is_copied(kind, around):
    model, thing = Net(), SHARED[kind]()
    widths = [4, 8]
    inside = {
        "alone": thing,
        "list": [thing, widths],
        "dict": {"thing": thing, "widths": widths},
        "object": SimpleNamespace(thing=thing, widths=widths),
    }[around]
    model.held = inside
    held = skeleton(model).held
    if around == "alone":
        assert held is thing
        return
    assert held is not inside
    found, sizes = {
        "list": lambda: held,
        "dict": lambda: list(held.values()),
        "object": lambda: (held.thing, held.widths),
    }[around]()
    assert found is thing and sizes == widths and sizes is not widths


REFERRING = {
    "method": lambda m: m.twice,
    "method of a layer": lambda m: m.layer.forward,
    "closure": lambda m: lambda x: m.layer(x),
    "closure over a method": lambda m: (lambda call: lambda x: call(x))(m.twice),
    "closure over a list": lambda m: (lambda layers: lambda x: layers[0](x))([m.layer]),
    "closure over a dict": lambda m: (lambda layers: lambda x: layers["a"](x))({"a": m.layer}),
    "closure over a closure": lambda m: (lambda call: lambda x: call(x))(lambda x: m.layer(x)),
    "partial": lambda m: functools.partial(lambda layer, x: layer(x), m.layer),
    "compiled method": lambda m: torch.compile(m.twice, backend="eager"),
    "weak reference": lambda m: (lambda ref: lambda x: ref()(x))(weakref.ref(m.layer)),
    "proxy": lambda m: weakref.proxy(m.layer),
    "default dict": lambda m: functools.partial(lambda layers, x: layers["a"](x), defaultdict(list, a=m.layer)),
    "object": lambda m: functools.partial(lambda held, x: held.layer(x), SimpleNamespace(layer=m.layer)),
    "slots": lambda m: functools.partial(lambda held, x: held.inner(x), Slotted(m.layer)),
    "tuple": lambda m: functools.partial(lambda held, x: held[0][0](x), ((m.layer,), OrderedDict(a=m.layer))),
    "parameter": lambda m: (lambda weight: lambda x: nn.functional.conv2d(x, weight))(m.layer.weight),
}


@pytest.mark.parametrize("kind", REFERRING)
def test_what_refers_to_the_model_refers_to_the_copy(kind):
    model, x = Net().double().eval(), torch.randn(1, 3, 2, 2, dtype=torch.float64)
    model.held = REFERRING[kind](model)
    before = model.held(x)
    copied = skeleton(model, real=True)
    with torch.no_grad():
        copied.layer.weight.zero_()
        if kind != "parameter":
            copied.layer.bias.zero_()
    assert not copied.held(x).any()
    assert torch.equal(model.held(x), before) and before.any()


def test_a_function_that_refers_to_itself_and_to_an_empty_variable_is_copied():
    model = Net()

    def outer():
        def again(x, depth=2):
            return again(x, depth - 1) if depth else model.layer(x)

        def late():
            return never

        model.late = late
        model.held = again
        if not callable(again):
            never = 1

    outer()
    copied = skeleton(model, real=True)
    with torch.no_grad():
        copied.layer.weight.zero_()
        copied.layer.bias.zero_()
    assert not copied.held(torch.ones(1, 3, 2, 2)).any()


def test_own_ways_of_copying_and_making_are_not_asked():
    class Odd(Net):
        def __new__(cls, needed):
            return super().__new__(cls)

        def __init__(self, needed):
            super().__init__()

        def __deepcopy__(self, memo):
            return self

        def __getstate__(self):
            raise RuntimeError("no state")

    model = Odd(1)
    copied = skeleton(model, real=True)
    assert copied is not model and copied.layer is not model.layer
    assert torch.equal(copied.layer.weight, model.layer.weight) and copied.layer.weight is not model.layer.weight


def test_tensors_with_a_history_are_copied_without_it():
    model = Net()
    model.seen = [model.layer(torch.zeros(1, 3, 2, 2))]
    copied = skeleton(model, real=True)
    assert torch.equal(copied.seen[0], model.seen[0]) and not copied.seen[0].requires_grad


def test_a_generator_goes_on_alone():
    model = Net()
    model.random = torch.Generator().manual_seed(3)
    copied = skeleton(model, real=True)
    drawn = torch.rand(3, generator=copied.random)
    assert torch.equal(torch.rand(3, generator=model.random), drawn)


def test_an_object_with_a_finaliser_is_not_closed_with_the_copy():
    model = Net()
    model.held = Closing()
    before = Closing.closed
    skeleton(model)
    assert Closing.closed == before


@pytest.mark.parametrize("part", [False, True])
def test_a_module_compiled_in_place_is_copied_as_it_was(part):
    model = nn.Sequential(Net(), nn.ReLU())
    (model[0] if part else model).compile(backend="eager")
    copied = skeleton(model, real=True)
    with torch.no_grad():
        copied[0].layer.bias.fill_(-99.0)
    assert not copied(torch.ones(1, 3, 2, 2)).any()


def test_a_graph_module_that_cannot_be_copied_as_a_whole_is_copied_in_pieces():
    model = torch.fx.symbolic_trace(Net())
    model.lock = threading.Lock()
    model.meta["lock"] = model.lock
    copied = skeleton(nn.Sequential(model), real=True)
    assert copied[0] is not model and copied[0].layer.weight is not model.layer.weight
    x = torch.ones(1, 3, 2, 2)
    assert torch.equal(copied(x), model(x))
