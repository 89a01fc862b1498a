"""Whatever is refused, or broken off, leaves model, optimizer and files as they were."""

import errno
import os
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import compressor as public
from compressor.errors import CompressorError, ModelError
from compressor.graph import capture
from compressor.pruning.adapnet.method import AdapNet
from compressor.pruning.adapnet.settings import AdapNetSettings
from compressor.runs import course
from compressor.runs import folder as run_folder
from compressor.runs.course import Network
from compressor.runs.goals import Guard
from compressor.runs.periods import Periods
from compressor.surgery import Insert, Merge, Plan, Prune, operate_
from tests.cli.command import ROOT, Compressor
from tests.untouched import difference, everything, files, interrupted_at, untouched

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
DATA = [torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))]
DIGITS = str(ROOT / "sample_models" / "digits_cnn.safetensors")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    model[0].weight.register_hook(lambda grad: grad)
    model(X).square().sum().backward()
    optimizer.step()
    return model, optimizer


@cache
def mapped() -> Any:
    return capture(network(), X)


def every_kind_of_edit() -> Plan:
    first, second = mapped().group("0").ids.tolist(), mapped().group("3").ids.tolist()
    edits = (
        Prune("0", (first[0],), "t", means=(1.0,)), Merge("0", first[1], first[2], "t"), Insert("0", first[4], "t"),
        Insert("3", second[0], "t", columns="split"), Prune("3", (second[2],), "t"),
    )  # fmt: skip
    return Plan(edits)


CALLS: dict[str, Any] = {
    "edit": lambda model, optimizer: operate_(model, every_kind_of_edit(), mapped(), optimizer),
    "prune": lambda model, optimizer: public.prune_(model, X, optimizer=optimizer, data=DATA),
    "profile": lambda model, optimizer: public.profile(model, X),
    "capture": lambda model, optimizer: capture(model, X),
}


def values(state: dict[str, Any]) -> dict[str, Any]:
    """Of what `everything` found, what does not depend on where objects lie."""
    modules = {
        name: {key: each[1] for key, each in held.items() if isinstance(each, tuple)}
        for name, held in state["modules"].items()
    }
    return {"tensors": {name: each[1] for name, each in state["tensors"].items()}, "modules": modules}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in what a weak reference calls
@pytest.mark.parametrize("call", CALLS)
def test_ctrl_c_anywhere_leaves_all_as_it_was_or_all_done(call):
    """At 4 places of the call and at 8 of its last steps, where the model itself is written to."""
    work, (model, optimizer) = CALLS[call], trained()
    work(model, optimizer)
    done = values(everything(model, optimizer))
    with interrupted_at(-1) as entered:
        work(*trained())
    total = entered()
    last = total - min(total, 120)
    for place in sorted({*np.linspace(1, total, 4).astype(int), *np.linspace(last, total, 8).astype(int)}):
        model, optimizer = trained()
        before = everything(model, optimizer)
        try:
            with interrupted_at(place):
                work(model, optimizer)
        except KeyboardInterrupt:
            pass
        now = everything(model, optimizer)
        left = difference(before, now)
        assert not left or not difference(done, values(now)), f"{place} of {total}: {left}"


def test_ctrl_c_between_edit_and_refit_takes_the_edit_back(monkeypatch):
    from compressor.surgery import assign

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    model, optimizer = trained()
    monkeypatch.setattr(assign, "assign_", stop)
    with untouched(model, optimizer), pytest.raises(KeyboardInterrupt):
        public.prune_(model, X, optimizer=optimizer, data=DATA)


@pytest.mark.parametrize("follows", [False, True])
def test_ctrl_c_in_a_pruner_leaves_its_map_and_the_model_together(follows, monkeypatch):
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    model, optimizer = trained()
    pruner = public.Pruner(model, X, optimizer, "l1", ratio=0.4, steps=1)
    if follows:
        monkeypatch.setattr(pruner._course, "follow", stop)
    else:
        monkeypatch.setattr(course, "Renumbering", SimpleNamespace(of=stop))
    with untouched(model, optimizer), pytest.raises(KeyboardInterrupt):
        pruner._course._carry_out(Plan((Prune("0", (int(mapped().group("0").ids[0]),), "t"),)), optimizer)


