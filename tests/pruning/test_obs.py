"""Block OBS and the allocation of widths against slow, obvious versions."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import sklearn.covariance
import torch
from torch import nn

import compressor
from compressor.graph import capture
from compressor.pruning.allocate import Widths, ranks
from compressor.pruning.consumers import _sensitivities, consumers
from compressor.pruning.obs import Curve, Downdated, calibrated, curve, curves, shrinkage
from compressor.pruning.oneshot import sensitivity
from compressor.pruning.price import macs_price
from compressor.pruning.reconstruction.calibration import in_parts
from compressor.surgery.edits import Plan, Prune
from compressor.training.data import open_data


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(512, 5, generator=torch.Generator().manual_seed(1))


def least_error(hidden, outputs, kept):
    """The share of the outputs' variance that the kept channels and a constant miss, by numpy's least squares."""
    design = np.column_stack([hidden[:, kept], np.ones(len(hidden))])
    missed = outputs - design @ np.linalg.lstsq(design, outputs, rcond=None)[0]
    return float((missed**2).sum() / ((outputs - outputs.mean(0)) ** 2).sum())


def test_the_order_and_the_errors_are_those_of_trying_every_channel(net, images):
    channels = capture(net, images[:1])
    group = channels.group("0")
    found = curve(group, consumers(net, channels, [images]))
    hidden = net[1](net[0](images)).detach().double().numpy()
    outputs = net(images).detach().double().numpy()
    kept = list(range(group.size))
    for step in range(group.size - 1):
        errors = [least_error(hidden, outputs, [each for each in kept if each != gone]) for gone in kept]
        gone = kept[int(np.argmin(errors))]
        assert found.ids[step] == group.ids[gone]
        assert found.errors[step + 1] == pytest.approx(min(errors), rel=0.1)  # the scale is that of fewer images
        kept.remove(gone)


def test_what_a_width_saves_is_what_surgery_saves(net, images):
    channels = capture(net, images[:1])
    group = channels.group("0")
    gone = tuple(group.ids[:2].tolist())
    assert Plan((Prune("0", gone, "a test"),)).removed == gone
    assert Widths(channels, macs_price(channels)).saved(0, 2) == channels.macs() - channels.macs(gone) == 2 * (5 + 4)


def test_channels_go_by_their_error_for_each_multiply_add(images):
    """Two groups alike but for their errors: all of the cheaper one go before any of the other."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 5)).eval()
    channels = capture(model, images[:1])
    errors = {"0": np.array([0, 1, 2, 3.0]), "2": np.array([0, 100, 200, 300.0])}
    found = ranks(channels, {group.name: Curve(group.ids, errors[group.name]) for group in channels.free})
    assert max(found["0"][:3]) < min(found["2"][:3])
    assert np.isinf(found["0"][3]) and np.isinf(found["2"][3])


def test_covariances_of_few_rows_are_shrunk_as_scikit_learn_does():
    given = np.random.default_rng(0).normal(size=(60, 200)) * np.linspace(0.5, 2, 200)
    covariance = torch.from_numpy(np.cov(given.T, bias=True))
    _, expected = sklearn.covariance.oas(given)
    assert float(shrinkage(covariance[None], 60)) == pytest.approx(expected, rel=0.02)


def test_channels_that_few_images_cannot_tell_apart_do_not_cost_nothing():
    """Features of a head that nothing else can make, and 16 images of them: half of them make half of the outputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 8), nn.Flatten(), nn.Linear(64, 10, bias=False)).eval()
    nn.init.orthogonal_(model[0].weight)
    channels, seen = capture(model, torch.zeros(1, 3, 8, 8)), torch.randn(16, 3, 8, 8)
    found = curves(model, channels, consumers(model, channels, [seen]))["0"]
    assert found.errors[32] > 0.2 * found.errors.max() > 0.1


def test_what_goes_together_is_judged_together(images):
    """A curve that rises late is cheap for one channel and dear for two: where two have to go, the other group goes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 5)).eval()
    channels = capture(model, images[:1])
    errors = {"0": np.array([0, 1, 100, 200.0]), "2": np.array([0, 20, 21, 200.0])}
    found = {group.name: Curve(group.ids, errors[group.name]) for group in channels.free}
    alone, pairs = ranks(channels, found), ranks(channels, found, {"0": [0, 2], "2": [0, 2]})
    assert alone["0"].argmin() == 0 and alone["0"].min() < alone["2"].min()
    assert set(pairs["2"][:2]) == {0, 1} and set(pairs["0"][:2]) == {2, 3}
    assert np.isinf(pairs["0"][2:]).all()


