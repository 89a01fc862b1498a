"""Whatever a network gives its results in, and whoever keeps a tensor of it: what leaves `forward` keeps its width."""

import collections
import concurrent.futures
import copy
import functools
import io
import itertools
import pickle
import threading
import types
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressor.errors import ModelError
from compressor.graph import capture
from compressor.graph.held import tensors_in, with_tensors

LEFT: list[Any] = []


@dataclass
class Plain:
    logits: Any


@dataclass(frozen=True, slots=True)
class Frozen:
    logits: Any


class Slots:
    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held


class Mapped(collections.abc.Mapping):
    def __init__(self, held: Tensor) -> None:
        self.held = {"logits": held}

    def __getitem__(self, key: str) -> Tensor:
        return self.held[key]

    def __iter__(self) -> Any:
        return iter(self.held)

    def __len__(self) -> int:
        return 1


class Answer(dict):
    pass


class Guarded(dict):
    """A dict that shows nothing of what it holds."""

    def values(self) -> Any:
        return ()

    __iter__ = items = values  # type: ignore[assignment]


class Several(list):
    pass


class Marked(Tensor):
    pass


Pair = collections.namedtuple("Pair", "logits extra")


def circular(t: Tensor) -> Any:
    found = types.SimpleNamespace(held=t)
    found.itself = found
    return found


def attribute_of(holder: Any, t: Tensor) -> Any:
    holder.held = t
    return holder


def promised(kind: Any) -> Any:
    def promise(t: Tensor) -> Any:
        future = kind()
        future.set_result(t)
        return future

    return promise


def generator(t: Tensor) -> Any:
    for factor in (1, 2):
        yield t * factor


def saved(t: Tensor) -> bytes:
    torch.save(t, file := io.BytesIO())
    return file.getvalue()


def elsewhere(compute: Any) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(compute()))
    thread.start()
    thread.join()
    return found


async def coroutine(t: Tensor) -> Tensor:
    return t


CARRIED = {
    "dataclass": Plain,
    "frozen dataclass with slots": Frozen,
    "slots": Slots,
    "mapping": Mapped,
    "dict subclass": lambda t: Answer(logits=t),
    "dict that shows nothing": lambda t: Guarded(logits=t),
    "list subclass": lambda t: Several([t]),
    "attribute of a list": lambda t: attribute_of(Several(), t),
    "named tuple": lambda t: Pair(t, None),
    "set": lambda t: {t},
    "key": lambda t: {t: 1},
    "user dict": lambda t: collections.UserDict(logits=t),
    "chain of maps": lambda t: collections.ChainMap({"logits": t}),
    "read-only mapping": lambda t: types.MappingProxyType({"logits": t}),
    "deque": lambda t: collections.deque([t]),
    "namespace": lambda t: types.SimpleNamespace(logits=t),
    "nested": lambda t: {"a": [Plain(Frozen((t,)))]},
    "circular": circular,
    "tensor's attribute": lambda t: attribute_of(t.sum(), t),
    "tensor subclass": lambda t: t.as_subclass(Marked),
    "distribution": lambda t: torch.distributions.Categorical(logits=t, validate_args=False),
    "packed sequence": lambda t: nn.utils.rnn.pack_sequence([t[0:1], t[1:2]]),
    "closure": lambda t: lambda: t,
    "partial": lambda t: functools.partial(print, t),
    "bound method": lambda t: t.add,
    "generator": generator,
    "map": lambda t: map(torch.neg, [t]),
    "chain": lambda t: itertools.chain([t], [t * 2]),
    "coroutine": coroutine,
    "torch's future": promised(torch.futures.Future),
    "future": promised(concurrent.futures.Future),
    "weak values": lambda t: weakref.WeakValueDictionary(logits=LEFT.append(t) or t),
    "class": lambda t: type("Made", (), {"logits": t}),
    "module": lambda t: attribute_of(nn.Identity(), t),
    "parameter of a module": lambda t: nn.ParameterList([nn.Parameter(t.detach())]),
    "numpy": lambda t: t.numpy(),
    "numpy's copy": lambda t: np.array(t.numpy()),
    "objects in numpy": lambda t: np.array([t, None], dtype=object),
    "numbers": lambda t: t.tolist(),
    "numbers of a copy": lambda t: (t * 2).cpu().tolist(),
    "one number at a time": lambda t: [value.item() for value in t[0]],
    "a number of each place": lambda t: [float(t[0, place]) for place in range(t.shape[1])],
    "its data": lambda t: t.data,
    "parameter": lambda t: nn.Parameter(t),
    "another tensor's data": lambda t: attribute_of(torch.empty_like(t), t).held.data,
    "shallow copy": copy.copy,
    "text": str,
    "pickle": pickle.dumps,
    "file": saved,
    "memory": lambda t: t.untyped_storage(),
    "address": lambda t: t.data_ptr(),
    "number of the class": lambda t: t.argmax(1).tolist(),
    "class and score": lambda t: t.max(1),
    "drawn class": lambda t: torch.multinomial(t.sigmoid(), 1),
    "another thread": lambda t: elsewhere(lambda: t * 2),
    "another thread beside this one": lambda t: (t.sum(), elsewhere(lambda: t * 2)),
    "somebody's list": lambda t: LEFT.append(t) or t.sum(),
}