def test_ctrl_c_as_a_plan_is_judged_takes_it_back():
    def stop() -> float:
        raise KeyboardInterrupt

    model, optimizer = trained()
    guard = Guard(0.1, stop, before=0.9)
    method = AdapNet(AdapNetSettings(lsep=6), classes=4, steps_per_epoch=10, seed=0)
    periods = Periods(Network(model, mapped(), X), method, guard=guard)
    before = values(everything(model))
    with pytest.raises(KeyboardInterrupt):
        periods._carry_out(every_kind_of_edit(), optimizer)
    assert not difference(before, values(everything(model)))


def exported() -> nn.Module:
    return torch.export.export(network().eval(), (X,)).module()


def compiled() -> nn.Module:
    model = network()
    model.compile(backend="eager")
    return model


def tied() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1))
    model[2].weight = model[1].weight
    return model


def stubborn() -> nn.Module:
    class Stubborn(nn.Conv2d):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "out_channels" and "out_channels" in vars(self):
                raise AttributeError("no")
            super().__setattr__(name, value)

    model = network()
    model[3] = Stubborn(8, 6, 3)
    return model


def watched() -> nn.Module:
    model = network()
    model[0].register_forward_pre_hook(lambda module, inputs: None)
    model[3].register_forward_hook(lambda module, inputs, output: None)
    model[4].register_full_backward_hook(lambda module, inputs, outputs: None)
    model.register_state_dict_post_hook(lambda *_: None)
    model[8].weight.register_post_accumulate_grad_hook(lambda parameter: None)
    return model


MODELS = {
    "plain": network,
    "watched": watched,
    "exported": exported,
    "compiled": compiled,
    "tied": tied,
    "stubborn": stubborn,
}
WRONG = {
    "target": {"target_macs": 1e-7},
    "keep": {"keep": ["nowhere"]},
    "also": {"also": ["embed"]},
    "ratio": {"ratio_for": {"nowhere": 0.5}},
    "example": {"example": torch.zeros(1, 5, 8, 8)},
    "data": {"data": [torch.zeros(4)]},
    "labels": {"method": "taylor", "batches": [(X, torch.full((4,), 99))]},
}


@pytest.mark.parametrize("kind", MODELS)
def test_what_prune_refuses_leaves_every_kind_of_module(kind):
    model = MODELS[kind]()
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], 0.1, momentum=0.9)
    alive = model(X).sum()
    if alive.requires_grad:
        alive.backward(retain_graph=True)
        optimizer.step()
    for wrong in WRONG.values():
        with untouched(model, optimizer), pytest.raises(CompressorError):
            public.prune_(model, **{"example": X, "optimizer": optimizer, **wrong})
    if kind == "stubborn":
        with untouched(model, optimizer), pytest.raises(ModelError, match="does not let out_channels"):
            public.prune_(model, X, optimizer=optimizer)


def test_a_hook_that_raises_is_refused_and_stays():
    def fail(*_: Any) -> None:
        raise ValueError("not today")

    model, optimizer = trained()
    model[3].register_forward_hook(fail)
    with untouched(model, optimizer), pytest.raises(ModelError, match="not today"):
        public.prune_(model, X, optimizer=optimizer)


def frozen(channels: Any) -> Plan:
    return Plan((Merge("8", *channels.group("8").ids.tolist()[:2], "t"),))


def everything_of_one(channels: Any) -> Plan:
    ids = channels.group("3").ids.tolist()
    return Plan((Merge("3", ids[0], ids[1], "t"), Prune("3", tuple(ids[2:]), "t"), Insert("0", 10**6, "t")))


def new_filter_of_another_shape(channels: Any) -> Plan:
    first = channels.group("0").ids.tolist()
    rows = {"0.weight": torch.zeros(3)}
    return Plan((Prune("3", (int(channels.group("3").ids[0]),), "t"), Insert("0", first[0], "t", rows)))


@pytest.mark.parametrize("plan", [frozen, everything_of_one, new_filter_of_another_shape])
def test_an_edit_that_is_refused_leaves_model_and_optimizer(plan):
    model, optimizer = trained()
    with untouched(model, optimizer), pytest.raises((ModelError, RuntimeError)):
        operate_(model, plan(mapped()), mapped(), optimizer)


