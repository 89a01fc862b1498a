"""How the models of a detachable network learn together: losses, shared gradients, the paper's momentum."""

import copy
import math

import pytest
import torch
from torch.nn import functional

from compressor.errors import UsageError
from compressor.exits.learning import damped_sgd, gradient_shares, l2_of, multi_model_step, shared_gradient_step
from compressor.exits.settings import DetachSettings
from tests.exits.nets import FLAT, SHAPE, Residual, detachable, images, nested, perceptron
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
        ({"distill_temperature": 0.0}, "distill_temperature is 0"),
    ],
)
def test_options_out_of_range(settings, message):
    with pytest.raises(UsageError, match=message):
        multi_model_step(small_data(), 2, DetachSettings(**settings))


DIGITS = torch.tensor([0, 1, 2, 3])
PLAIN = {"keep_input": 1.0, "keep_hidden": 1.0, "l2": 0.0}


def by_model(model, x) -> list[dict[str, torch.Tensor]]:
    """The gradient of every model's own loss, by the base's names."""
    found = []
    for exit in range(model.exits + 1):
        alone = copy.deepcopy(model)
        functional.cross_entropy(alone(x, exit=exit), DIGITS).backward()
        found.append({name: p.grad for name, p in alone.base.named_parameters() if p.grad is not None})
    return found


def run(model, settings):
    x = images(FLAT).double()
    shared_gradient_step(small_data(), model, settings)(model, x, DIGITS)
    return by_model(model, x), {name: p.grad for name, p in model.base.named_parameters()}


def test_layers_take_the_mean_of_their_two_smallest_models():
    settings = DetachSettings(method="nsn", **PLAIN)
    model = nested(perceptron(layers=3), **PLAIN).double()
    each, ours = run(model, settings)
    for kind in ("weight", "bias"):
        torch.testing.assert_close(ours[f"1.{kind}"], each[0][f"1.{kind}"])
        torch.testing.assert_close(ours[f"3.{kind}"], (each[0][f"3.{kind}"] + each[1][f"3.{kind}"]) / 2)
        torch.testing.assert_close(ours[f"5.{kind}"], (each[1][f"5.{kind}"] + each[2][f"5.{kind}"]) / 2)
        torch.testing.assert_close(ours[f"7.{kind}"], (each[2][f"7.{kind}"] + each[3][f"7.{kind}"]) / 2)


def test_two_models_share_the_output_layer():
    settings = DetachSettings(method="nsn", **PLAIN)
    each, ours = run(nested(perceptron(layers=1), **PLAIN).double(), settings)
    torch.testing.assert_close(ours["3.weight"], (each[0]["3.weight"] + each[1]["3.weight"]) / 2)
    torch.testing.assert_close(ours["1.weight"], each[0]["1.weight"])


def test_copying_and_averaging_as_the_paper_writes_it_gives_the_same():
    """Equations 1 and 2 on models with copies of their own, against our one copy."""
    settings = DetachSettings(method="nsn", **PLAIN)
    model = nested(perceptron(layers=3), **PLAIN).double()
    base = model.base
    copies = [[copy.deepcopy(base[1 + 2 * j]) for j in range(k, 4)] for k in range(4)]  # copies[k]: input layer first
    for seed in range(3):
        x = images(FLAT, seed=seed).double()
        shared_gradient_step(small_data(), model, settings)(model, x, DIGITS)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
        _paper_update(copies, x.flatten(1))
        for layer, ours in zip(copies[0], (base[1], base[3], base[5], base[7])):
            torch.testing.assert_close(layer.weight, ours.weight)
            torch.testing.assert_close(layer.bias, ours.bias)


