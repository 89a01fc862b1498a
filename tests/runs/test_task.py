"""`task` in the verbs: networks that classify nothing are trained, pruned, cut, measured and exported as others are."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import compressor
from compressor.cli import main
from compressor.errors import DataError, FileError, ModelError, UsageError
from compressor.exporting.forms import AtDepth
from compressor.exporting.onnx import export_onnx
from compressor.report.manifest import read_manifest
from compressor.report.report import Report
from compressor.report.tables import exits_table
from compressor.runs.resume import resume
from tests.report.test_tables import printed
from tests.runs import tasks

FILE = Path(tasks.__file__)
FAST: dict[str, Any] = {"epochs": 1, "batch_size": 16, "device": "cpu", "latency": False, "onnx": False}
# Class -> function that builds its network, and the main figure.
KINDS = {
    "Segmentation": ("segmenter", "mIoU"),
    "Tags": ("tagger", "tags right"),
    "Regression": ("regressor", "mae"),
    "Sounds": ("listener", "right"),
    "Keypoints": ("Pointer", "PCK"),
}


def named(kind: str) -> dict[str, Any]:
    return {"arch": f"{FILE}:{KINDS[kind][0]}", "task": f"{FILE}:{kind}"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained segmenter."""
    folder = tmp_path_factory.mktemp("task") / "trained"
    compressor.train(**named("Segmentation"), **FAST, out=folder)
    return folder / "model.safetensors"


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_each_kind_is_pruned_and_measured_by_its_figure(kind, tmp_path):
    report = compressor.prune(**named(kind), **FAST, target_macs=0.6, out=tmp_path / "run")
    after, figure = report.after, KINDS[kind][1]
    assert after.macs < 0.65 * report.before.macs and after.figure.name == figure
    assert after.main is not None and after.top1 is None and "top1" not in after.reasons
    assert after.figure.higher == (kind != "Regression")
    assert report.rows[-1][f"validation_{figure}"] is not None
    assert Report.load(tmp_path / "run").after == after
    assert any("refitted by least squares" in note for note in report.notes)
    page = (tmp_path / "run/report.html").read_text()
    assert f"test {figure}" in page and "top-1" not in page


def test_what_makes_a_figure_worse_is_said_by_its_direction(tmp_path):
    """Fine-tuning that raises an error is taken back, as one that lowers an accuracy is."""

    class Worse(tasks.Regression):
        seen = 0

        def measure(self, model: nn.Module, batches: Any) -> Any:
            Worse.seen += 1
            return {"mae": float(Worse.seen)}

    report = compressor.prune(arch=f"{FILE}:regressor", task=Worse(), **FAST, ratio=0.5, out=tmp_path / "run")
    assert any(note.startswith("fine-tuning took validation mae from") for note in report.notes)


@pytest.mark.parametrize("method", ["obs", "l1", "taylor", "adapnet"])
def test_every_method_prunes(method, trained, tmp_path):
    more = {"max_epochs": 4, "finetune_epochs": 1, "lsep": 1, "preset": "quick"} if method == "adapnet" else FAST
    settings = {**FAST, **more, "target_macs": 0.7}
    if method == "adapnet":
        del settings["epochs"]
    report = compressor.prune(trained, task=f"{FILE}:Segmentation", method=method, **settings, out=tmp_path / "run")
    assert report.after.macs <= report.before.macs and report.after.figure.name == "mIoU"


def test_adapnet_judges_the_filters_of_a_network_of_signals(tmp_path):
    few = {**FAST, "max_epochs": 6, "finetune_epochs": 1, "lsep": 1, "preset": "quick"}
    del few["epochs"]
    report = compressor.prune(**named("Sounds"), method="adapnet", **few, target_macs=0.7, out=tmp_path / "run")
    assert {place["group"] for row in report.rows for place in row.get("groups", ())} == {"0", "3"}
    assert set(report.frozen) == {"8"}  # the output


def test_finetune_with_distillation_detach_and_evaluate(trained, tmp_path):
    given = {"task": f"{FILE}:Segmentation"}
    tuned = compressor.finetune(trained, **given, **FAST, distill=True, out=tmp_path / "tuned")
    assert tuned.after.main >= tuned.before.main - 1
    cut = compressor.detach(trained, **given, **FAST, exits=1, out=tmp_path / "cut")
    assert cut.variants["exit 1"].figure.name == "mIoU" and cut.variants["exit 1"].macs < cut.after.macs
    found = compressor.evaluate(tmp_path / "cut/model.safetensors", **given, split="validation", exit=1)
    assert list(found.figures) == ["mIoU", "pixels"] and found.amount == "32 examples"