class Network(nn.Module):
    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.wrap, self.body, self.head = wrap, nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.head(self.body(x).relu().mean((2, 3))))


@pytest.mark.parametrize("name", CARRIED)
def test_what_leaves_forward_keeps_its_width(name: str) -> None:
    channels = capture(Network(CARRIED[name]).eval(), torch.randn(2, 3, 8, 8))
    assert [group.name for group in channels.free] == ["body"] and "head" in channels.frozen
    assert not LEFT, "what the user's own list held is all that it holds"


def test_nested_tensors_are_refused_in_one_line() -> None:
    for layout in (torch.strided, torch.jagged):
        nested = Network(lambda t, layout=layout: torch.nested.as_nested_tensor([t[0], t[1]], layout=layout))
        with pytest.raises(ModelError, match="makes a nested tensor"):
            capture(nested.eval(), torch.randn(2, 3, 8, 8))


class Half(nn.Module):
    """Gives a part of its channels; what is kept of the whole is no more than that the part is a view of it."""

    def __init__(self, keep: bool) -> None:
        super().__init__()
        self.keep, self.body, self.head = keep, nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.head(self.body(x))
        if self.keep:
            LEFT.append(y)
        return y[:, 2:6]


@pytest.mark.parametrize("keep", [False, True])
def test_of_what_an_output_is_a_view_the_rest_is_no_output(keep: bool) -> None:
    channels = capture(Half(keep).eval(), torch.randn(2, 3, 8, 8))
    assert ("still held by something after the run" in channels.frozen.values()) == keep


class Keeping(nn.Module):
    """Keeps a feature map somewhere; the one in between may be cut."""

    def __init__(self, keep: Any) -> None:
        super().__init__()
        self.keep, self.kept = keep, None
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x).relu())
        self.keep(self, y)
        return self.head(y)


@pytest.mark.parametrize(
    ("keep", "reason"),
    [
        (lambda model, y: setattr(model, "kept", y), "kept as the model.kept after the run"),
        (lambda model, y: setattr(model.first, "kept", [y.detach()]), "kept as first.kept after the run"),
        (lambda model, y: LEFT.append(y), "still held by something after the run"),
        (lambda model, y: y.mean((2, 3)).tolist(), "the model reads its values"),
    ],
)
def test_what_is_kept_of_a_run_keeps_its_width_and_says_where(keep: Any, reason: str) -> None:
    model = Keeping(keep).eval()
    groups = {group.name: group.frozen for group in capture(model, torch.randn(2, 3, 8, 8)).groups}
    assert groups == {"first": None, "second": reason, "head": "output of the model"}
    assert model.kept is None and not hasattr(model.first, "kept") and not LEFT


def test_a_hook_that_keeps_features_keeps_their_width() -> None:
    model = Keeping(lambda model, y: None).eval()
    model.first.register_forward_hook(lambda module, inputs, output: LEFT.append(output))
    frozen = capture(model, torch.randn(2, 3, 8, 8)).frozen
    assert set(frozen) == {"first", "head"} and not LEFT


def test_what_nobody_holds_any_more_may_be_cut() -> None:
    """A tensor in a circle of objects, an unused result and a weight that is worked out anew each time."""

    def circle(model: nn.Module, y: Tensor) -> None:
        circular(y)
        y.softmax(-1)

    model = Keeping(circle).eval()
    with pytest.warns(FutureWarning, match="deprecated"):
        torch.nn.utils.weight_norm(model.second)
    assert set(capture(model, torch.randn(2, 3, 8, 8)).frozen) == {"head"}


def test_values_that_leave_an_inner_module_are_seen_in_objects() -> None:
    model = nn.Sequential(Network(Plain), _Open()).eval()
    channels = capture(model, torch.randn(2, 3, 8, 8))
    assert [site.module for site in channels.sites_by_module if site.module == "0"] == ["0"]


class _Open(nn.Module):
    def forward(self, x: Plain) -> Tensor:
        return x.logits


@pytest.mark.parametrize("wrap", [Plain, Slots, lambda t: Pair(t, None), lambda t: Several([t]), circular])
def test_tensors_in_objects_are_found_and_replaced_in_a_copy(wrap: Any) -> None:
    held = torch.ones(2)
    value = wrap(held)
    (found,) = tensors_in(value)
    assert found is held
    copied = with_tensors(value, lambda tensor: tensor.to("meta"))
    assert type(copied) is type(value) and [tensor.is_meta for tensor in tensors_in(copied)] == [True]
    assert tensors_in(value)[0] is held


class Batch:
    def __init__(self, images: Tensor) -> None:
        self.images = images


class TakesObject(nn.Sequential):
    def forward(self, batch: Batch) -> Tensor:
        return super().forward(batch.images)


def test_an_example_may_be_an_object() -> None:
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)
    image = torch.randn(2, 3, 8, 8)
    assert len(capture(TakesObject(*layers).eval(), Batch(image)).free) == 1
