"""`prune_` on what users hand over: it works, or it is one clear line and everything is as it was."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import compressor
from compressor.errors import CompressorError, DataError, ModelError, UsageError
from compressor.runs import apply, oneshot
from tests.untouched import untouched

X, Y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4),
    )  # fmt: skip


def sparse():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    model[0].weight = nn.Parameter(torch.eye(8, 4).to_sparse(), requires_grad=False)
    return model


def on_meta():
    model = network()
    return nn.Sequential(*[layer.to("meta") if isinstance(layer, nn.Conv2d) else layer for layer in model])


def faked():
    with FakeTensorMode():
        return network()


def quantized():
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), {nn.Linear})


def prepared():
    model = network().train()
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("x86")
    return torch.ao.quantization.prepare_qat(model)


def watched():
    model = network().eval()
    model.qconfig = torch.ao.quantization.default_qconfig
    return torch.ao.quantization.prepare(model)


def traced():
    return torch.jit.trace(network().eval(), X)


REFUSED = {
    "no parameters": (lambda: nn.Sequential(nn.ReLU()), "has no parameters"),
    "empty": (nn.Sequential, "has no parameters"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), "0.weight has no shape yet"),
    "lazy buffers": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyBatchNorm2d(affine=False)), "no shape yet"),
    "sparse": (sparse, "0.weight is sparse_coo"),
    "meta": (on_meta, "0.weight has no values"),
    "fake": (faked, "0.weight has no values"),
    "class": (lambda: nn.Conv2d, "not the class Conv2d"),
    "state dict": (lambda: network().state_dict(), "not OrderedDict"),
    "file": (lambda: "model.pt", "not str"),
    "list": (lambda: nn.ModuleList([nn.Conv2d(3, 4, 3)]), "forward"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_models_that_cannot_be_edited_are_one_clear_line(kind):
    make, message = REFUSED[kind]
    with pytest.raises((ModelError, UsageError), match=message) as refused:
        compressor.prune_(make(), X)
    assert "\n" not in str(refused.value)


FIXED = [
    (traced, "traced or scripted"),
    (quantized, "quantized: prune first"),
    (prepared, "prune first, then prepare"),
    (watched, "prune first, then prepare"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("make", "message"), FIXED)
def test_models_of_fixed_code_or_packed_weights_are_one_clear_line(make, message):
    with pytest.raises(ModelError, match=message):
        compressor.prune_(make(), X)


EXAMPLES = {
    "none": None,
    "array": X.numpy(),
    "shape": (1, 3, 8, 8),
    "text": "image",
    "nothing": (),
    "no image": X[:0],
    "other type": X.double(),
    "other channels": X[:, :1],
    "other name": {"pixels": X},
}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_examples_that_are_no_input_are_one_clear_line(kind):
    with pytest.raises((ModelError, UsageError)) as refused:
        compressor.prune_(network(), EXAMPLES[kind])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("example", [X.to("meta"), X.clone().requires_grad_(), {"input": X}, [X]])
def test_examples_of_other_kinds_work(example):
    model = network().eval()
    assert compressor.prune_(model, example).after.params == sum(p.numel() for p in model.parameters())


SETTINGS = {
    "ratio": ["0.5", None, -0.1, 1.0, float("nan"), True],
    "target_macs": ["half", 0, float("nan")],
    "method": [None, "L1", 3],
    "allocate": ["globl", "error", None],
    "round_to": [0, 2.5, "8"],
    "min_channels": [0, None],
    "keep": [None, [0], 3, ["zzz"], [""]],
    "ratio_for": ["0", ("0", 0.2), [("zzz", 0.2)], [("0", 2.0)], {"zzz": 0.2}],
    "seed": ["a", None],
    "batches": [X, [X], [(X,)], 3],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in SETTINGS.items() for value in values])
def test_settings_that_make_no_sense_are_one_clear_line(name, value):
    model = network()
    with pytest.raises(UsageError) as refused:
        compressor.prune_(model, X, **{name: value})
    assert "\n" not in str(refused.value) and name.partition("_")[0] in str(refused.value)
    assert model[0].out_channels == 8


@pytest.mark.parametrize(
    "given",
    [{"keep": "6"}, {"keep": {"6"}}, {"ratio_for": {"0": 0.25}}, {"ratio": np.float64(0.5)}, {"seed": np.int64(1)}],
)
def test_settings_are_taken_as_python_writes_them(given):
    model = network()
    compressor.prune_(model, X, **given)
    assert model[0].out_channels == (6 if "ratio_for" in given else 4)


@pytest.mark.parametrize("labels", [torch.full((4,), 9), torch.zeros(3, dtype=torch.long), torch.zeros(2, 2, 2)])
def test_batches_that_do_not_fit_are_refused(labels):
    with pytest.raises(DataError, match="taylor needs images and class labels"):
        compressor.prune_(network(), X, method="taylor", batches=[(X, labels)])


def fail(*_, **__):
    raise ModelError("no")


def stop(*_, **__):
    raise KeyboardInterrupt


BROKEN = {
    "nothing to prune": ({"ratio": 0.0}, None),
    "target out of reach": ({"target_macs": 1e-6}, None),
    "everything kept": ({"keep": ["0"]}, None),
    "unknown method": ({"method": "l3"}, None),
    "taylor without data": ({"method": "taylor"}, None),
    "labels": ({"method": "taylor", "batches": [(X, torch.full((4,), 9))]}, None),
    "stranger's optimizer": ({"optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters())}, None),
    "no optimizer": ({"optimizer": "adam"}, None),
    "scoring": ({}, (oneshot, "ranked", fail)),
    "cost": ({}, (oneshot, "profile", fail)),
    "interrupted": ({}, (apply, "operate_", stop)),
    "edit": ({}, (apply, "operate_", fail)),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_refused_leaves_everything_as_it_was(kind, training, monkeypatch):
    model = network().train(training)
    model[1].eval()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model[2].register_forward_hook(lambda module, inputs, output: None)
    alive = model(X).sum()
    alive.backward(retain_graph=True)
    optimizer.step()
    given, broken = BROKEN[kind]
    if broken is not None:
        monkeypatch.setattr(*broken)
    with untouched(model, optimizer), pytest.raises((CompressorError, KeyboardInterrupt)):
        compressor.prune_(model, X, **{"optimizer": optimizer, **given})
    assert [module.training for module in model] == [training, False] + 5 * [training]


class Brittle(nn.Module):
    """Runs with whatever width, until `armed`, which a copy is not asked for in the trials."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.runs = []

    def forward(self, x):
        if self.a.out_channels == 6:
            raise RuntimeError("six is a bad number")
        return self.b(self.a(x))