def _paper_update(copies, x) -> None:
    for layers in copies:
        h = x
        for number, layer in enumerate(layers):
            layer.zero_grad()
            h = layer(h) if number == len(layers) - 1 else layer(h).relu()
        functional.cross_entropy(h, DIGITS).backward()
    with torch.no_grad():
        for larger in range(len(copies)):
            for number, layer in enumerate(copies[larger]):
                # In the model's own pair: with the next larger model, or, in the base, the input layer alone.
                other = copies[larger - 1][number + 1] if larger else None
                for name, parameter in layer.named_parameters():
                    theirs = parameter.grad if other is None else dict(other.named_parameters())[name].grad
                    parameter.new = parameter - 0.1 * (parameter.grad + theirs) / 2
        for layers in copies:
            for layer in layers:
                for parameter in layer.parameters():
                    parameter.copy_(parameter.new)
        for larger in range(len(copies) - 2, -1, -1):  # from the smaller to the larger
            for number, layer in enumerate(copies[larger + 1]):
                for mine, theirs in zip(copies[larger][number + 1].parameters(), layer.parameters()):
                    mine.copy_(theirs)


def test_penalty_is_the_bases_alone():
    settings = DetachSettings(method="nsn", **{**PLAIN, "l2": 0.5})
    model = nested(**PLAIN).double()
    x = images(FLAT).double()
    shared_gradient_step(small_data(), model, settings)(model, x, DIGITS)
    each = by_model(model, x)
    first, second = model.base[1], model.base[3]
    torch.testing.assert_close(first.weight.grad, each[0]["1.weight"] + 0.5 * first.weight)
    torch.testing.assert_close(first.bias.grad, each[0]["1.bias"])
    torch.testing.assert_close(
        second.weight.grad, (each[0]["3.weight"] + each[1]["3.weight"] + 0.5 * second.weight) / 2
    )
    torch.testing.assert_close(model.base[5].weight.grad, (each[1]["5.weight"] + each[2]["5.weight"]) / 2)


def test_papers_penalties():
    assert l2_of(nested(perceptron(layers=1)), DetachSettings()) == 9e-6
    assert l2_of(nested(), DetachSettings()) == 9e-5
    assert l2_of(nested(), DetachSettings(l2=0.0)) == 0


@pytest.mark.parametrize("exits", [1, 2, 3])
def test_shares_of_every_parameter_sum_to_one(exits):
    model = nested(perceptron(layers=3), exits=exits)
    total = dict.fromkeys(model.parameters(), 0.0)
    for exit in range(exits + 1):
        for parameter, share in gradient_shares(model, exit).items():
            total[parameter] += share
    assert set(total.values()) == {1.0}


def test_what_every_model_has_takes_from_all():
    model = nested(Residual(), SHAPE, at=("blocks",))
    for exit in (0, 1):
        shares = gradient_shares(model, exit)
        assert shares[model.base.conv.weight] == shares[model.base.classifier.weight] == 0.5
    assert gradient_shares(model, 0)[model.base.blocks[0].conv1.weight] == 1.0


def test_models_stay_nested_after_every_step():
    model = nested().train()
    optimizer, step = damped_sgd(model, 0.3), shared_gradient_step(small_data(), model)
    for seed in range(3):
        step(model, images(FLAT, seed=seed), DIGITS)
        optimizer.step()
        for exit in (0, 1):
            larger, smaller = (list(model.detach(k).parameters()) for k in (exit, exit + 1))
            assert all(torch.equal(a, b) for a, b in zip(larger[2:], smaller, strict=True))


def test_momentum_is_equation_4():
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    holder = torch.nn.ParameterList([parameter])
    optimizer = damped_sgd(holder, lr=0.3, momentum=0.9)
    weight, velocity = parameter.detach().clone(), torch.zeros(2, dtype=torch.float64)
    for _ in range(10):
        gradient = 2 * weight
        velocity = 0.9 * velocity + 0.1 * gradient
        weight = weight - 0.3 * velocity
        parameter.grad = 2 * parameter.detach()
        optimizer.step()
        torch.testing.assert_close(parameter.detach(), weight, rtol=1e-12, atol=1e-12)
