"""Accuracy and loss against a count by hand, for torch and NumPy; batch-norm statistics against the population's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.errors import DataError, ModelError
from compressor.training.batch_norm import recalibrate_
from compressor.training.data import open_data, with_input_shape
from compressor.training.evaluate import evaluate
from compressor.training.sets import ImageSet
from tests.training.small import Viewing, assert_same, small_data, small_net, weights


def test_evaluation_is_the_count_by_hand():
    data, net = small_data(), small_net().eval()
    x = (data.test.images / 255 - data.preparation.mean[0]) / data.preparation.std[0]
    scores = net(x).detach()
    result = evaluate(net, data.test, data, batch_size=5)
    assert result.count == 32
    assert result.top1 == pytest.approx(float((scores.argmax(1) == data.test.labels).double().mean()))
    assert result.loss == pytest.approx(float(functional.cross_entropy(scores, data.test.labels)), rel=1e-5)


def test_images_lie_channels_last_where_the_model_takes_it():
    data, net, last = with_input_shape(small_data(), (3, 8, 8)), small_net(channels=3), []
    net[0].register_forward_pre_hook(lambda module, inputs: last.append(inputs[0].stride(1) == 1))
    evaluate(net, data.test, data)
    assert all(last)
    data, net = small_data(), Viewing().eval()
    scores = net((data.test.images / 255 - data.preparation.mean[0]) / data.preparation.std[0])
    assert evaluate(net, data.test, data).top1 == float((scores.argmax(1) == data.test.labels).double().mean())


def test_numpy_callable_gives_the_same():
    data, net = small_data(), small_net().eval()

    def predict(x: np.ndarray) -> list[np.ndarray]:
        assert x.dtype == np.float32
        return [net(torch.from_numpy(x)).detach().numpy()]

    expected, result = evaluate(net, data.test, data), evaluate(predict, data.test, data)
    assert (result.top1, result.count) == (expected.top1, expected.count)
    assert result.loss == pytest.approx(expected.loss, rel=1e-6)


def test_evaluation_leaves_modes_statistics_and_generators_alone():
    data, net = small_data(), small_net().train()
    net[3].eval()
    before, state = weights(net), torch.get_rng_state()
    evaluate(net, data.test, data)
    assert [module.training for module in net] == [True, True, True, False, *[True] * 5]
    assert_same(weights(net), before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("wrap", [tuple, list, lambda outputs: {"logits": outputs[0], "aux": outputs[1]}])
def test_first_of_several_outputs_counts(wrap):
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = small_net()

        def forward(self, x: Tensor) -> object:
            return wrap([self.body(x), torch.zeros(len(x), 10)])

    data, net = small_data(), Several()
    assert evaluate(net, data.test, data) == evaluate(net.body, data.test, data)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (small_net(classes=4), r"gives \(32, 4\) for 32 images of 10 classes"),
        (nn.Identity(), r"gives \(32, 1, 8, 8\)"),
        (lambda x: [], "gives"),
    ],
    ids=["too few", "no scores", "nothing"],
)
def test_model_without_scores_is_refused(model, says):
    data = small_data()
    with pytest.raises(ModelError, match=says):
        evaluate(model, data.test, data)


def test_empty_set_is_refused():
    data = small_data()
    with pytest.raises(DataError, match="no images"):
        evaluate(small_net(), data.test.take(torch.arange(0)), data)


def test_recalibration_gives_the_populations_statistics():
    """Over batches that cover the set the cumulative mean is the set's, the variance the mean of the batches'."""
    data, net = small_data(train=96), small_net().eval()
    net[1].running_mean.fill_(5)
    net[1].momentum = 0.3
    assert recalibrate_(net, data.train, data, batches=3, batch_size=32) == 1
    with torch.no_grad():
        x = net[0]((data.train.images / 255 - data.preparation.mean[0]) / data.preparation.std[0])
    assert torch.allclose(net[1].running_mean, x.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(net[1].running_var, x.var((0, 2, 3)), rtol=0.05)
    assert net[1].momentum == 0.3
    assert not net[1].training


def test_recalibration_changes_statistics_only():
    data, net = small_data(), small_net().train()
    before = weights(net)
    recalibrate_(net, data.train, data)
    after = weights(net)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert all(module.training for module in net)


def test_recalibration_repairs_a_net_whose_statistics_are_spoiled():
    from compressor.training.loop import fit
    from compressor.training.settings import TrainSettings

    data = open_data("digits")
    data = replace(data, train=ImageSet(data.train.images[:512], data.train.labels[:512]))
    net = small_net()
    fit(net, data, TrainSettings(epochs=6, batch_size=32, lr=0.1, evaluate_every=0))
    good = evaluate(net, data.validation, data).top1
    net[1].reset_running_stats()
    spoiled = evaluate(net, data.validation, data).top1
    recalibrate_(net, data.train, data)
    assert evaluate(net, data.validation, data).top1 > good - 0.05
    assert spoiled < good


def test_net_without_batch_norm_has_nothing_to_recalibrate():
    data = small_data()
    assert recalibrate_(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), data.train, data) == 0
