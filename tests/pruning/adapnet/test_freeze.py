"""Freezing: bit for bit, momentum included, and nothing else stands still."""

import pytest
import torch
from torch import nn

from compressor.graph.capture import capture
from compressor.graph.channels import Channels
from compressor.pruning.adapnet.freeze import hold


@pytest.fixture
def model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.Conv2d(6, 4, 1),
        nn.Flatten(),
        nn.Linear(64, 5),
    )


def captured(model: nn.Module) -> Channels:
    return capture(model, torch.zeros(2, 3, 4, 4))


def step_(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(8, 3, 4, 4)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_frozen_filters_stay_bit_for_bit_and_the_others_train(model: nn.Sequential, kind: str) -> None:
    made = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[kind]
    optimizer = made(model.parameters(), lr=0.1, weight_decay=0.01, **({"momentum": 0.8} if kind == "sgd" else {}))
    step_(model, optimizer)
    channels = captured(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = {
        (name, key): value.clone()
        for name, p in model.named_parameters()
        for key, value in optimizer.state[p].items()
        if isinstance(value, torch.Tensor) and value.shape == p.shape
    }
    group = channels.group("0")
    held = hold(model, optimizer, channels, {"0": group.ids[[1, 4]].tolist()})
    for _ in range(3):
        step_(model, optimizer)
        held.restore_()
    makers = ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]
    for name, p in model.named_parameters():
        if name not in makers:
            assert not torch.equal(p[..., 0], before[name][..., 0])
            continue
        assert torch.equal(p[[1, 4]], before[name][[1, 4]])
        assert not torch.equal(p[[0, 2, 3, 5]], before[name][[0, 2, 3, 5]])
        for key in optimizer.state[p]:
            if (name, key) in state:
                assert torch.equal(optimizer.state[p][key][[1, 4]], state[name, key][[1, 4]])


def test_the_readers_of_a_frozen_filter_go_on_learning(model: nn.Sequential) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    channels = captured(model)
    held = hold(model, optimizer, channels, {"0": channels.group("0").ids.tolist()})
    before = model[4].weight.detach().clone()
    step_(model, optimizer)
    held.restore_()
    assert not torch.equal(model[4].weight, before)


def test_rows_are_found_again_after_the_memory_moved(model: nn.Sequential) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    channels = captured(model)
    held = hold(model, optimizer, channels, {"0": channels.group("0").ids[[0]].tolist()})
    kept = model[0].weight.detach()[0].clone()
    model.to(memory_format=torch.channels_last)
    model[0].weight.data = model[0].weight.data.clone()
    step_(model, optimizer)
    held.restore_()
    assert torch.equal(model[0].weight[0], kept)


def test_nothing_frozen_costs_nothing(model: nn.Sequential) -> None:
    hold(model, None, captured(model), {}).restore_()
