"""Two processes on the CPU train as one does: the same weights after the same steps, whatever the step is."""

import signal
from dataclasses import replace

import pytest
import torch
from torch import nn

from compressor.errors import CompressorError, UsageError
from compressor.training import checkpoint, distributed
from compressor.training.checkpoint import Saving
from compressor.training.distributed import add_up_
from compressor.training.loop import fit
from compressor.training.settings import TrainSettings
from tests.primenet.nets import batch as prime_batch
from tests.primenet.nets import network as prime_network
from tests.training.processes import together
from tests.training.small import small_data, small_net, weights

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without processes")

# A batch that three processes cannot share equally, and draws for every image.
SETTINGS = TrainSettings(epochs=2, batch_size=32, augment="crop+flip", evaluate_every=1, device="cpu")


def plain_net() -> nn.Sequential:
    """Without batch norm and dropout, which see a process's own images or draw its own numbers."""
    net = small_net()
    return nn.Sequential(*(layer for layer in net if not isinstance(layer, (nn.BatchNorm2d, nn.Dropout))))


def trained(net, **changes):
    history = fit(net, small_data(), replace(SETTINGS, **changes))
    return weights(net), [
        {key: row[key] for key in ("train_loss", "train_top1", "validation_top1", "step")} for row in history.rows
    ]


def assert_near(first, second, tolerance=2e-5):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor.float(), second[name].float(), rtol=tolerance, atol=tolerance, msg=name)


def assert_equal(first, second):
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("count", [2, 3])
def test_the_weights_and_figures_are_those_of_one_process(tmp_path, count):
    alone, row = trained(plain_net())
    (first, rows), *others = together(lambda: trained(plain_net()), tmp_path, count=count)
    assert_near(first, alone)
    for weights_there, _ in others:
        assert_equal(weights_there, first)
    for here, there in zip(row, rows):
        assert there["step"] == here["step"] and there["train_top1"] == pytest.approx(here["train_top1"])
        assert there["train_loss"] == pytest.approx(here["train_loss"], rel=1e-5)


def test_synchronised_batch_norm_sees_the_whole_batch(tmp_path):
    alone, _ = trained(small_net(dropout=0.0))
    apart = together(lambda: trained(small_net(dropout=0.0)), tmp_path)
    (first, _), (second, _) = together(lambda: trained(small_net(dropout=0.0), sync_bn=True), tmp_path)
    assert_near(first, alone)
    assert_equal(first, second)
    # The control: without it the statistics are those of halves. The processes agree all the same.
    assert not torch.allclose(apart[0][0]["1.running_var"], alone["1.running_var"], rtol=1e-4)
    assert_equal(apart[0][0], apart[1][0])


def test_the_parts_of_a_batch_are_the_whole_batch(tmp_path):
    def batches():
        found = small_data().training(SETTINGS, 1, 0, torch.device("cpu"))
        return [(x.clone(), y.clone()) for x, y in found]

    first, second = together(batches, tmp_path)
    for (x, y), (x1, y1), (x2, y2) in zip(batches(), first, second, strict=True):
        assert torch.equal(x, torch.cat([x1, x2])) and torch.equal(y, torch.cat([y1, y2]))


def test_a_gradient_that_only_one_process_has_counts_and_one_that_none_has_stays_away(tmp_path):
    def gradients():
        net = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1), nn.Linear(2, 1)])
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.fill_(1.0)
        images = torch.ones(3 if distributed.first() else 1, 2) * (distributed.rank() + 1)
        loss = net[0](images).mean()
        if not distributed.first():
            loss = loss + net[1](images).mean()
        loss.backward()
        mean, right, count = add_up_(net, loss, torch.tensor(len(images)), len(images))
        return [p.grad for p in net.parameters()], float(mean), int(right), count

    for grads, mean, right, count in together(gradients, tmp_path):
        assert grads[0].tolist() == [[1.25, 1.25]]  # 3 images of ones, one of twos
        assert grads[2].tolist() == [[0.5, 0.5]]  # twos of the second process, a quarter of the batch
        assert grads[4] is None and grads[5] is None
        assert (right, count) == (4, 4) and mean == pytest.approx((3 * 3 + 1 * 10) / 4)


def test_primenets_capsules_learn_from_the_whole_batch(tmp_path):
    from compressor.primenet.learning import LocalLearning

    def learnt():
        torch.manual_seed(0)
        network = prime_network()
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()
        learning = LocalLearning(network, network.settings)
        images, labels = prime_batch(8)
        part = distributed.own_part(8)
        for _ in range(3):
            learning(network, images[part], labels[part])
        return weights(network.stage)

    alone = learnt()
    first, second = together(learnt, tmp_path)
    capsules = [name for name in alone if "capsules" in name and "weight" in name]
    assert capsules
    for name in capsules:
        torch.testing.assert_close(first[name], alone[name], rtol=1e-3, atol=1e-4)
        assert torch.equal(first[name], second[name])


def test_the_first_process_decides_for_all_and_its_errors_are_known(tmp_path):
    def decided():
        chosen = distributed.from_first(lambda: distributed.rank())
        items = list(distributed.each_from_first(lambda: [distributed.rank(), 5]))
        wishes = distributed.any_of(0, distributed.rank() * 15)
        try:
            distributed.from_first(lambda: small_failure())
        except CompressorError as error:
            return chosen, items, wishes, str(error)

    def small_failure():
        raise UsageError("no such flag")

    for chosen, items, wishes, text in together(decided, tmp_path):
        assert (chosen, items, wishes, text) == (0, [0, 5], [0, 15], "no such flag")


def test_more_processes_than_images_are_refused(tmp_path):
    def refused():
        try:
            trained(plain_net(), batch_size=1)
        except UsageError as error:
            return str(error)

    assert all("larger `batch_size`" in text for text in together(refused, tmp_path))


def broken_off(folder, at):
    """A run of four epochs that a signal ends after so many steps; only one process receives it."""
    net = plain_net()

    def receive(state):
        if state.step == at and distributed.rank() == distributed.size() - 1:
            signal.raise_signal(signal.SIGTERM)

    try:
        fit(net, small_data(), replace(SETTINGS, epochs=4), after_step=receive, saving=Saving(folder))
    except CompressorError as error:
        return str(error)


def resumed(folder):
    net = plain_net()
    fit(net, small_data(), replace(SETTINGS, epochs=4), saving=Saving(folder, resume=True))
    return weights(net)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, before, after):
    whole = trained(plain_net(), epochs=4)[0]
    run = tmp_path / "run"
    told = together(broken_off, tmp_path, run, 5, count=before) if before > 1 else [broken_off(run, 5)]
    assert all("stopped by SIGTERM after step 5" in text for text in told)
    assert checkpoint.has_checkpoint(run)
    ended = together(resumed, tmp_path, run, count=after)[0] if after > 1 else resumed(run)
    assert_near(ended, whole)