class Net(nn.Module):
    """Two stages and a mean over places."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.last = nn.Conv2d(3, 24, 1), nn.Conv2d(24, 16, 3, bias=False), nn.Linear(16, 4)

    def forward(self, x):
        x = torch.relu(self.one(x))
        return self.last(torch.relu(self.two(x)).mean((2, 3)))


@torch.no_grad()
def test_calibrated_errors_are_what_refitted_layers_do_to_the_outputs():
    torch.manual_seed(0)
    model = Net().eval()
    source = torch.Generator().manual_seed(1)  # images of one colour, so that errors add up over places
    x = torch.randn(256, 3, 1, 1, generator=source) + 0.1 * torch.randn(256, 3, 9, 9, generator=source)
    channels = capture(model, x[:1])
    found = curves(model, channels, consumers(model, channels, [x]))
    told = calibrated(model, found, [x])
    before = model(x)
    for name, each in found.items():
        count, (change,) = next(iter(each.levels.items()))
        changed = copy.deepcopy(model)
        layer = changed.get_submodule(change.name.removesuffix(".weight"))
        layer.weight += change.weight
        shift = change.shift if isinstance(layer, nn.Linear) else change.shift[:, None, None]
        layer.register_forward_hook(lambda module, args, result, shift=shift: result + shift)
        moved = (changed(x) - before).square().sum() / (before - before.mean(0)).square().sum()
        assert told[name].errors[count] == pytest.approx(float(moved), rel=0.4)


@pytest.mark.slow
@torch.no_grad()
def test_predicted_sensitivity_ranks_groups_as_pruning_them_does():
    """The sample network, each group alone at each share, cut and refitted: rank correlation of 0.9 and more."""
    data = open_data("digits")
    model = compressor.load("sample_models/digits_cnn.safetensors")
    inputs = [x for x, _ in data.passing(data.train, 128, torch.device("cpu"))][:4]
    channels = capture(model, inputs[0][:1])
    before = torch.cat([model(x) for x in inputs])
    predicted, found = [], []
    for name, moved in sensitivity(model, channels, inputs).items():
        for share, error in moved.items():
            small, kept = copy.deepcopy(model), {group.name for group in channels.free} - {name}
            compressor.prune_(small, inputs[0][:1], ratio=share, keep=kept, data=inputs, round_to=1)
            after = torch.cat([small(x) for x in inputs])
            predicted.append(error)
            found.append(float((after - before).square().sum() / (before - before.mean(0)).square().sum()))
    assert scipy.stats.spearmanr(predicted, found).statistic > 0.9


@torch.no_grad()
def test_a_layer_with_very_many_inputs_is_looked_at_channel_by_channel(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 25, 4)).eval()
    x = torch.randn(256, 3, 7, 7, generator=torch.Generator().manual_seed(1))
    channels = capture(model, x[:1])
    with torch.no_grad():
        model[3].weight.view(4, 6, 25)[:, 2] = 0  # nothing reads this one
    whole = curves(model, channels, consumers(model, channels, [x]))["0"]
    monkeypatch.setattr("compressor.pruning.consumers._WIDE", 100)
    parted = curves(model, channels, consumers(model, channels, [x]))["0"]
    assert whole.ids[0] == parted.ids[0] == channels.group("0").ids[2]
    assert parted.errors[1] == pytest.approx(0, abs=1e-6) and not any(parted.levels.values())
    assert np.all(np.diff(parted.errors) >= 0)


def test_a_group_whose_readers_are_not_known_goes_by_its_weights(net, images):
    channels = capture(net, images[:1])
    found = curves(net, channels, [])["0"]
    assert sorted(found.ids) == sorted(channels.group("0").ids)
    assert list(found.errors) == pytest.approx(np.arange(6) / 6)


def test_moments_that_rounding_leaves_indefinite_are_judged_too():
    """Sums of float32 products of few images: an eigenvalue below zero by more than the ridge makes up for."""
    covariance = torch.diag(torch.tensor([1.0, 1.0, 1.0, -0.01], dtype=torch.float64))[None]
    ids, matrix = np.arange(4), torch.eye(4, dtype=torch.float64)[None]
    layer = SimpleNamespace(rows=1000, covariance=covariance, ids=ids, matrix=matrix, scale=torch.ones(1, 1, 4))
    assert np.isfinite(Downdated(layer, ids).costs()).all()


class Constant(nn.Module):
    """A network with a second output that is the same for every image."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        found = self.net(x)
        return found, found.clamp(1e6, 1e6)


