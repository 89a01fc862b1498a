"""The multi-model step equals back-propagating the sum, and its options do what they say."""

import copy
import math

import pytest
import torch
from torch.nn import functional

from compressor.errors import UsageError
from compressor.exits.losses import multi_model_step
from compressor.exits.settings import DetachSettings
from tests.exits.nets import detachable, images
from tests.training.small import small_data

LABELS = torch.tensor([0, 1, 2, 3])


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("weights", [(), (1.0, 0.5, 0.25)])
def test_gradients_are_those_of_the_sum(weights):
    model = detachable().double().train()
    whole = copy.deepcopy(model)
    x = images().double()
    loss, right = multi_model_step(small_data(), 2, DetachSettings(loss_weights=weights))(model, x, LABELS)
    outputs = whole(x)
    each = [functional.cross_entropy(output, LABELS) for output in outputs]
    total = sum(weight * part for weight, part in zip(weights or (1.0, 1.0, 1.0), each))
    total.backward()
    assert loss.item() == pytest.approx(total.item(), rel=1e-6)
    assert right == (outputs[0].argmax(1) == LABELS).sum()
    torch.testing.assert_close(gradients(model), gradients(whole))
    torch.testing.assert_close(model.state_dict(), whole.state_dict())


def test_further_outputs_of_the_base_count_three_tenths_each():
    given = [torch.randn(4, 5, requires_grad=True) for _ in range(3)]

    def model(_, exit):
        return tuple(given[:2]) if exit == 0 else given[2]

    loss, right = multi_model_step(small_data(), 1, DetachSettings(loss_weights=(2.0, 0.5)))(model, images(), LABELS)
    found = [each.grad.clone() for each in given]
    losses = [functional.cross_entropy(each, LABELS) for each in given]
    assert loss.item() == pytest.approx((2 * (losses[0] + 0.3 * losses[1]) + 0.5 * losses[2]).item())
    wanted = torch.autograd.grad(sum(losses), given)
    torch.testing.assert_close(found, [2 * wanted[0], 0.6 * wanted[1], 0.5 * wanted[2]])
    assert right == (given[0].argmax(1) == LABELS).sum()


def test_distillation_follows_the_base_and_leaves_it_alone():
    model = detachable().double().train()
    plain, x = copy.deepcopy(model), images().double()
    multi_model_step(small_data(), 2, DetachSettings(distill=1.0, loss_weights=(1, 1, 0)))(model, x, LABELS)
    outputs = plain(x)
    teacher = outputs[0].detach().float()
    loss = functional.cross_entropy(outputs[0], LABELS) + small_data().imitation(outputs[1].float(), teacher, 4.0)
    loss.backward()
    for name, gradient in gradients(plain).items():
        if gradient is not None:
            torch.testing.assert_close(gradients(model)[name], gradient, rtol=1e-4, atol=1e-7)


def test_distillation_loss_is_zero_for_equal_scores_and_by_hand():
    scores, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert small_data().imitation(scores, scores, 3.0).item() == pytest.approx(0, abs=1e-6)
    student = torch.softmax(scores / 2, 1)[0]
    by_hand = 4 * sum(0.5 * math.log(0.5 / each) for each in student.tolist())
    assert small_data().imitation(scores, teacher, 2.0).item() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_weights": (1.0, 1.0)}, "give 3, the base's"),
        ({"loss_weights": (0.0, 1.0, 1.0)}, "above 0"),
        ({"distill": 1.5}, "distill is 1.5"),
        ({"distill_temperature": 0.0}, "distill_temperature is 0"),
    ],
)
def test_options_out_of_range(settings, message):
    with pytest.raises(UsageError, match=message):
        multi_model_step(small_data(), 2, DetachSettings(**settings))