@pytest.mark.slow
def test_an_onnx_file_is_measured_by_the_task(trained, tmp_path):
    given = {"task": f"{FILE}:Segmentation"}
    compressor.export(trained, tmp_path / "m.onnx", **given)
    onnx = compressor.evaluate(tmp_path / "m.onnx", **given)
    assert onnx.figures["mIoU"] == pytest.approx(compressor.evaluate(trained, **given).figures["mIoU"], abs=1e-3)


def test_an_onnx_file_of_several_outputs_is_not_measured_by_its_first(tmp_path):
    class Both(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return x, -x

    export_onnx(Both(), torch.zeros(1, 3, 8, 8), tmp_path / "m.onnx")
    with pytest.raises(
        FileError, match=r"gives 2 outputs .*Segmentation would see the first alone: evaluate the model"
    ):
        compressor.evaluate(tmp_path / "m.onnx", task=f"{FILE}:Segmentation")


@pytest.mark.parametrize(("kind", "network"), [("Pairs", "Paired"), ("Keypoints", "Pointer")])
def test_packages_and_files_of_several_inputs_are_measured_by_the_task(kind, network, tmp_path):
    given = {"task": f"{FILE}:{kind}"}
    compressor.prune(arch=f"{FILE}:{network}", **given, **{**FAST, "onnx": True}, target_macs=0.7, out=tmp_path / "run")
    model = tmp_path / "run/model.safetensors"
    wanted = compressor.evaluate(model, **given).figures
    compressor.export(model, tmp_path / "package", **given, latency=False)
    compressor.export(model, tmp_path / "int8", **given, latency=False, precision="int8")
    for place, off in [("run/model.onnx", 1e-5), ("package", 1e-5), ("int8", 0.1)]:
        found = compressor.evaluate(tmp_path / place, **given).figures
        assert found == pytest.approx(wanted, abs=off)
    manifest = read_manifest(tmp_path / "package")
    main, value = next(iter(wanted.items()))
    assert manifest.exits[0].top1 == pytest.approx(value, abs=1e-5)
    for folder in ("package", "int8"):
        manifest = read_manifest(tmp_path / folder)
        shown = printed(exits_table(manifest))
        assert manifest.figure == main and main in shown and f"{manifest.exits[0].top1:.4g}" in shown
        assert "top-1" not in shown and "%" not in shown and "same class" not in shown


def test_an_exit_of_a_package_is_measured_by_the_task(trained, tmp_path):
    given = {"task": f"{FILE}:Segmentation"}
    compressor.detach(trained, **given, **FAST, exits=1, out=tmp_path / "cut")
    compressor.export(tmp_path / "cut/model.safetensors", tmp_path / "package", **given, latency=False)
    found = [compressor.evaluate(tmp_path / "package", **given, exit=number).figures["pixels"] for number in (0, 1)]
    wanted = [
        compressor.evaluate(tmp_path / "cut/model.safetensors", **given, exit=number).figures["pixels"]
        for number in (0, 1)
    ]
    assert found == pytest.approx(wanted, abs=1e-3) and found[0] != found[1]


def test_a_sweep_and_its_comparison_name_the_figure(trained, tmp_path):
    given = {"methods": ["l1"], "targets": [0.6], "task": f"{FILE}:Segmentation"}
    compared = compressor.sweep(trained, **given, **FAST, out=tmp_path / "sweep")
    assert compared.figure.label == "mIoU" and compared.to_json()["points"][0]["mIoU"] is not None
    assert "test mIoU" in (tmp_path / "sweep/comparison.html").read_text() or compared.fronts["macs"]


# Class -> the arguments of its network, and which examples are right by hand.
SINGLES: dict[str, tuple[dict[str, int], Any]] = {
    "RightTags": ({"outputs": 5}, lambda scores, y: ((scores > 0) == y.bool()).all(1)),
    "NearlyRight": ({"outputs": 1}, lambda scores, y: (scores[:, 0] - y).abs() < 0.3),
    "Classes": ({}, lambda scores, y: scores.argmax(1) == y),
    "NamedSounds": ({"kind": 1, "channels": 1}, lambda scores, y: scores.argmax(1) == y),
}


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow if kind in ("NearlyRight", "Classes") else ()) for kind in SINGLES],
)
def test_a_network_is_routed_by_what_its_task_calls_right(kind, tmp_path):
    arguments, right = SINGLES[kind]
    task = f"{FILE}:{kind}"
    given = {"arch": f"{FILE}:deeper", "arch_arg": tuple(arguments.items()), "task": task}
    report = compressor.route(**given, **FAST, target_macs=0.7, out=tmp_path / "run")
    assert report.after.macs <= 0.8 * report.before.macs and report.after.figure == report.before.figure
    file = tmp_path / "run/model.safetensors"
    assert compressor.evaluate(file, task=task).figures == pytest.approx(report.after.figures, abs=1e-6)
    routed, data = compressor.load(file).eval(), getattr(tasks, kind)().data("test")
    found: list[Any] = [[], []]
    for x, y in DataLoader(data, 16) if isinstance(data, Dataset) else data:
        with torch.no_grad():
            for each, scores in zip(found, (routed(x), AtDepth(routed, routed.depths - 1)(x)[0]), strict=True):
                each.append(right(scores, y))
    ways = {way["name"]: way["top1"] for way in report.details["ways"]}
    assert [ways["the router"], ways["all layers"]] == pytest.approx(
        [float(torch.cat(each).float().mean()) for each in found]
    )
    page = (tmp_path / "run/report.html").read_text()
    assert "test accuracy" in page and "top-1" not in page and not report.variants


