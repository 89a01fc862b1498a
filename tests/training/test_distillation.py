"""The distilling step against its formula."""

import copy

import pytest
import torch
from torch.nn import functional

from compressor.errors import UsageError
from compressor.training.distillation import distilling
from compressor.training.settings import DistillSettings
from tests.training.small import assert_same, small_data, small_net, weights


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 1, 8, 8, generator=generator), torch.randint(10, (12,), generator=generator)


def test_the_loss_is_cross_entropy_and_softened_divergence(batch):
    x, y = batch
    teacher, student = small_net(seed=1, dropout=0.0), small_net(seed=2, dropout=0.0)
    loss, right = distilling(teacher, DistillSettings(True, 0.3, 4.0), small_data())(student, x, y)
    scores, wanted = student(x), teacher(x)
    softened, target = (scores / 4).softmax(1), (wanted / 4).softmax(1)
    divergence = (target * (target.log() - softened.log())).sum(1).mean() * 16
    expected = 0.7 * functional.cross_entropy(scores, y) + 0.3 * divergence
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert right == (scores.argmax(1) == y).sum() and not loss.requires_grad


def test_a_network_that_agrees_with_its_teacher_learns_nothing_from_it(batch):
    x, y = batch
    student = small_net(dropout=0.0).eval()
    distilling(copy.deepcopy(student), DistillSettings(True, 1.0, 2.0), small_data())(student, x, y)
    assert max(float(p.grad.abs().max()) for p in student.parameters()) < 1e-6


def test_the_teacher_does_not_change(batch):
    x, y = batch
    teacher, student = small_net(seed=1), small_net(seed=2)
    teacher.train()
    before = weights(teacher)
    distilling(teacher, DistillSettings(True, 0.5, 4.0), small_data())(student.train(), x, y)
    assert_same(weights(teacher), before)
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())


@pytest.mark.parametrize(("weight", "temperature"), [(1.5, 4.0), (-0.1, 4.0), (0.5, 0.0)])
def test_values_out_of_range_are_refused(weight, temperature):
    with pytest.raises(UsageError, match="distill_"):
        distilling(small_net(), DistillSettings(True, weight, temperature), small_data())
