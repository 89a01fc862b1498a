"""`compressor route`: what it lists, makes and says; a line for each mistake; a run that goes on."""

import json
import signal
from pathlib import Path

import pytest
import torch

import compressor
from compressor.cli import main
from compressor.exporting.runtime import OnnxModel
from compressor.report.report import Report
from compressor.routing.network import Routed
from compressor.routing.settings import RouteSettings
from compressor.runs.jobs import RouteJob
from compressor.runs.models import open_model
from compressor.runs.promise import put_aside
from compressor.runs.resume import resume
from compressor.runs.run import run as run_job
from compressor.runs.settings import ModelSettings, OutputSettings
from compressor.training.data import open_data
from compressor.training.evaluate import evaluate
from compressor.training.events import BatchEvent
from compressor.training.interrupt import Interrupted
from compressor.training.settings import TrainSettings

ROOT = Path(__file__).parents[2]
MODEL = "sample_models/digits_cnn.safetensors"
QUICK = ["--data", "digits", "--epochs", "2", "--router-epochs", "3", "--no-latency", "--no-onnx"]


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(each) for each in arguments])
    return int(left.value.code or 0)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of a command that is refused."""
    code = run(*arguments)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert code in (1, 2) and line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def routed(tmp_path_factory):
    """The folder of a run that every test here may read."""
    out = tmp_path_factory.mktemp("runs") / "routed"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert run("route", MODEL, "--data", "digits", "--epochs", "3", "--router-epochs", "3", "--out", out) == 0
    return out


def test_lists_what_can_be_skipped(compressor):
    ran = compressor("route", MODEL, "--list", "--json")
    found = json.loads(ran.out)
    assert [(unit["name"], unit["macs"]) for unit in found["units"]] == [("0", 18432), ("3", 1179648), ("7", 589824)]
    shown = compressor("route", MODEL, "--list").out
    assert "never skipped" in shown and "1.180 MMAC" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_says_labels_and_compares_times_of_the_same_images(routed):
    report = Report.load(routed)
    assert any(note.startswith("the labels: depth 0 ") for note in report.notes)
    for side in (report.before, report.after):
        assert side.latency_ms is not None and all("mean" in timing for timing in side.latency_ms.values())


def test_a_routed_network_is_not_routed_again(routed, capsys):
    for more in (("--list",), ("--data", "digits", "--dry-run")):
        assert "routed already" in refused(capsys, "route", routed / "model.safetensors", *more)


@pytest.mark.parametrize("command", ["prune", "detach", "replace"])
def test_what_would_change_a_routed_network_is_refused_with_the_way_round(command, routed, capsys):
    assert "then route the result" in refused(
        capsys, command, routed / "model.safetensors", "--data", "digits", "--epochs", "1",
        "--out", routed.parent / command,
    )  # fmt: skip
    assert not (routed.parent / command).exists()


def test_few_validation_images_for_a_threshold_are_said(routed):
    """142 of digits, where 0.2 % may be lost: one image is more."""
    notes = Report.load(routed).notes
    assert any(note.startswith("The threshold was chosen on ") and "one is " in note for note in notes)


def test_writes_a_network_that_opens_again_and_routes_alike(routed):
    network = compressor.load(routed / "model.safetensors")
    assert isinstance(network, Routed)
    data = open_data("digits")
    report = Report.load(routed)
    assert evaluate(network, data.test, data).top1 == pytest.approx(report.after.top1)
    images = torch.randn(5, 1, 8, 8)
    scores = torch.from_numpy(OnnxModel(routed / "model.onnx")(images.numpy()))
    with torch.no_grad():
        torch.testing.assert_close(scores, network(images), rtol=1e-3, atol=1e-4)


def test_report_holds_every_way_and_the_curve(routed):
    report = Report.load(routed)
    section = report.sections[0]
    assert section.title == "Layer-skip routing"
    ways = {row[0]: row for row in section.tables[0].rows}
    assert set(ways) == {"the router", "early exit by confidence", "always depth 0", "always depth 1", "all layers"}
    assert {curve.label for curve in section.plots[0].curves} == {"router", "early exit", "fixed depth"}
    assert report.after.macs < report.before.macs
    assert report.after.latency_ms["torch"]["mean"] > 0 and report.after.latency_ms["onnxruntime"]["mean"] > 0
    assert any("of the MACs" in note for note in report.notes)
    assert "Layer-skip routing" in (routed / "report.html").read_text()


def test_opened_again_a_threshold_trades_accuracy_for_macs_without_training(routed):
    network = compressor.load(routed / "model.safetensors")
    data = open_data("digits")
    depths = []
    for threshold in (-1.0, 0.9, 2.0):
        network.set_threshold_(threshold)
        x = data.test.images[:64].float() / 255
        depths.append(float(network.route(x)[1].float().mean()))
    assert depths == sorted(depths) and depths[0] == 0 and depths[-1] == network.depths - 1


@pytest.mark.slow
def test_target_is_met_on_validation_images(tmp_path, capsys):
    assert run("route", MODEL, *QUICK, "--target-macs", "0.5", "--out", tmp_path / "run", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    way = told["details"]["ways"][0]
    assert way["kind"] == "router" and way["macs"] <= 0.6 * told["before"]["macs"]  # test images are others
    assert sum(way["shares"]) == pytest.approx(1)


@pytest.mark.slow
def test_a_promise_is_kept_or_said_to_be_none(tmp_path, capsys):
    """On some hundred digits a third may be promised, two thousandths may not."""
    for drop, kept in (("0.3", True), ("0.002", False)):
        out = tmp_path / drop
        assert run("route", MODEL, *QUICK, "--max-drop", drop, "--out", out, "--json") == 0
        told = json.loads(capsys.readouterr().out)
        found = told["after"]["certificate"]
        assert found["kept"] is kept and found["confidence"] == 0.95
        shares = told["details"]["ways"][0]["shares"]
        line = found["words"]
        if kept:
            assert found["drop"] <= 0.3 and line.startswith("Loses at most 30 points") and shares[-1] < 1
        else:
            assert line.startswith("No promise") and found["would_do"] is not None and shares[-1] == 1
        routed = open_model(out / "model.safetensors").module
        _, aside = put_aside(open_data("digits", input_shape=(1, 8, 8)), seed=0)
        with torch.no_grad():
            x = torch.cat([x for x, _ in open_data("digits", input_shape=(1, 8, 8)).passing(aside)])
            differ = routed.route(x)[0].argmax(1) != routed.all_scores(x)[0][-1].argmax(1)
        assert found["differed"] == int(differ.sum())


@pytest.mark.slow
def test_budget_in_milliseconds_is_met_or_refused_before_training(tmp_path, capsys):
    out = ["--out", tmp_path / "run"]
    assert "the fastest takes" in refused(capsys, "route", MODEL, *QUICK, "--target-ms", "0.0001", *out)
    assert not (tmp_path / "run").exists()
    assert run("route", MODEL, *QUICK, "--target-ms", "50", *out, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    [line] = [note for note in told["notes"] if "one image takes depth 0" in note]
    assert "ms in the mean of the test images" in line and told["settings"]["target_ms"] == 50


def test_paper_mode_follows_the_paper_and_says_what_it_is_worth(tmp_path, capsys):
    flags = ["--mode", "paper", "--init", "scratch"]
    assert run("route", MODEL, *QUICK, *flags, "--out", tmp_path / "run", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["settings"]["optimizer"] == "rmsprop"
    found = told["details"]
    assert len(found["labels"]) == 3 and sum(found["labels"]) <= 300
    assert 0 <= found["router_top1"] <= 1 and found["labelled_top1"] is not None
    assert any("commonest label alone" in note for note in told["notes"])
    network = compressor.load(tmp_path / "run" / "model.safetensors")
    assert network.layout.router == "argmax" and network.layout.heads == "shared"


@pytest.mark.slow
def test_a_pruned_network_can_be_routed_and_a_routed_one_finetuned(tmp_path):
    flags = ["--no-latency", "--no-onnx"]
    assert run("prune", MODEL, "--ratio", "0.5", "--out", tmp_path / "one", *flags) == 0
    assert run("route", tmp_path / "one" / "model.safetensors", *QUICK, "--out", tmp_path / "two") == 0
    network = compressor.load(tmp_path / "two" / "model.safetensors")
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert Report.load(tmp_path / "two").before.macs < 0.5 * 1_788_544
    again = ["--data", "digits", "--epochs", "1", "--out", tmp_path / "three", *flags]
    assert run("finetune", tmp_path / "two" / "model.safetensors", *again) == 0


def test_a_dry_run_names_costs_and_writes_nothing(tmp_path, capsys):
    assert run("route", MODEL, "--data", "digits", "--out", tmp_path / "run", "--dry-run", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["dry_run"] and told["details"]["costs"]["whole"] == told["before"]["macs"] == 1_788_544
    assert told["details"]["leave_after"] == [0, 1, 2]
    assert not (tmp_path / "run").exists()


def test_mistakes_are_one_line_each(capsys, tmp_path):
    out = ["--out", tmp_path / "run"]
    assert "--data is missing" in refused(capsys, "route", MODEL, *out)
    assert "no model" in refused(capsys, "route", "--data", "digits", *out)
    assert "the cheapest takes" in refused(capsys, "route", MODEL, *QUICK, "--target-macs", "0.001", *out)
    assert "cannot leave after units 1, 7" in refused(capsys, "route", MODEL, *QUICK, "--leave-after", "1,7", *out)
    assert "--leave-after 'a'" in refused(capsys, "route", MODEL, *QUICK, "--leave-after", "a", *out)
    assert "not both" in refused(capsys, "route", MODEL, *QUICK, "--threshold", "1", "--target-macs", "0.5", *out)
    assert "--router image or argmax" in refused(capsys, "route", MODEL, *QUICK, "--labels", "paper", *out)
    mlp = ["--arch", "sample_models/mlp.py:build", "--arch-arg", "size=8"]
    assert "nothing to skip" in refused(capsys, "route", *mlp, *QUICK, *out)
    assert "--out" in refused(capsys, "route", MODEL, *QUICK)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_something_in_it_is_left_alone(capsys, tmp_path):
    (tmp_path / "mine").write_text("precious")
    assert "not empty" in refused(capsys, "route", MODEL, *QUICK, "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def job(folder: Path, **choice: object) -> RouteJob:
    return RouteJob(
        ModelSettings(arch=f"{ROOT}/sample_models/digits_cnn.py:build", arch_arg=(("width", 0.25),)), "digits",
        OutputSettings(str(folder), latency=False, onnx=False), choice=RouteSettings(router_epochs=2, **choice),
        chosen=("router_epochs",), training=TrainSettings(epochs=2, device="cpu", log_seconds=0.0),
    )  # fmt: skip


@pytest.mark.parametrize(("choice", "epoch"), [({}, 1), pytest.param({"label_epochs": 1}, 2, marks=pytest.mark.slow)])
def test_a_broken_run_goes_on_to_the_same_network(choice, epoch, tmp_path):
    def stop(event: object) -> None:
        if isinstance(event, BatchEvent) and (event.epoch, event.batch) == (epoch, 3):
            signal.raise_signal(signal.SIGTERM)

    run_job(job(tmp_path / "whole", **choice))
    with pytest.raises(Interrupted):
        run_job(job(tmp_path / "broken", **choice), stop)
    report = resume(str(tmp_path / "broken"))
    first, second = (compressor.load(tmp_path / n / "model.safetensors").state_dict() for n in ("whole", "broken"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [row["epoch"] for row in report.rows] == list(range(2 + int(bool(choice))))
    found = report.settings  # those that were asked for
    assert found["command"] == "route" and found["router_epochs"] == 2 and found["mode"] == "tuned"


class Own(torch.nn.Sequential):
    """A class of a user's, of which a checkpoint would not know how it is built."""


def test_a_network_that_could_not_be_saved_is_refused_before_training(tmp_path, capsys):
    model = Own(
        torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Linear(256, 10),
    )  # fmt: skip
    torch.save(model, tmp_path / "net.pt")
    flags = [*QUICK, "--input", "1x8x8", "--trust", "--out", tmp_path / "run"]
    assert "--arch" in refused(capsys, "route", tmp_path / "net.pt", *flags)
    assert not (tmp_path / "run").exists()