def test_a_routed_network_of_a_task_keeps_what_is_promised_of_its_right_examples(tmp_path):
    given = {"arch": f"{FILE}:deeper", "arch_arg": (("kind", 1), ("channels", 1)), "task": f"{FILE}:NamedSounds"}
    report = compressor.route(**given, **FAST, max_drop=0.3, out=tmp_path / "run")
    found, words = report.after.certificate, report.after.certificate.words()
    assert found.kept and found.kind == "exact" and found.differed is None
    assert "30 points of accuracy on examples like these" in words and "class that loses" not in words
    sizes = [len(y) for _, y in tasks.NamedSounds().data("test")]
    assert abs(found.images - sum(sizes) / 2) <= max(sizes) < sum(sizes)
    refused = compressor.route(**given, **FAST, max_drop=0.001, out=tmp_path / "refused")
    assert not refused.after.certificate.kept and "so all layers run" in refused.after.certificate.words()
    ways = {way["name"]: way["top1"] for way in refused.details["ways"]}
    assert ways["the router"] == ways["all layers"]


def test_what_route_cannot_do_with_a_task_is_said(trained, tmp_path):
    given = {"arch": f"{FILE}:deeper", "task": f"{FILE}:Classes", "out": tmp_path / "run", **FAST}
    for name, value in {"router": "image", "label_epochs": 1}.items():
        with pytest.raises(UsageError, match=f"`{name}` of route is for labelled images: leave it out"):
            compressor.route(**given, **{name: value})
    with pytest.raises(
        UsageError, match=r"route looks at single examples: .* `correct\(self, outputs, batch\)` or `labels"
    ):
        compressor.route(trained, **given | {"arch": None, "task": f"{FILE}:Segmentation"})

    class Pixels(tasks.Segmentation):
        def correct(self, outputs: Any, batch: Any) -> Any:
            return (outputs.argmax(1) == batch[1]).float().mean((1, 2)) > 0.9

    class Points(tasks.Keypoints):
        def correct(self, outputs: Any, batch: Any) -> Any:
            return (outputs["maps"].flatten(2).argmax(2) == batch["points"]).all(1)

    with pytest.raises(ModelError, match="gives 3x8x8 for an image: its early exits have to give scores"):
        compressor.route(trained, **given | {"arch": None, "task": Pixels()})
    with pytest.raises(
        UsageError, match="route is for networks of one input, a tensor: inputs of .*Points-1 gives several"
    ):
        compressor.route(**given | {"arch": f"{FILE}:Pointer", "task": Points()})
    assert not (tmp_path / "run").exists()


def test_an_early_stage_is_replaced_by_the_labels_of_a_task(tmp_path):
    given = {"arch": f"{FILE}:deeper", **FAST, "until": "3", "retrain_epochs": 1, "out": tmp_path / "run"}
    report = compressor.replace_early(**given, task=f"{FILE}:Classes")
    assert report.after.figure.name == "errors" and report.rows[0]["validation_errors"] is not None
    assert set(report.rows[0]["local_losses"]) == {"3", "5", "7"} and report.rows[-1]["phase"] == "classifier"
    assert "train_top1" in report.rows[0]
    again = compressor.evaluate(tmp_path / "run/model.safetensors", task=f"{FILE}:Classes")
    assert again.figures == pytest.approx(report.after.figures)
    with pytest.raises(UsageError, match=r"replace looks at single examples: .* `labels\(self, batch\)`"):
        compressor.replace_early(**given | {"overwrite": True}, task=f"{FILE}:NearlyRight")
    with pytest.raises(DataError, match="class 1, and the network gives 1 scores"):
        compressor.replace_early(**given | {"overwrite": True}, arch_arg=(("outputs", 1),), task=f"{FILE}:Classes")
    with pytest.raises(ModelError, match=r"takes inputs of shape \(1, 64\)"):
        own = {"arch_arg": (("kind", 1), ("channels", 1)), "overwrite": True}
        compressor.replace_early(**given | own, task=f"{FILE}:NamedSounds")


