"""Learning rates against their closed forms, optimizers against their settings."""

import math

import pytest
import torch

from compressor.errors import UsageError
from compressor.training.schedule import lr_at, make_optimizer, set_lr_
from compressor.training.settings import TrainSettings
from tests.training.small import small_net


@pytest.mark.parametrize("first", [0, 50])
def test_cosine_falls_from_full_to_nothing(first):
    settings = TrainSettings(lr=1.0, epochs=10, first_epoch=first)
    rates = [lr_at(settings, first + epoch) for epoch in (0, 2.5, 5, 10)]
    assert rates == pytest.approx([1.0, (1 + math.sqrt(0.5)) / 2, 0.5, 0.0])


def test_warmup_is_linear_and_then_the_schedule_begins():
    settings = TrainSettings(lr=1.0, epochs=10, warmup_epochs=2)
    assert [lr_at(settings, epoch) for epoch in (0.5, 1, 2, 6)] == pytest.approx([0.25, 0.5, 1.0, 0.5])


def test_halving_every_15_epochs_from_the_very_first_goes_on_in_a_later_phase():
    settings = TrainSettings(
        lr=0.025, schedule="step", gamma=0.5, milestones=(15, 30, 45, 60), first_epoch=50, epochs=60
    )
    assert lr_at(settings, 50) == pytest.approx(0.025 / 8)
    assert lr_at(settings, 59.99) == pytest.approx(0.025 / 8)
    assert lr_at(settings, 60) == pytest.approx(0.025 / 16)


def test_steps_without_milestones_lie_at_a_half_and_three_quarters():
    settings = TrainSettings(lr=1.0, schedule="step", epochs=8)
    assert [lr_at(settings, epoch) for epoch in (3.9, 4, 5.9, 6)] == pytest.approx([1, 0.1, 0.1, 0.01])


def test_constant_is_constant():
    assert {lr_at(TrainSettings(lr=0.3, schedule="constant"), epoch / 7) for epoch in range(70)} == {0.3}


OWN = {
    "sgd": (("nesterov", True),),
    "rmsprop": (("alpha", 0.9), ("eps", 1e-7)),
    **dict.fromkeys(("adam", "adamw"), (("betas", (0.99, 0.999)), ("eps", 1e-7))),
}


def test_an_argument_that_the_optimizer_does_not_take_is_one_line():
    settings = TrainSettings(optimizer="sgd", optimizer_arg=(("betas", (0.9, 0.99)),))
    with pytest.raises(UsageError, match=r"^sgd: .*betas") as error:
        make_optimizer(small_net(), settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "kind", "lr"),
    [
        ("sgd", torch.optim.SGD, 0.05),
        ("adam", torch.optim.Adam, 0.001),
        ("adamw", torch.optim.AdamW, 0.001),
        ("rmsprop", torch.optim.RMSprop, 0.001),
    ],
)
def test_optimizer_by_name(name, kind, lr):
    settings = TrainSettings(optimizer=name, optimizer_arg=OWN[name], momentum=0.8, weight_decay=0.01)
    optimizer = make_optimizer(small_net(), settings)
    group = optimizer.param_groups[0]
    assert type(optimizer) is kind
    assert (group["lr"], group["weight_decay"]) == (lr, 0.01)
    expected = {"sgd": {"momentum": 0.8, "nesterov": True}, "rmsprop": {"alpha": 0.9, "eps": 1e-7}}
    for key, value in expected.get(name, {"betas": (0.99, 0.999), "eps": 1e-7}).items():
        assert group[key] == value


def test_frozen_parameters_are_left_to_nobody():
    net = small_net()
    net[0].weight.requires_grad_(False)
    assert all(
        parameter is not net[0].weight for parameter in make_optimizer(net, TrainSettings()).param_groups[0]["params"]
    )


def test_group_keeps_its_own_scale():
    net = small_net()
    optimizer = torch.optim.SGD(
        [{"params": net[0].parameters(), "lr_scale": 0.1}, {"params": net[4].parameters()}], lr=1
    )
    set_lr_(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.5])
