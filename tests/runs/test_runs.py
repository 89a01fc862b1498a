"""Whole runs without the command line: what is measured, planned, written, and left alone."""

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

import compressor
from compressor.errors import CompressorError, UsageError
from compressor.exporting.verify import verify_package
from compressor.graph import capture
from compressor.loading.opening import open_model
from compressor.pruning.settings import PruneSettings
from compressor.report.comparison import answers
from compressor.report.report import Report
from compressor.runs import export as exporting
from compressor.runs import results
from compressor.runs.evaluate import evaluate
from compressor.runs.export import export
from compressor.runs.job import EvaluateJob, ExportJob, ProfileJob, TrainJob, flat
from compressor.runs.jobs import PruneJob
from compressor.runs.profile import profile
from compressor.runs.results import filters
from compressor.runs.run import dry_run, run
from compressor.runs.settings import FINETUNE, ModelSettings, OutputSettings
from compressor.runs.stages import PartEvent, Stage
from compressor.training.events import EpochEvent, NoteEvent
from compressor.training.settings import TrainSettings

ROOT = Path(__file__).parents[2]
DIGITS = ModelSettings(str(ROOT / "sample_models" / "digits_cnn.safetensors"))
FRESH = ModelSettings(arch=f"{ROOT / 'sample_models' / 'digits_cnn.py'}:build")
QUICK = replace(FINETUNE, epochs=1, device="cpu")


def out(folder, **more):
    return OutputSettings(str(folder), latency=False, **more)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """One run of pruning with data, what it told, and its folder."""
    folder, told = tmp_path_factory.mktemp("runs") / "pruned", []
    job = PruneJob(DIGITS, "digits", out(folder), choice=PruneSettings(target_macs=0.5), training=QUICK)
    return folder, run(job, told.append), told


# -- the Python API


def test_prune_in_place_reports_before_and_after():
    module = compressor.load(DIGITS.model)
    example = torch.zeros(1, 1, 8, 8)
    parameters = list(module.parameters())
    report = compressor.prune_(module, example, method="l1", ratio=0.5)
    assert [id(parameter) for parameter in module.parameters()] == [id(parameter) for parameter in parameters]
    assert report.before.macs > report.after.macs == compressor.profile(module, example).macs
    assert report.after.params == sum(parameter.numel() for parameter in module.parameters())
    assert report.frozen == {"12": "output of the model"}
    assert [(layer.before, layer.after) for layer in report.layers] == [(32, 16), (64, 32), (64, 32), (10, 10)]
    assert {edit["kind"] for edit in report.edits} == {"prune"} and all(edit["why"] for edit in report.edits)
    assert report.after.top1 is None and report.after.reasons["top1"] == "no data was given"


def test_prune_in_place_takes_batches_for_methods_that_look_at_data():
    module = compressor.load(DIGITS.model)
    batches = [(torch.randn(8, 1, 8, 8), torch.randint(10, (8,)))]
    report = compressor.prune_(module, torch.zeros(1, 1, 8, 8), method="taylor", ratio=0.25, batches=batches)
    assert report.edits[0]["why"].startswith("taylor")


def test_prune_in_place_that_prunes_nothing_leaves_the_module_alone():
    module = compressor.load(DIGITS.model)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(UsageError, match="nothing was pruned"):
        compressor.prune_(module, torch.zeros(1, 1, 8, 8), ratio=0.001)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_a_pruned_module_is_saved_and_opened_again(tmp_path):
    module = compressor.load(DIGITS.model)
    compressor.prune_(module, torch.zeros(1, 1, 8, 8), ratio=0.5)
    compressor.save(module, tmp_path / "small.pt", arch=FRESH.arch, input_shape=(1, 8, 8))
    images = torch.randn(4, 1, 8, 8)
    assert torch.equal(compressor.load(tmp_path / "small.pt")(images), module(images))


# -- pruning with data


def test_a_run_leaves_all_its_files(pruned):
    folder, report, _ = pruned
    names = {path.name for path in folder.iterdir()}
    assert names >= {"model.safetensors", "model.onnx", "report.json", "report.html", "metrics.jsonl", "settings.json"}
    assert not [name for name in names if name.startswith(".") or name.endswith(".tmp")]
    assert Report.load(folder) == Report.from_json(json.loads(json.dumps(report.to_json())))