def test_a_network_that_no_longer_runs_is_refused_before_it_is_edited():
    model = Brittle()
    with pytest.raises(ModelError, match="would not run: keep some of a as they are .*six is a bad number"):
        compressor.prune_(model, X, ratio=2 / 8)
    assert model.a.out_channels == 8 and model.a.weight.shape[0] == 8
    compressor.prune_(model, X, ratio=0.5)
    assert model.a.out_channels == 4


def test_exported_programs_are_pruned_in_place():
    model = torch.export.export(network().eval(), (X,)).module()
    before = {name: tensor.shape for name, tensor in model.state_dict().items()}
    report = compressor.prune_(model, X)
    assert model.state_dict()["0.weight"].shape[0] == 4 and before["0.weight"][0] == 8
    assert model(X).shape == (4, 4) and report.after.macs < report.before.macs


def test_pruning_touches_nothing_but_the_layers():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    seen = []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    model[2].register_full_backward_hook(lambda *_: None)
    nn.functional.cross_entropy(model(X), Y).backward()
    optimizer.step()
    seen.clear()
    parameters, running = list(model.parameters()), model[1].running_mean.clone()
    generators = torch.get_rng_state(), random.getstate()
    report = compressor.prune_(model, X, optimizer=optimizer)
    assert all(map(lambda one, other: one is other, parameters, model.parameters()))
    assert model.training and not seen, "the user's own module is not run"
    kept = next(iter(report.edits))["channels"]
    assert torch.equal(model[1].running_mean, running[[i for i in range(8) if i not in kept]])
    assert torch.equal(torch.get_rng_state(), generators[0]) and random.getstate() == generators[1]
    assert optimizer.state[model[0].weight]["exp_avg"].shape == model[0].weight.shape
    loss = nn.functional.cross_entropy(model(X), Y)
    loss.backward()
    optimizer.step()
    assert seen == [4] and loss.isfinite()


def test_pruning_again_goes_on_from_there():
    model = network().eval()
    first = compressor.prune_(model, X)
    second = compressor.prune_(model, X)
    assert model[0].out_channels == 2 and second.before.macs == first.after.macs
    assert model(X).shape == (4, 4)


@torch.no_grad()
@pytest.mark.parametrize("form", [lambda x: x, lambda x: (x, torch.zeros(len(x))), lambda x: {"image": x}])
def test_data_refit_what_reads_pruned_channels(form):
    torch.manual_seed(0)
    model = network().eval()
    images, fresh = (torch.randn(128, *X.shape[1:]) for _ in range(2))
    wanted, plain = model(fresh), copy.deepcopy(model)
    compressor.prune_(plain, X)
    parameters = list(model.parameters())
    report = compressor.prune_(model, X, data=[form(part) for part in images.split(50)])
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    assert (model(fresh) - wanted).square().mean() < 0.7 * (plain(fresh) - wanted).square().mean()
    assert any("refitted by least squares" in note for note in report.notes)


def test_data_that_do_not_fit_change_nothing():
    model = network().eval()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match="the network takes"):
        compressor.prune_(model, X, data=[torch.zeros(4)])
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
