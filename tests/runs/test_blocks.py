"""`--method blocks`, from a job and from Python, to a file that opens again; the machine is a formula here."""

import copy
import signal
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
import torch
from torch import nn

import compressor
from compressor import Pruner, prune_
from compressor.errors import ModelError, UsageError
from compressor.pruning.settings import PruneSettings
from compressor.runs import block_costs, mixed, prune, prune_blocks
from compressor.runs.blocks import choose_blocks, replace_
from compressor.runs.job import flat
from compressor.runs.jobs import VERBS, job_of_method
from compressor.runs.restart import job_of
from compressor.runs.resume import resume
from compressor.runs.run import dry_run, run
from compressor.runs.settings import FINETUNE, ModelSettings, OutputSettings
from compressor.settings import read
from compressor.surgery.blocks import replace_blocks_
from compressor.surgery.edits import Bypass
from compressor.training.events import BatchEvent
from compressor.training.interrupt import Interrupted
from tests.routing.nets import Block, Residual
from tests.untouched import interrupted_at, untouched

ROOT = Path(__file__).parents[2]
ARCH = f"{ROOT / 'tests' / 'routing' / 'nets.py'}:Residual"
EXAMPLE = torch.zeros(1, 1, 8, 8)


def loader(channels: int = 1) -> list[torch.Tensor]:
    return [torch.randn(32, channels, 8, 8, generator=torch.Generator().manual_seed(5))]


def job(folder, epochs=1, method="blocks", onnx=False, **choice):
    settings = PruneSettings(method=method, **{"target_macs": 0.6, **choice})
    training = replace(FINETUNE, epochs=epochs, device="cpu", log_seconds=0.0)
    output = OutputSettings(str(folder), latency=False, onnx=onnx)
    return job_of_method(method)(ModelSettings(arch=ARCH), "digits", output, training=training, choice=settings)


@pytest.fixture(autouse=True)
def moving(request, monkeypatch):
    """What outputs are said to move by: with channels alone, with both, with blocks alone; both move least."""
    told = cycle(getattr(request, "param", (0.2, 0.1, 0.3)))
    movement = SimpleNamespace(of=lambda small: next(told))
    monkeypatch.setattr(mixed, "Movement", lambda *given: movement)


BOTH = pytest.mark.parametrize("method", ["blocks", "mixed"])


@BOTH
def test_a_run_leaves_a_network_that_opens_again(method, tmp_path):
    report = run(job(tmp_path / "run", method=method, onnx=True))
    assert report.after.macs <= 0.61 * report.before.macs
    kinds = {edit["kind"] for edit in report.edits}
    assert kinds & {"bypass", "fold"} and ("prune" in kinds) == (method == "mixed")
    assert report.export is not None and report.export.max_rel < 1e-4
    opened = compressor.load(tmp_path / "run" / "model.safetensors", arch=ARCH)
    assert compressor.profile(opened, EXAMPLE).macs == report.after.macs
    changed = {layer.name for layer in report.layers if layer.before != layer.after}
    if method == "blocks":
        assert all(any(name.startswith(edit["group"]) for edit in report.edits) for name in changed)
    again = compressor.prune(
        tmp_path / "run" / "model.safetensors",
        method="l1",
        ratio=0.3,
        arch=ARCH,
        out=tmp_path / "more",
        latency=False,
        onnx=False,
    )
    assert again.after.macs < report.after.macs


@BOTH
def test_a_dry_run_predicts_what_the_run_comes_to(method, tmp_path):
    predicted = dry_run(job(None, epochs=0, method=method))
    made = run(job(tmp_path / "run", epochs=0, method=method))
    assert (predicted.after.macs, predicted.after.params) == (made.after.macs, made.after.params)
    assert predicted.edits == made.edits and predicted.layers == made.layers
    assert predicted.before.macs == made.before.macs