def test_an_answer_says_how_much_it_looked_at(pruned):
    report = Report.load(pruned[0])
    lines = [line for line, _ in answers(report.before, report.after)]
    assert any(line.startswith("test top-1 99.") and line.endswith(" on 359 images") for line in lines), lines


def test_the_report_has_what_was_asked_of_it(pruned):
    data = json.loads((pruned[0] / "report.json").read_text())
    assert {"command", "settings", "seed", "versions", "device", "before", "after", "edits", "frozen", "layers"} <= set(
        data
    )
    for side in (data["before"], data["after"]):
        for name in ("macs", "macs_thop", "params", "file_bytes", "latency_ms", "top1"):
            assert side[name] is not None or side["reasons"][name]
    assert {"kind", "period", "group", "channels", "why"} <= set(data["edits"][0])
    assert set(data["layers"][0]) == {"name", "before", "after"}


def test_what_is_reported_is_what_was_written(pruned):
    folder, report, _ = pruned
    module = compressor.load(folder / "model.safetensors")
    assert filters(module) == {layer.name: layer.after for layer in report.layers}
    assert compressor.profile(module, torch.zeros(1, 1, 8, 8)).macs == report.after.macs
    assert report.after.macs / report.before.macs == pytest.approx(0.5, rel=0.01)
    found = evaluate(EvaluateJob(ModelSettings(str(folder / "model.safetensors")), "digits"))
    assert found.top1 == pytest.approx(report.after.top1)
    assert evaluate(EvaluateJob(ModelSettings(str(folder / "model.onnx")), "digits")).top1 == found.top1


def test_a_run_tells_its_stages_epochs_and_notes(pruned):
    _, report, told = pruned
    assert [event.row["epoch"] for event in told if isinstance(event, EpochEvent)] == [0]
    assert any("measuring" in event.text for event in told if isinstance(event, Stage))
    assert any("right after pruning" in event.text for event in told if isinstance(event, NoteEvent))
    assert len(report.rows) == 1
    refit = next(note for note in report.notes if "refitted by least squares" in note)
    assert refit in [event.text for event in told if isinstance(event, NoteEvent)]
    assert any(isinstance(event, PartEvent) for event in told)


@pytest.mark.slow
def test_least_squares_take_up_what_pruning_loses_without_training(tmp_path):
    """With `reconstruct=False` batch norm is measured anew, which is worth less."""
    found, told = {}, []
    for reconstruct in (True, False):
        choice = PruneSettings("l1", target_macs=0.3, reconstruct=reconstruct)
        output = out(tmp_path / str(reconstruct), onnx=False)
        job = PruneJob(DIGITS, "digits", output, choice=choice, training=replace(QUICK, epochs=0))
        found[reconstruct] = run(job, told.append)
    assert found[True].after.top1 > 0.95 > 0.8 > found[False].after.top1
    stages = [event.text for event in told if isinstance(event, Stage)]
    assert stages.count("recalibrating batch norm") == 1
    assert not any("least squares" in note for note in found[False].notes)


def test_metrics_are_the_rows_of_the_report(pruned):
    folder, report, _ = pruned
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == list(report.rows)


def test_the_checkpoint_remembers_the_command(pruned):
    from compressor.runs.models import open_model

    opened = open_model(pruned[0] / "model.safetensors")
    assert opened.history[-1] == "compressor prune" and opened.input_shape == (1, 8, 8)
    assert len(opened.classes) == 10 and opened.preparation is not None


def test_a_pruned_model_goes_on(pruned, tmp_path):
    """Prune, then fine-tune, then prune again."""
    model = ModelSettings(str(pruned[0] / "model.safetensors"))
    tuned = run(
        TrainJob(model, "digits", out(tmp_path / "tuned", onnx=False), training=QUICK, command="compressor finetune")
    )
    assert tuned.before.macs == tuned.after.macs == pruned[1].after.macs and not tuned.edits
    again = run(PruneJob(model, None, out(tmp_path / "again", onnx=False)))
    assert again.after.macs < again.before.macs == pruned[1].after.macs
    assert again.rows == () and again.after.reasons["top1"] == "no --data was given"


