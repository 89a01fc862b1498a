"""Checkpoint files: whole or refused, never executed, and the one before the last stays."""

import copy
import errno
import math
import os
import pickle
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compressor.errors import FileError
from compressor.loading import checkpoint
from compressor.training.checkpoint import (
    NAME,
    PREVIOUS,
    has_checkpoint,
    latest_checkpoint,
    model_state,
    optimizer_state,
    read_checkpoint,
    restore_model_,
    restore_optimizer_,
    write_checkpoint,
)
from tests.training.small import assert_same, small_net, weights

CONTENT = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": [1, 2.5, None, True, "x", -0.0, 1e-320, 0.1 + 0.2, float("inf"), -float("inf"), 2**63],
    "c": {"d": (3, [(), {"$e": "\n\x1b"}]), 1.5: {(1, 2): {3}}, "": torch.Size([4])},
    7: {},
}


def test_content_comes_back(tmp_path):
    write_checkpoint(tmp_path, CONTENT)
    content = read_checkpoint(tmp_path / NAME)
    assert repr(content) == repr(CONTENT)  # types and the sign of zero as well
    write_checkpoint(tmp_path, {"nan": float("nan")})
    assert math.isnan(read_checkpoint(tmp_path / NAME)["nan"])


TENSORS = {
    "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "ambiguous strides": torch.randn(8, 4, 1, 1).to(memory_format=torch.channels_last),
    "transposed": torch.randn(3, 5).T,
    "slice": torch.randn(1000, 10)[:3],
    "columns": torch.randn(6, 10)[:, ::2],
    "expanded": torch.randn(3, 1).expand(3, 4),
    "number": torch.tensor(2.5, dtype=torch.float64),
    "empty": torch.zeros(0, 3),
    "bits": torch.tensor([True, False]),
    "half": torch.randn(3).bfloat16(),
    "not finite": torch.tensor([float("inf"), -0.0]),
}


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_tensors_come_back_with_their_strides(tmp_path, tensor):
    write_checkpoint(tmp_path, {"x": [tensor]})
    [again] = read_checkpoint(tmp_path / NAME)["x"]
    assert again.dtype == tensor.dtype and torch.equal(again, tensor)
    dense = torch.empty_like(tensor).stride() == tensor.stride()
    assert again.stride() == (tensor.stride() if dense else tensor.contiguous().stride())
    assert (tmp_path / NAME).stat().st_size < 2000  # without what is behind a view


def test_tensors_that_share_memory_are_kept_once(tmp_path):
    large = torch.randn(10_000)
    write_checkpoint(tmp_path, {"a": large, "b": [large, large.view(100, 100)], "c": large[:100]})
    content = read_checkpoint(tmp_path / NAME)
    assert content["a"] is content["b"][0]
    assert torch.equal(content["b"][1], large.view(100, 100)) and torch.equal(content["c"], large[:100])
    assert 80_000 < (tmp_path / NAME).stat().st_size < 82_000


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_nested_comes_back(tmp_path, seed):
    source = random.Random(seed)

    def value(depth: int) -> Any:
        kinds = [None, True, source.randrange(-(2**60), 2**60), source.gauss(0, 1e9), '$x\u2028"\\', float("inf")]
        if depth == 0:
            return source.choice(kinds)
        inner = [value(depth - 1) for _ in range(source.randrange(4))]
        keys = source.sample(["a", "$b", "$tensor", 1, -2, None, True, 2.5, (1,), ""], len(inner))
        return source.choice([inner, tuple(inner), dict(zip(keys, inner, strict=True))])

    content = {"x": value(5), "y": value(4)}
    write_checkpoint(tmp_path, content)
    assert repr(read_checkpoint(tmp_path / NAME)) == repr(content)


def test_last_two_stay_and_nothing_else(tmp_path):
    for number in range(4):
        write_checkpoint(tmp_path, {"number": number})
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([NAME, PREVIOUS])
    assert read_checkpoint(tmp_path / NAME) == {"number": 3}
    assert read_checkpoint(tmp_path / PREVIOUS) == {"number": 2}


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: content[:500] + bytes([content[500] ^ 1]) + content[501:],
        lambda content: content[:30] + b"0" * 10 + content[40:],
        lambda content: b"\0" * len(content),
    ],
    ids=["half", "empty", "last bit", "a bit", "checksum", "zeros"],
)
def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
    write_checkpoint(tmp_path, {"number": 0})
    write_checkpoint(tmp_path, {"number": 1, "tensor": torch.ones(200)})
    file = tmp_path / NAME
    file.write_bytes(damage(file.read_bytes()))
    content, warnings = latest_checkpoint(tmp_path)
    assert content == {"number": 0}
    assert len(warnings) == 1
    assert str(file) in warnings[0]
    (tmp_path / PREVIOUS).write_bytes(b"x")
    with pytest.raises(FileError, match="no checkpoint to go on from"):
        latest_checkpoint(tmp_path)