@BOTH
def test_a_run_that_was_broken_off_comes_to_the_same_end(method, tmp_path, monkeypatch):
    def listen(event):
        if isinstance(event, BatchEvent) and (event.epoch, event.batch) == (1, 2):
            signal.raise_signal(signal.SIGTERM)

    whole = run(job(tmp_path / "whole", epochs=2, method=method))
    with pytest.raises(Interrupted):
        run(job(tmp_path / "broken", epochs=2, method=method), listen)
    monkeypatch.setattr(prune_blocks, "choose_blocks", lambda *given: pytest.fail("chosen again"))
    monkeypatch.setattr(prune, "ranked", lambda *given: pytest.fail("chosen again"))
    report = resume(str(tmp_path / "broken"))
    assert (report.edits, report.refused, report.notes) == (whole.edits, whole.refused, whole.notes)
    one, other = (
        compressor.load(tmp_path / name / "model.safetensors", arch=ARCH).state_dict() for name in ("whole", "broken")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_in_python_blocks_go_in_place():
    model = Residual()
    report = prune_(model, EXAMPLE, "blocks", target_macs=0.6, data=loader())
    assert report.after.macs == compressor.profile(model, EXAMPLE).macs <= 0.61 * report.before.macs
    assert any("outputs moved by" in note for note in report.notes)
    assert {edit["group"] for edit in report.edits} | report.refused.keys() == {"blocks.0", "blocks.1", "blocks.2"}


@pytest.mark.parametrize(
    ("moving", "kinds"),
    [((0.1, 0.2, 0.3), "channels"), ((0.2, 0.1, 0.3), "both"), ((0.3, 0.2, 0.1), "blocks")],
    indirect=["moving"],
)
def test_the_way_that_moves_the_outputs_least_is_gone(moving, kinds):
    report = prune_(Residual(), EXAMPLE, "mixed", target_macs=0.5, round_to=1, data=loader())
    pruned = {edit["kind"] == "prune" for edit in report.edits}
    assert pruned == {"channels": {True}, "both": {True, False}, "blocks": {False}}[kinds]
    assert report.after.macs <= 0.55 * report.before.macs
    assert sum("the outputs move by" in note or "would move them" in note for note in report.notes) == 3


def test_a_network_without_blocks_loses_channels():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    report = prune_(model, EXAMPLE, "mixed", target_macs=0.5, data=loader())
    assert {edit["kind"] for edit in report.edits} == {"prune"} and report.after.macs < 0.52 * report.before.macs
    assert sum("no block that could be replaced" in note for note in report.notes) == 1


def test_blocks_go_half_of_the_way_and_channels_the_rest():
    model = Residual()
    whole = copy.deepcopy(model)
    report = prune_(model, EXAMPLE, "mixed", target_macs=0.5, round_to=1, data=loader())
    assert report.after.macs == compressor.profile(model, EXAMPLE).macs <= 0.505 * report.before.macs
    half = PruneSettings(method="blocks", target_macs=0.5**0.5)
    chosen = [edit["group"] for edit in report.edits if edit["kind"] != "prune"]
    assert chosen == [edit.group for edit in choose_blocks(whole.eval(), EXAMPLE, loader(), half).edits]
    assert any(edit["kind"] == "prune" for edit in report.edits)
    assert sum("refitted" in note for note in report.notes) == 2  # behind blocks, and what reads channels


def test_a_time_is_shared_by_blocks_and_channels(machine):
    settings, whole = PruneSettings(method="mixed", speedup=4.0), Residual().eval()
    with block_costs.block_costs(whole, EXAMPLE, settings) as costs:
        rest = mixed.of_channels(settings, costs.goal)
    assert rest.speedup is None and rest.method == "obs"
    assert rest.target_ms == pytest.approx(costs.goal.price.whole() / 4)


def chosen(model=None, **given):
    model = Residual().eval() if model is None else model
    return choose_blocks(model, EXAMPLE, loader(), PruneSettings(method="blocks", **given))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "until a target is met"),
        ({"target_macs": 1e9}, "no more than the target"),
        ({"target_macs": 0.5, "keep": ("nothing",)}, "no layer is named"),
    ],
)
def test_what_makes_no_sense_is_one_line(given, says):
    with pytest.raises(UsageError, match=says):
        chosen(**given)


def test_a_target_below_all_blocks_cannot_be_reached():
    with pytest.raises(ModelError, match=r"cannot be reached.*prune the channels of the result"):
        chosen(target_macs=0.01)


def test_a_network_without_blocks_says_so():
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).eval()
    with pytest.raises(ModelError, match="sum of two paths"):
        chosen(plain, target_macs=0.5)


def test_what_is_kept_stays():
    found = chosen(target_macs=0.8, keep=("blocks.0", "blocks.1.conv1"))
    assert [edit.group for edit in found.edits] == ["blocks.2"]
    assert found.refused == {"blocks.0": "kept", "blocks.1": "kept"}


def test_a_target_that_steps_pass_by_is_told():
    assert any("not met within 1%" in note for note in chosen(target_macs=0.97).notes)


@pytest.mark.parametrize(
    ("name", "value"), [("ratio", 0.3), ("allocate", "global"), ("table", "x.json"), ("plan", "x"), ("target_ram", 1.0)]
)
def test_settings_of_channels_are_refused(name, value):
    given = {"method": "blocks", "arch": ARCH, "data": "digits", name: value}
    with pytest.raises(UsageError, match=f"{name} is not for blocks"):
        read(VERBS["prune"], given, verb="compressor.prune")