# -- dry runs


def test_a_dry_run_predicts_and_writes_the_plan_alone(tmp_path):
    job = PruneJob(DIGITS, None, out(tmp_path / "run", onnx=False), choice=PruneSettings(ratio=0.3))
    predicted = dry_run(job)
    assert [each.name for each in (tmp_path / "run").iterdir()] == ["plan.json"]
    done = run(job)
    assert (predicted.after.macs, predicted.after.params) == (done.after.macs, done.after.params)
    assert (predicted.edits, predicted.layers) == (done.edits, done.layers)


def test_a_dry_run_times_what_the_plan_would_leave(monkeypatch, tmp_path):
    """The graph that is timed beside the whole one is that of the network once it is cut."""
    seen = []

    def side_by_side(files, shape, threads, runtime):
        seen.append([onnx.load(file) for file in files])
        return [[4.0, 3.0], [4.0, 2.0], [4.0, 1.0]]

    monkeypatch.setattr("compressor.runs.latency_goal.side_by_side", side_by_side)
    job = PruneJob(DIGITS, None, OutputSettings(str(tmp_path / "run")), choice=PruneSettings(ratio=0.5, method="l1"))
    found = dry_run(job).details["latency"]
    assert (found["before"], found["after"], found["ratio"]) == (4.0, 2.0, 0.5) and found["low"] < 0.5 < found["high"]
    [(whole, cut)] = seen
    module = open_model(DIGITS.model).module
    report = compressor.prune_(module, torch.zeros(1, 1, 8, 8), ratio=0.5, method="l1")
    weights = {tensor.name: tuple(tensor.dims) for tensor in cut.graph.initializer}
    held = {name: tuple(value.shape) for name, value in module.state_dict().items() if value.dim() > 1}
    assert report.edits and held.items() <= weights.items()
    assert not held.items() <= {tensor.name: tuple(tensor.dims) for tensor in whole.graph.initializer}.items()


def test_a_dry_run_of_training_says_how_much_work_it_is(tmp_path):
    report = dry_run(TrainJob(FRESH, "digits", out(tmp_path / "run")))
    assert report.notes[-1] == "would train for 10 epochs of 10 steps on 1,295 images"
    assert not (tmp_path / "run").exists()


# -- training from random weights