def test_saving_that_is_broken_off_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    model, path = network(), tmp_path / "model.safetensors"
    public.save(model, path)
    with untouched(model, folder=tmp_path), pytest.raises(public.FileError, match="exists"):
        public.save(model, path)
    other = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Identity())
    with interrupted_at(-1) as entered:
        public.save(other, tmp_path / "other.safetensors")
    before = files(tmp_path)
    for place in range(1, entered(), max(1, entered() // 40)):
        with pytest.raises(KeyboardInterrupt), interrupted_at(place):
            public.save(other, path, overwrite=True)
        if files(tmp_path) != before:  # it was written whole
            assert len(public.load(path)) == 2 and len(files(tmp_path)) == 2
            public.save(model, path, overwrite=True)
            before = files(tmp_path)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with untouched(other, folder=tmp_path), pytest.raises(public.FileError, match="No space left"):
        public.save(other, path, overwrite=True)


REFUSED = {
    "prune-target": "prune MODEL --target-macs 0.00001",
    "prune-keep": "prune MODEL --keep nowhere",
    "prune-all-kept": "prune MODEL --keep *",
    "prune-ratio-for": "prune MODEL --ratio-for nowhere=0.5",
    "prune-data": "prune MODEL --data folder:nowhere",
    "prune-device": "prune MODEL --device cuda:99",
    "adapnet-period": "prune MODEL --method adapnet --data digits --lsep 10000000",
    "adapnet-keep": "prune MODEL --method adapnet --data digits --keep nowhere",
    "finetune-arch": "finetune MODEL --data digits --arch sample_models/digits_cnn.py:build:num_classes=7",
    "finetune-data": "finetune MODEL --data cifar10:nowhere",
    "train-arch": "train --arch sample:nowhere --data digits",
    "detach-at": "detach MODEL --data digits --at nowhere",
    "detach-exits": "detach MODEL --data digits --exits 99",
    "detach-weights": "detach MODEL --data digits --exits 1 --loss-weights 1,2,3",
    "route-leave": "route MODEL --data digits --leave-after 0,99",
    "replace-until": "replace MODEL --data digits --until nowhere",
    "replace-scales": "replace MODEL --data digits --until 0 --scales 4",
    "sweep-methods": "sweep MODEL --data digits --methods nowhere",
    "sweep-targets": "sweep MODEL --data digits --targets 2",
    "model": "prune nowhere.safetensors",
}


@pytest.fixture
def earlier(tmp_path):
    """A folder that an earlier run left, with something of the user's."""
    run = tmp_path / "run"
    run.mkdir()
    for name in (*run_folder._ALL, "mine.txt"):
        (run / name).write_text(f"{name} of before")
    return run


@pytest.fixture
def compressor(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    return Compressor(capsys, tmp_path)


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_command_leaves_the_earlier_run_that_it_may_replace(compressor, earlier, name):
    words = [DIGITS if word == "MODEL" else word for word in REFUSED[name].split()]
    with untouched(None, folder=compressor.folder):
        ran = compressor(*words, "--out", str(earlier), "--overwrite")
    assert ran.code in (1, 2) and ran.err.count("error: ") == 1, ran.err


def test_an_export_that_computes_something_else_leaves_the_file_that_was_there(compressor, monkeypatch):
    monkeypatch.setattr("compressor.exporting.onnx.RELATIVE_LIMIT", -1.0)
    target = compressor.folder / "model.onnx"
    target.write_text("before")
    with untouched(None, folder=compressor.folder):
        ran = compressor("export", DIGITS, "--out", str(target), "--overwrite")
    assert ran.code == 1 and "was not written" in ran.err


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("verb", ["prune", "finetune", "prune --method adapnet", "detach", "route", "replace"])
def test_the_model_that_is_read_is_not_overwritten(compressor, verb, link):
    run = compressor.folder / "run"
    run.mkdir()
    mine = run / "model.safetensors"
    mine.write_bytes((ROOT / "sample_models" / "digits_cnn.safetensors").read_bytes())
    named = compressor.folder / "link" if link else run
    if link:
        named.symlink_to(run)
    words = [*verb.split(), str(named / "model.safetensors"), "--data", "digits", "--out", str(run), "--overwrite"]
    with untouched(None, folder=compressor.folder):
        ran = compressor(*words)
    assert ran.code == 2 and "--overwrite would delete" in ran.err
