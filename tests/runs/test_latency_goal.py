"""A target in milliseconds is met by measuring and planning again; the machine is a formula here."""

import copy
import itertools
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from compressor import Pruner, prune_
from compressor.errors import ModelError, UsageError
from compressor.exporting import layer_times
from compressor.graph import capture
from compressor.profiling.timetable import Timetable
from compressor.pruning.adapnet.settings import PRESETS
from compressor.pruning.oneshot import rank
from compressor.pruning.settings import PruneSettings, resolved
from compressor.runs import latency_goal
from compressor.runs.jobs import AdaptJob
from compressor.runs.latency_goal import goal_in_ms, selected
from compressor.runs.resume import resume
from compressor.runs.run import run
from compressor.runs.settings import FINETUNE, GoalSettings, ModelSettings, OutputSettings
from compressor.surgery import Insert, Plan, Prune, operate_
from compressor.training.events import BatchEvent
from compressor.training.interrupt import Interrupted

DIGITS = str(Path(__file__).parents[2] / "sample_models" / "digits_cnn.safetensors")


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    ).eval()  # fmt: skip
    example = torch.zeros(1, 3, 16, 16)
    return model, example, capture(model, example)


def alone(layer, widths):
    """Ten microseconds a layer and a nanosecond for each product."""
    return 0.01 + 1e-6 * widths[0] * widths[1] * np.prod(layer.size) * 9


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Layers take what `alone` says; whole graphs that to a power, which no table knows."""
    made = SimpleNamespace(power=1.0, timed=0, runtimes=set(), narrow=0.0)

    def in_graph(file):
        proto = onnx.load(file)
        sizes = [tuple(t.dims) for t in proto.graph.initializer if len(t.dims) == 4]
        layer = SimpleNamespace(size=(16, 16))
        taken = sum(alone(layer, (dims[1], dims[0])) for dims in sizes) ** made.power
        return 0.7 * taken if taken < made.narrow else taken  # as where narrow layers take another kernel

    def side_by_side(files, shape, threads, rounds=3, runtime="onnxruntime"):
        made.timed += len(files) - 1
        made.runtimes.add(runtime)
        return [[in_graph(file) for file in files]] * rounds

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(latency_goal, "side_by_side", side_by_side)
    defaults = layer_times.layer_times.__kwdefaults__ | {"time_layer": lambda layer, widths, _: alone(layer, widths)}
    monkeypatch.setattr(layer_times.layer_times, "__kwdefaults__", defaults)
    monkeypatch.setattr(layer_times, "profile_whole", lambda file, *_: layer_times.Timed(in_graph(file), 0.0))
    made.of = in_graph
    return made


def chosen(net, **given):
    model, example, channels = net
    choice = resolved(PruneSettings(round_to=1, **given), has_inputs=False)
    return selected(model, example, channels, rank(model, channels, choice), choice)


@pytest.mark.parametrize(
    ("share", "power"),
    [
        pytest.param(*each, marks=[pytest.mark.slow] * (each != (0.5, 0.7)))
        for each in itertools.product((0.75, 0.5, 0.35), (1.0, 0.7, 1.4))
    ],
)
def test_a_target_is_met_though_the_table_is_wrong(net, machine, share, power):
    machine.power = power
    whole = latency_goal_dense(net, machine)
    selection = chosen(net, target_ms=share * whole)
    note = next(note for note in selection.notes if "times as fast" in note)
    found = float(note.split()[0])
    assert found == pytest.approx(share * whole, rel=0.055)
    assert not any("is not met" in note for note in selection.notes)
    assert machine.timed <= 1 + 1 + 3 if power != 1 else machine.timed == 2


def latency_goal_dense(net, machine):
    import tempfile

    from compressor.exporting.onnx import export_onnx

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "net.onnx"
        export_onnx(net[0], net[1], file)
        return machine.of(file)


def test_between_a_plan_that_is_too_fast_and_one_too_slow_others_are_tried(net, machine):
    whole = latency_goal_dense(net, machine)
    machine.narrow, target = whole / 2, 0.4 * whole
    note = next(note for note in chosen(net, target_ms=target).notes if "times as fast" in note)
    assert 0.8 * target < float(note.split()[0]) <= 1.05 * target, "the first plan takes 0.7 of it"


def test_milliseconds_and_multiply_adds_can_be_wanted_at_once(net, machine):
    channels = net[2]
    selection = chosen(net, target_ms=0.9 * latency_goal_dense(net, machine), target_macs=0.4)
    assert selection.macs <= 0.404 * channels.macs()


def test_what_is_impossible_says_the_least_that_can_be_reached(net, machine):
    with pytest.raises(ModelError, match=r"1e-05 ms .* cannot be reached: .* ms \(.*\) remain.*frozen: 8: output"):
        chosen(net, target_ms=1e-5)
    with pytest.raises(UsageError, match=r"the model has .* ms, no more than the target of 1e\+06 ms"):
        chosen(net, target_ms=1e6)


def test_another_machines_times_are_a_prediction_and_nothing_is_timed(net, machine, tmp_path):
    whole = latency_goal_dense(net, machine)
    chosen(net, target_ms=0.5 * whole)
    table = Timetable.read(next((tmp_path / "cache" / "compressor" / "times").iterdir()))
    table.whole = {"Conv": 100.0}
    table.write(tmp_path / "table.json")
    machine.timed = 0
    selection = chosen(net, target_ms=50.0, table=str(tmp_path / "table.json"))
    assert machine.timed == 0
    assert any("are predicted for" in note and "nothing was timed here" in note for note in selection.notes)


def test_models_of_several_inputs_are_refused(net, machine):
    model, example, channels = net
    choice = resolved(PruneSettings(target_ms=1.0), has_inputs=False)
    with pytest.raises(UsageError, match="models of one input"):
        selected(model, (example, example), channels, rank(model, channels, choice), choice)


def test_a_speedup_is_a_share_of_what_the_network_takes(net, machine):
    selection = chosen(net, speedup=2.0)
    note = next(note for note in selection.notes if "times as fast" in note)
    assert float(note.split("(")[1].split()[0]) == pytest.approx(2.0, rel=0.06)
    with pytest.raises(UsageError, match="give more than 1"):
        prune_(net[0], net[1], speedup=0.5)


def test_times_are_of_the_runtime_that_is_named(net, machine):
    pytest.importorskip("openvino")
    report = prune_(net[0], net[1], speedup=1.5, runtime="openvino", round_to=1)
    assert machine.runtimes == {"openvino"} and any("in OpenVINO" in note for note in report.notes)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 144, 4))
    machine.runtimes.clear()
    Pruner(model, net[1], torch.optim.SGD(model.parameters(), lr=0.01), "adapnet", speedup=1.2, runtime="openvino",
           steps=9, max_epochs=3, lsep=1)  # fmt: skip
    assert machine.runtimes == {"openvino"}
    with pytest.raises(UsageError, match="runtime is 'tflite', and has to be one of onnxruntime, openvino"):
        prune_(model, net[1], speedup=1.2, runtime="tflite")


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "rounds"), [(1, 1), (6, 3)])
def test_a_loop_prunes_to_a_time_and_measures_it_at_the_end(net, machine, steps, rounds):
    model, example, _ = net
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    machine.power = 0.8
    whole = latency_goal_dense(net, machine)
    every = {} if steps == 1 else {"every": 2}
    pruner = Pruner(model, example, optimizer, "l1", speedup=2.0, steps=steps, round_to=1, **every)
    for _ in range(steps):
        pruner.step()
    report = pruner.finish()
    assert len(report.rows) == rounds and machine.timed
    [note] = [note for note in report.notes if "ms for one image" in note]
    assert float(note.split()[0]) == pytest.approx(whole / 2, rel=0.055)


@pytest.mark.slow
def test_adapnet_prunes_to_a_time_by_the_price_of_the_network_as_it_stands(net, machine):
    model, example, channels = net
    pruner = Pruner(model, example, torch.optim.SGD(model.parameters(), lr=0.01), "adapnet", speedup=1.5, steps=9,
                    max_epochs=3, lsep=1, round_to=1)  # fmt: skip
    target = pruner._course.target
    assert target.ms.wanted == pytest.approx(target.ms.price.whole() / 1.5)
    group = channels.free[1]
    half = Plan((Prune(group.name, tuple(group.ids[:32].tolist()), "test"),))
    grown = Plan((Insert(group.name, int(group.ids[0]), "test"),))
    for plan in (half, grown):
        edited = copy.deepcopy(model)
        after = operate_(edited, plan, channels)
        fresh = goal_in_ms(edited, example, after, PruneSettings(speedup=1.5)).price
        assert target.after(plan, channels).ms.price.whole() == pytest.approx(fresh.whole(), rel=0.02)
    assert not target.met(channels) and target.met(channels, half.removed)
    assert "ms are predicted for one image" in " ".join(pruner.finish().notes)


def test_an_adapnet_run_prunes_to_a_time_that_it_keeps_when_it_goes_on(machine, tmp_path):
    goals = GoalSettings(speedup=1.5, round_to=1)
    adapnet = replace(PRESETS["quick"], startup_epochs=0, max_epochs=3, finetune_epochs=1, lsep=8)
    training = replace(FINETUNE, device="cpu", log_seconds=0.0)

    def job(name):
        output = OutputSettings(str(tmp_path / name), latency=False, onnx=False)
        return AdaptJob(ModelSettings(DIGITS), "digits", output, training=training, goals=goals, adapnet=adapnet)

    def broken_off(event):
        if isinstance(event, BatchEvent) and (event.epoch, event.batch) == (2, 4):
            signal.raise_signal(signal.SIGTERM)

    whole = run(job("whole"))
    [note] = [note for note in whole.notes if "predicted for one image" in note]
    with pytest.raises(Interrupted):
        run(job("broken"), broken_off)
    machine.power = 0.5  # another day
    again = resume(str(tmp_path / "broken"))
    assert again.edits == whole.edits and again.notes == whole.notes and again.refused == whole.refused
    assert whole.after.macs < whole.before.macs or "were asked for" in whole.refused["target"]
    assert float(note.split()[0]) > 0


@pytest.mark.parametrize("target", [{"target_ms": 0.0}, {"speedup": 1e-12}, {"target_ms": 1e6}])
def test_targets_of_time_that_are_none_are_one_line(net, machine, target):
    optimizer = torch.optim.SGD(net[0].parameters(), lr=0.01)
    with pytest.raises(UsageError, match="the target is 0 ms|no more than the target of"):
        Pruner(net[0], net[1], optimizer, "adapnet", steps=9, max_epochs=3, lsep=1, **target)
