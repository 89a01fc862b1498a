"""Checkpoint files: whole or refused, never executed, and the one before the last stays."""

import copy
import errno
import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compressor.errors import FileError
from compressor.training import checkpoint
from compressor.training.checkpoint import (
    NAME,
    PREVIOUS,
    compact,
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

CONTENT = {"a": torch.arange(6.0).reshape(2, 3), "b": [1, 2.5, None, True, "x"], "c": {"d": (3, b"y")}, 7: {}}


def test_content_comes_back(tmp_path):
    write_checkpoint(tmp_path, CONTENT)
    content = read_checkpoint(tmp_path / NAME)
    assert torch.equal(content.pop("a"), CONTENT["a"])
    assert content == {key: value for key, value in CONTENT.items() if key != "a"}


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
    write_checkpoint(tmp_path, {"number": 1})
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

    def full(*arguments: object) -> None:
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


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    canary = tmp_path / "canary"

    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {canary}",)

    buffer = io.BytesIO()
    torch.save({"model": Hostile()}, buffer)
    for payload in (buffer.getvalue(), pickle.dumps(Hostile())):
        digest = checkpoint.hashlib.sha256(payload).hexdigest().encode()
        (tmp_path / NAME).write_bytes(b"compressor checkpoint 1 " + digest + b"\n" + payload)
        with pytest.raises(FileError, match="plain data"):
            read_checkpoint(tmp_path / NAME)
    assert not canary.exists()


@pytest.mark.parametrize(
    "value", [np.float64(1), {1, 2}, object(), {"a": [np.int64(3)]}, {1.5: 2}, nn.Parameter(torch.ones(1))]
)
def test_what_could_not_be_read_back_is_not_written(tmp_path, value):
    with pytest.raises(AssertionError, match="checkpoint"):
        write_checkpoint(tmp_path, {"value": value})
    assert list(tmp_path.iterdir()) == []


def test_ordered_dicts_and_random_states_are_plain(tmp_path):
    from compressor.training.randomness import random_states

    write_checkpoint(tmp_path, {"random": random_states(), "ordered": OrderedDict(a=1)})
    read_checkpoint(tmp_path / NAME)


def test_view_is_saved_without_what_lies_behind_it():
    large = torch.zeros(1000, 10)
    assert compact(large[:3]).untyped_storage().nbytes() == 120
    assert compact(large) is not None
    assert compact(large).data_ptr() == large.data_ptr()


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