def test_the_job_comes_back_from_its_record(tmp_path):
    made = replace(job(tmp_path), chosen=("method", "target_macs"))
    assert job_of(flat(made)) == made


def test_a_loop_of_the_users_is_refused():
    model = Residual()
    with pytest.raises(UsageError, match="call prune_ before the loop"):
        Pruner(model, EXAMPLE, torch.optim.SGD(model.parameters(), 0.1), "blocks", target_macs=0.5, data=loader())


@pytest.fixture
def machine(monkeypatch):
    """A graph takes a microsecond for each operator and a nanosecond for each weight; a network that to a power."""
    made = {"power": 1.0}

    def in_graph(file):
        graph = onnx.load(file).graph
        weights = sum(int(torch.tensor(tensor.dims).prod()) for tensor in graph.initializer)
        return 1e-3 * len(graph.node) + 1e-6 * weights

    def side_by_side(files, shape, threads, rounds=3, runtime="onnxruntime"):
        power = made["power"] if len(files) > 1 else 1.0
        return [[in_graph(file) ** power for file in files]] * rounds

    monkeypatch.setattr(block_costs, "side_by_side", side_by_side)
    return made


class Deep(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 8, 3), *(Block(8, 8, 1) for _ in range(5)), nn.Flatten(), nn.Linear(288, 10))


@pytest.mark.parametrize("power", [0.6, *(pytest.param(power, marks=pytest.mark.slow) for power in (1.0, 1.5))])
def test_a_target_of_time_is_met_by_measuring(machine, power):
    torch.manual_seed(0)
    machine["power"] = power
    found = chosen(Deep().eval(), speedup=1.6)
    told = next(note for note in found.notes if "times as fast" in note)
    assert 1.5 < float(told.split("(")[1].split()[0]) < 2  # in steps of a block


def test_blocks_that_are_alike_are_timed_once(machine, monkeypatch):
    timed = []
    plain = block_costs.side_by_side

    def counted(files, *given, **more):
        timed.append(len(files))
        return plain(files, *given, **more)

    monkeypatch.setattr(block_costs, "side_by_side", counted)
    chosen(Deep().eval(), speedup=1.3)
    assert timed.count(1) == 4  # the block as it is, without its branch, with either convolution


def test_a_time_that_no_block_reaches_is_refused(machine):
    with pytest.raises(ModelError, match="ms cannot be reached"):
        chosen(Deep().eval(), speedup=1e3)


@BOTH
def test_the_model_is_as_it_was_when_nothing_can_be_done(method):
    model = Residual()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError):
        prune_(model, EXAMPLE, method, target_macs=0.01, data=loader())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("method", "behind"), [("blocks", (17, 13, 9, 5, 1)), ("mixed", (9, 1))])
def test_ctrl_c_while_the_module_is_written_to_leaves_it_as_it_was(method, behind):
    """At some of the last steps of surgery."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Residual()
    prune = partial(prune_, example=EXAMPLE, method=method, target_macs=0.55, data=loader())
    with interrupted_at(-1, "compressor/surgery") as entered:
        prune(copy.deepcopy(model))
    for place in (entered() - steps for steps in behind):
        with untouched(model), pytest.raises(KeyboardInterrupt), interrupted_at(place, "compressor/surgery"):
            prune(model)


def test_what_lies_behind_replaced_blocks_is_refitted(machine):
    """Nearer to the network as it came than with the blocks alone replaced; only layers behind them change."""
    torch.manual_seed(0)
    model, inputs = Deep().eval(), loader()
    edits = [Bypass("1", ""), Bypass("3", "")]
    alone, refitted = copy.deepcopy(model), copy.deepcopy(model)
    replace_blocks_(alone, edits, EXAMPLE)
    cost, found = replace_(refitted, edits, EXAMPLE, inputs)
    with torch.no_grad():
        wanted, before, after = (each(inputs[0]) for each in (model, alone, refitted))
    assert (after - wanted).square().mean() < 0.5 * (before - wanted).square().mean()
    assert [layer.name for layer in found.layers] == [
        f"{block}.conv{number}.weight" for block in (2, 4, 5) for number in (1, 2)
    ] + ["7.weight"]  # fmt: skip
    assert torch.equal(refitted[0].weight, model[0].weight)
    assert cost.macs == compressor.profile(refitted, EXAMPLE).macs
    assert "layers behind replaced blocks are refitted" in found.words()[0]