def test_what_a_task_cannot_do_is_said(trained, tmp_path):
    given = {"task": f"{FILE}:Segmentation", "out": tmp_path / "run", **FAST}
    with pytest.raises(UsageError, match="`mean` is for labelled images"):
        compressor.finetune(trained, mean=(0.5,), std=(0.5,), **given)
    with pytest.raises(UsageError, match="exclude each other"):
        compressor.finetune(trained, data="digits", **given)
    with pytest.raises(UsageError, match="data is missing: give digits, .* or task"):
        compressor.finetune(trained, out=tmp_path / "run", **FAST)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("task", "error", "said"),
    [
        ("nowhere.py:Task", UsageError, "there is no file nowhere.py: give `task` FILE.py:CLASS"),
        (f"{FILE}:Missing", UsageError, "has no function 'Missing'"),
        (f"{FILE}:Nobody", DataError, "inputs gave a batch without examples, float32 0x3x8x8"),
        (f"{FILE}:Unbatched", DataError, r"gives, float32 1x8x8: .*a list that data gives is one of batches"),
        (f"{FILE}:Crashing", FileError, r"Crashing cannot be constructed: OSError: no data here \(line"),
        (f"{FILE}:Narrow", DataError, "does not take what inputs of .*Narrow gives, float32 1x2x8x8"),
        (f"{FILE}:images", FileError, "cannot be constructed: TypeError"),
    ],
)
def test_a_task_that_cannot_be_used_is_one_line(task, error, said, trained, tmp_path):
    with pytest.raises(error, match=said) as raised:
        compressor.finetune(trained, task=task, out=tmp_path / "run", **FAST)
    assert "\n" not in str(raised.value) and not (tmp_path / "run").exists()


def test_training_batches_that_the_model_cannot_take_are_one_line(trained, tmp_path):
    given = {"task": f"{FILE}:Narrowing", "out": tmp_path / "run", **FAST}
    with pytest.raises(DataError, match="a batch of data holds float32 .*x2x8x8, which the network does not take"):
        compressor.prune(trained, **given, ratio=0.3)
    with pytest.raises(UsageError, match="loss failed on a batch of float32 16x2x8x8, int64 16x8x8: RuntimeError"):
        compressor.finetune(trained, **given)


def test_a_record_runs_a_task_only_where_it_was_named_here(trained, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(FILE.read_text())
    whole = compressor.finetune(trained, task=f"{mine}:Segmentation", **{**FAST, "epochs": 2}, out=tmp_path / "run")
    (tmp_path / "run/report.json").unlink()
    known = resume(str(tmp_path / "run"))
    assert known.after.figures == whole.after.figures
    (tmp_path / "run/report.json").unlink()
    mine.write_text(mine.read_text() + "\n# changed\n")
    with pytest.raises(UsageError, match="learns by code in a file, .* never named on this machine or has changed"):
        resume(str(tmp_path / "run"))


def test_an_object_of_another_process_is_not_found_again(trained, tmp_path):
    compressor.finetune(trained, task=tasks.Segmentation(), **FAST, out=tmp_path / "run")
    (tmp_path / "run/report.json").unlink()
    from compressor.runs import own

    own._OBJECTS.clear()
    with pytest.raises(UsageError, match="was an object of another process"):
        resume(str(tmp_path / "run"))


def test_the_template_runs_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "folder" / "mine.py"
    with pytest.raises(SystemExit):
        main(["new-task", str(mine)])
    given = {"arch": f"{mine}:build", "arch_arg": (("width", 2),), "task": f"{mine}:Shapes"}
    report = compressor.train(**given, **{**FAST, "batch_size": 64}, out=tmp_path / "run")
    assert list(report.after.figures) == ["IoU", "pixels right"] and f"--task {mine}:Shapes" in mine.read_text()


@pytest.mark.parametrize(("name", "said"), [("mine.txt", "no Python file"), ("mine.py", "exists")])
def test_new_task_writes_over_nothing(name, said, tmp_path, capsys):
    (tmp_path / name).write_text("mine")
    with pytest.raises(SystemExit) as stop:
        main(["new-task", str(tmp_path / name)])
    assert stop.value.code == 2 and said in capsys.readouterr().err and (tmp_path / name).read_text() == "mine"