def test_missing_newest_is_no_loss(tmp_path):
    """Killed between the two renames."""
    write_checkpoint(tmp_path, {"number": 0})
    (tmp_path / NAME).rename(tmp_path / PREVIOUS)
    assert has_checkpoint(tmp_path)
    assert latest_checkpoint(tmp_path) == ({"number": 0}, [])


def test_empty_folder_has_none(tmp_path):
    assert not has_checkpoint(tmp_path)
    with pytest.raises(FileError, match="start the run again"):
        latest_checkpoint(tmp_path)


@pytest.mark.parametrize("fails", ["fsync", "write"])
def test_full_disk_leaves_the_last_checkpoint_and_no_scraps(tmp_path, monkeypatch, fails):
    write_checkpoint(tmp_path, {"number": 0})

    def full(*arguments: object, **keywords: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if fails == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "open", full)
    with pytest.raises(FileError, match="No space left on device"):
        write_checkpoint(tmp_path, {"number": 1})
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / NAME) == {"number": 0}
    assert [file.name for file in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize(
    "value",
    [np.float64(1), object(), {"a": [np.int64(3)]}, b"x", nn.Parameter(torch.ones(1)), 2**64, torch.float32],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path, value):
    with pytest.raises(TypeError, match=r"state\.value.* is a"):
        write_checkpoint(tmp_path, {"value": value})
    assert list(tmp_path.iterdir()) == []


def test_ordered_dicts_and_random_states_are_plain(tmp_path):
    from compressor.graph.neutral import random_states

    states = {"random": random_states(), "ordered": OrderedDict(b=1, a=2)}
    write_checkpoint(tmp_path, states)
    assert repr(read_checkpoint(tmp_path / NAME)["random"]) == repr(states["random"])
    assert list(read_checkpoint(tmp_path / NAME)["ordered"]) == ["b", "a"]


LIES = {
    "another version": lambda text, tensors: ({"version": 2}, tensors),
    "not JSON": lambda text, tensors: (VERSION, {"json": to_bytes("{")}),
    "not a dict": lambda text, tensors: (VERSION, {"json": to_bytes("[1]")}),
    "no JSON": lambda text, tensors: (VERSION, {}),
    "half a character": lambda text, tensors: (VERSION, {"json": to_bytes('{"a":"\\ud800"}')}),
    "constant": lambda text, tensors: (VERSION, {"json": to_bytes('{"a":NaN}')}),
    "endless number": lambda text, tensors: (VERSION, {"json": to_bytes('{"a":' + "9" * 5000 + "}")}),
    "nested without end": lambda text, tensors: (VERSION, {"json": to_bytes('{"a":' + "[" * 10**5)}),
    "deep": lambda text, tensors: (VERSION, {"json": to_bytes('{"a":' + "[" * 900 + "]" * 900 + "}")}),
    "unknown form": lambda text, tensors: (VERSION, {"json": to_bytes('{"a":{"$call":"os.system"}}')}),
    "two forms": lambda text, tensors: (VERSION, {"json": to_bytes('{"a":{"$tuple":[],"$set":[]}}')}),
    "missing tensor": lambda text, tensors: (VERSION, {"json": to_bytes('{"a":{"$tensor":"b"}}')}),
    "wide strides": lambda text, tensors: (
        VERSION, {"json": to_bytes('{"a":{"$tensor":["b",[1000000]]}}'), "b": torch.zeros(2)}
    ),
    "negative strides": lambda text, tensors: (
        VERSION, {"json": to_bytes('{"a":{"$tensor":["b",[-1,5]]}}'), "b": torch.zeros(2, 2)}
    ),
    "numbers for JSON": lambda text, tensors: (VERSION, {"json": torch.randn(3)}),
}  # fmt: skip
VERSION = {"version": 1}


def to_bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_files_that_lie_are_one_line(tmp_path, lie):
    checkpoint.write(tmp_path / NAME, "compressor run", *lie("{}", {}))
    with pytest.raises(FileError) as caught:
        read_checkpoint(tmp_path / NAME)
    assert str(caught.value).isprintable()


def test_model_and_pickle_are_not_the_state_of_a_run(tmp_path):
    checkpoint.write(tmp_path / "model", "compressor", VERSION, {})
    canary = tmp_path / "canary"

    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {canary}",)

    torch.save({"model": Hostile()}, tmp_path / "torch")
    (tmp_path / "pickle").write_bytes(pickle.dumps(Hostile()))
    for name in ("model", "torch", "pickle", "missing", "."):
        with pytest.raises(FileError):
            read_checkpoint(tmp_path / name)
    assert not canary.exists()


class Counting(nn.Linear):
    """Keeps how often it ran beside its weights, and something that no file holds."""

    calls, held = 0, None

    def get_extra_state(self) -> Any:
        return {"calls": self.calls, "of": (self.weight.sum().detach(),)} if self.held is None else self.held

    def set_extra_state(self, state: Any) -> None:
        self.calls = state["calls"]


def test_extra_state_comes_back_where_a_file_can_hold_it(tmp_path):
    net, other = nn.Sequential(Counting(2, 2)), nn.Sequential(Counting(2, 2))
    net[0].calls = 7
    write_checkpoint(tmp_path, {"model": model_state(net)})
    restore_model_(other, read_checkpoint(tmp_path / NAME)["model"])
    assert other[0].calls == 7
    net[0].held = object()
    assert model_state(net)["extra"] == {}
    restore_model_(other, model_state(net))
    assert other[0].calls == 7


def test_buffers_outside_the_state_dict_come_back():
    def net(value: float) -> nn.Module:
        module = nn.Linear(2, 2)
        module.register_buffer("mean", torch.full((2,), value), persistent=False)
        return module

    one, other = net(1), net(2)
    state = model_state(one)
    one.register_buffer("made_by_a_run", torch.ones(3), persistent=False)
    restore_model_(other, state)
    assert torch.equal(other.mean, one.mean)
    restore_model_(other, model_state(one))
    restore_model_(one, state)


def test_model_comes_back_with_strides_and_parameter_objects():
    net = small_net(seed=1).to(memory_format=torch.channels_last)
    other = small_net(seed=2)
    parameters = list(other.parameters())
    restore_model_(other, model_state(net))
    assert_same(weights(net), weights(other))
    assert [id(parameter) for parameter in other.parameters()] == [id(parameter) for parameter in parameters]
    assert other[4].weight.stride() == net[4].weight.stride()


def test_tied_parameters_stay_tied():
    def tied(seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        first, second = nn.Linear(3, 3), nn.Linear(3, 3)
        second.weight = first.weight
        return nn.Sequential(first, second)

    net, other = tied(0), tied(1)
    restore_model_(other, model_state(net))
    assert other[0].weight is other[1].weight
    assert torch.equal(other[1].weight, net[0].weight)


def test_state_of_another_model_is_refused():
    with pytest.raises(FileError, match=r"does not fit the model, such as at 8\.bias"):
        restore_model_(small_net(classes=5), model_state(small_net()))


@pytest.mark.parametrize(
    "kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop], ids=["sgd", "adam", "rmsprop"]
)
def test_optimizer_comes_back_by_names(kind):
    """Into groups of another order, with one parameter that never had a gradient."""

    def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        net[4](net[0](torch.ones(2, 1, 8, 8))).square().sum().backward()
        optimizer.step()

    keywords = {"lr": 0.01, "momentum": 0.9} if kind is torch.optim.SGD else {"lr": 0.01}
    net = small_net()
    optimizer = kind([{"params": net[4].parameters(), "lr_scale": 0.5}, {"params": net[0].parameters()}], **keywords)
    step(net, optimizer)
    other = small_net()
    restore_model_(other, model_state(net))
    restored = kind([{"params": other[0].parameters()}, {"params": other[4].parameters()}], **keywords)
    restore_optimizer_(restored, copy.deepcopy(optimizer_state(optimizer, net)), other)
    assert restored.param_groups[0]["lr_scale"] == 0.5
    step(net, optimizer)
    step(other, restored)
    assert_same(weights(net), weights(other))
