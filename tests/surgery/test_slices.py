"""Weights, gradients and optimizer state after a plan, each against a loop over filters."""

import copy

import pytest
import torch
from torch import Tensor, nn

from compressor.graph import Channels, capture
from compressor.surgery import Insert, Merge, Plan, Prune, operate_
from tests.networks import Residual


def after_a_backward(build: type[torch.optim.Optimizer] = torch.optim.Adam) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Residual()
    optimizer = build(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        model(model.example()).square().mean().backward()
        optimizer.step()
    return model, optimizer


def plan_for(channels: Channels) -> Plan:
    """Prune, merge and insert in one group."""
    ids = channels.group("a1").ids.tolist()
    return Plan((Prune("a1", (ids[0],), "t"), Merge("a1", ids[1], ids[3], "t"), Insert("a1", ids[4], "t")))


def rows(tensor: Tensor, copied: bool) -> Tensor:
    """Of what makes `a1`: without row 0, row 1 the mean of 1 and 3, and a newcomer at the end, a copy or zero."""
    last = tensor[4] if copied else torch.zeros_like(tensor[4])
    return torch.stack([(tensor[1] + tensor[3]) / 2, tensor[2], tensor[4], last])


def columns(tensor: Tensor) -> Tensor:
    """Of what reads it: the sum, and zeros for the newcomer."""
    return torch.stack([tensor[:, 1] + tensor[:, 3], tensor[:, 2], tensor[:, 4], torch.zeros_like(tensor[:, 4])], 1)


MAKERS = ("a1.weight", "a1.bias", "an.weight", "an.bias")


def test_weights_follow_a_plan() -> None:
    model, _ = after_a_backward()
    before = copy.deepcopy(model.state_dict())
    channels = capture(model, model.example())
    operate_(model, plan_for(channels), channels)
    for name, value in model.state_dict().items():
        if name in (*MAKERS, "an.running_mean", "an.running_var"):
            torch.testing.assert_close(value, rows(before[name], True))
        else:
            torch.testing.assert_close(value, columns(before[name]) if name == "a2.weight" else before[name])


def test_gradients_follow_a_plan() -> None:
    model, _ = after_a_backward()
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    assert all(gradient.any() for gradient in before.values())
    channels = capture(model, model.example())
    operate_(model, plan_for(channels), channels)
    for name, parameter in model.named_parameters():
        assert parameter.grad.shape == parameter.shape
        wanted = rows(before[name], False) if name in MAKERS else before[name]
        torch.testing.assert_close(parameter.grad, columns(wanted) if name == "a2.weight" else wanted)


def test_parameters_without_a_gradient_get_none() -> None:
    model, _ = after_a_backward()
    model.zero_grad(set_to_none=True)
    channels = capture(model, model.example())
    operate_(model, plan_for(channels), channels)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("build", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad])
def test_optimizer_state_follows_a_plan(build: type[torch.optim.Optimizer]) -> None:
    model, optimizer = after_a_backward(build)
    before = copy.deepcopy({name: optimizer.state[p] for name, p in model.named_parameters()})
    channels = capture(model, model.example())
    operate_(model, plan_for(channels), channels, optimizer)
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            wanted = before[name][key]
            if torch.is_tensor(wanted) and wanted.ndim:
                wanted = rows(wanted, False) if name in MAKERS else wanted
                wanted = columns(wanted) if name == "a2.weight" else wanted
            torch.testing.assert_close(value, wanted)


def test_a_newcomer_can_share_its_masters_columns_by_halves() -> None:
    model, _ = after_a_backward()
    channels = capture(model, model.example())
    before = model.a2.weight.detach().clone()
    operate_(model, Plan((Insert("a1", int(channels.group("a1").ids[1]), "t", columns="split"),)), channels)
    halves = before[:, 1] / 2
    wanted = torch.stack([before[:, 0], halves, halves, *before[:, 2:].unbind(1)], 1)
    assert torch.equal(model.a2.weight, wanted)