def test_training_fits_the_architecture_to_the_data(tmp_path):
    job = TrainJob(FRESH, "digits", out(tmp_path / "run", onnx=False), training=replace(TrainSettings(), epochs=2))
    report = run(job)
    assert report.after.top1 > max(report.before.top1, 0.3)
    assert compressor.load(tmp_path / "run" / "model.safetensors")(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_the_same_seed_trains_the_same_weights(tmp_path):
    weights = []
    for name in ("one", "two"):
        job = TrainJob(FRESH, "digits", out(tmp_path / name, onnx=False), training=replace(QUICK, seed=3))
        run(job)
        weights.append(compressor.load(tmp_path / name / "model.safetensors").state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


# -- the folder


def test_a_folder_with_something_in_it_is_refused_before_any_work(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        run(PruneJob(ModelSettings("nowhere.pt"), None, out(tmp_path)))


def test_overwriting_replaces_the_run_and_leaves_other_files(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "model.onnx").write_text("of an earlier run")
    run(PruneJob(DIGITS, None, out(tmp_path, overwrite=True, onnx=False)))
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "model.onnx").exists(), "of another model than model.safetensors"


def test_a_plan_that_fails_leaves_an_earlier_run_whole(tmp_path):
    run(PruneJob(DIGITS, None, out(tmp_path / "run", onnx=False)))
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(UsageError):
        run(PruneJob(DIGITS, None, out(tmp_path / "run", overwrite=True), choice=PruneSettings(ratio=0.001)))
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_an_export_that_fails_is_an_error_but_keeps_the_model(tmp_path, monkeypatch):
    def failing(*_, **__):
        raise CompressorError("outputs differ")

    monkeypatch.setattr(results, "export_onnx", failing)
    with pytest.raises(CompressorError, match=r"model\.safetensors is made, but not model\.onnx: outputs differ"):
        run(PruneJob(DIGITS, None, out(tmp_path / "run")))
    assert Report.load(tmp_path / "run").refused["export to ONNX"] == "outputs differ"
    assert not (tmp_path / "run" / "model.onnx").exists()


def test_precision_int8_leaves_a_package_beside_the_model_until_it_is_overwritten(tmp_path, monkeypatch):
    choice, folder, scored = PruneSettings(target_macs=0.5), tmp_path / "run", []
    score = exporting._main
    monkeypatch.setattr(exporting, "_main", lambda data, predict: scored.append(predict) or score(data, predict))
    report = run(PruneJob(DIGITS, "digits", out(folder, precision="int8"), choice=choice, training=QUICK))
    [found] = Report.load(folder).details["int8"]
    manifest = verify_package(folder / "int8")
    assert manifest.quantization is not None and manifest.exits[0].macs == report.after.macs
    assert found == {"exit": "model", "top1": manifest.exits[0].top1, "top1_float": report.after.top1}
    assert len(scored) == 1, "in float32 the report has the figure"
    with pytest.raises(UsageError, match="would delete"):
        run(PruneJob(ModelSettings(str(folder / "int8" / "model.onnx")), None, out(folder, overwrite=True)))
    assert verify_package(folder / "int8") == manifest
    run(PruneJob(DIGITS, None, out(folder, overwrite=True)))
    assert not (folder / "int8").exists(), "of another model than model.safetensors"


def test_precision_int8_that_fails_keeps_the_model_and_needs_data(tmp_path, monkeypatch):
    def failing(*_, **__):
        raise CompressorError("no kernel")

    monkeypatch.setattr(results, "export_package", failing)
    choice = PruneSettings(target_macs=0.5)
    with pytest.raises(CompressorError, match=r"is made, but not int8: no kernel; leave out `precision` int8"):
        run(PruneJob(DIGITS, "digits", out(tmp_path / "run", precision="int8"), choice=choice, training=QUICK))
    assert Report.load(tmp_path / "run").refused["export to INT8"] == "no kernel"
    with pytest.raises(UsageError, match="`precision` int8 calibrates on images, which needs `data`"):
        PruneJob(DIGITS, None, out(tmp_path / "none", precision="int8"), choice=choice).completed()


# -- profile, evaluate, export


def test_profile_of_a_file_has_its_size(tmp_path):
    cost = profile(ProfileJob(DIGITS))
    assert cost.file_bytes == Path(DIGITS.model).stat().st_size and "file_bytes" not in cost.reasons


def test_export_then_profile_and_evaluate_the_file(tmp_path):
    path = str(tmp_path / "digits.onnx")
    export(ExportJob(DIGITS, path, data="digits"))
    assert profile(ProfileJob(ModelSettings(path))).macs == profile(ProfileJob(DIGITS)).macs
    with pytest.raises(UsageError, match="exists"):
        export(ExportJob(DIGITS, path))


def test_evaluate_takes_the_split_that_was_asked_for():
    assert evaluate(EvaluateJob(DIGITS, "digits")).count == 359
    assert evaluate(EvaluateJob(DIGITS, "digits", split="validation")).count == 143


def test_an_architecture_without_a_file_has_random_weights_and_says_so():
    found = evaluate(EvaluateJob(FRESH, "digits"))
    assert found.top1 < 0.5 and any("random weights" in note for note in found.notes)


def test_channels_and_profile_count_the_same():
    module = compressor.load(DIGITS.model)
    example = torch.zeros(1, 1, 8, 8)
    assert capture(module, example).macs() == compressor.profile(module, example).macs


def test_settings_are_flat_and_plain():
    settings = flat(PruneJob(DIGITS, None, out("runs/x"), choice=PruneSettings(ratio_for=(("a", 0.5),))))
    assert settings["command"] == "prune" and settings["ratio_for"] == (("a", 0.5),) and settings["lr"] == 0.01
    assert json.loads(json.dumps(settings))