@pytest.mark.parametrize("count", [1, 4, 7])
def test_images_are_looked_at_in_parts_that_tell_them_apart(net, images, count, monkeypatch):
    monkeypatch.setattr("compressor.pruning.consumers._PROBED_VALUES", 15)  # three images, so that one is left of four
    assert [len(part) for part in in_parts([images[:4]], 4, 15)] == [2, 2]
    found = _sensitivities(Constant(net), [images[:count]])
    assert found.keys() == {"net.0.weight", "net.2.weight"}
    assert all(each.isfinite().all() and each.any() for each in found.values())


class Steers(nn.Module):
    """Goes another way for larger images."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.second(self.first(x).relu() if x.shape[-1] < 9 else self.first(x).sigmoid())


def test_layers_of_a_network_that_goes_several_ways_cannot_be_followed():
    data = [torch.randn(4, 3, size, size) for size in (8, 12)]
    with pytest.raises(
        compressor.ModelError, match=r"runs other operators on some images .*method l1 and allocate unif"
    ):
        compressor.prune_(Steers(), data[0], data=data)
    report = compressor.prune_(Steers(), data[0], "l1", 0.5, data=data, allocate="uniform")
    assert any("not refitted" in note for note in report.notes)


@pytest.mark.parametrize("method", ["auto", "l1"])
def test_a_network_with_nothing_to_choose_from_is_one_line(method):
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    with pytest.raises(compressor.ModelError, match="every layer is frozen"):
        compressor.prune_(model, torch.randn(1, 3, 8, 8), method=method, data=[torch.randn(8, 3, 8, 8)])


class Windows(nn.Module):
    """Parts of each image one after the other in the first dimension, as windows of attention are."""

    def __init__(self):
        super().__init__()
        self.first, self.whole, self.part = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Linear(8, 4)
        self.kept = None

    def forward(self, x):
        if self.training or self.kept is None:
            self.kept = self.whole.bias.square()  # computed once and kept, as biases of attention are
        x = self.first(x).relu()
        parts = x.view(*x.shape[:2], 2, 3, 2, 3).permute(0, 2, 4, 3, 5, 1).reshape(-1, 9, x.shape[1])
        return self.whole(x).mean((2, 3)) + self.part(parts).mean(1).view(-1, 4, 4).mean(1) + self.kept


def test_parts_of_images_in_the_first_dimension_and_what_is_computed_once(monkeypatch):
    monkeypatch.setattr("compressor.pruning.consumers._PROBED_VALUES", 3000)  # several parts
    torch.manual_seed(0)
    model, x = Windows().eval(), torch.randn(40, 3, 6, 6)
    channels = capture(model, x[:1])
    found = calibrated(model, curves(model, channels, consumers(model, channels, [x])), [x])
    [group] = channels.free
    assert group.size == 8 and found["first"].errors[-1] > 0
