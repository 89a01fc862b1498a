"""`compressor replace`, and `compressor train` on the network of PrimeNet: files, figures, a line for each mistake."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import compressor
from compressor.cli import main
from compressor.exporting.runtime import OnnxModel
from compressor.primenet.network import PrimeNetwork
from compressor.report.report import Report

ROOT = Path(__file__).parents[2]
DIGITS = ["--arch", "sample_models/digits_cnn.py:build", "--arch-arg", "width=0.25", "--data", "digits"]
QUICK = ["--epochs", "1", "--retrain-epochs", "1", "--batch-size", "100", "--lr", "0.01", "--no-latency"]


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
def replaced(tmp_path_factory):
    """The folder of a run that every test here may read."""
    out = tmp_path_factory.mktemp("runs") / "replaced"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert run("replace", *DIGITS, *QUICK, "--until", "5", "--fit", "stride", "--out", out) == 0
    return out


def test_writes_a_network_that_opens_again_and_its_onnx_file(replaced):
    network = compressor.load(replaced / "model.safetensors")
    assert isinstance(network, PrimeNetwork)
    assert not network.stage.block.learning and len(network.stage.block.scales) == 1
    images = np.random.default_rng(0).normal(size=(3, 1, 8, 8)).astype(np.float32)
    with torch.no_grad():
        scores = network(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(OnnxModel(replaced / "model.onnx")(images), scores, atol=1e-4)
    kinds = [node.op_type for node in onnx.load(replaced / "model.onnx").graph.node]
    assert kinds.count("Conv") == 4  # two of the capsule, the projection, the user's third


def test_reports_both_phases_with_curves_of_losses_and_choices(replaced):
    report = Report.load(replaced)
    assert [row["phase"] for row in report.rows] == ["representation", "classifier"]
    section = report.sections[0]
    assert section.title == "PrimeNet"
    titles = ["Local losses on the training set", "How often each scale was chosen"]
    assert [plot.title for plot in section.plots] == titles
    assert report.after.top1 is not None and report.export is not None
    page = (replaced / "report.html").read_text()
    assert "PrimeNet" in page and "How often each scale was chosen" in page


@pytest.mark.slow
def test_result_goes_into_prune_and_profile(replaced, tmp_path):
    out = tmp_path / "pruned"
    flags = ["--ratio", "0.5", "--out", out, "--no-latency", "--no-onnx"]
    assert run("prune", replaced / "model.safetensors", *flags) == 0
    report, pruned = Report.load(out), compressor.load(out / "model.safetensors")
    assert report.after.macs < report.before.macs == Report.load(replaced).after.macs
    assert pruned(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert run("profile", out / "model.safetensors", "--layers") == 0


@pytest.mark.slow
def test_a_pruned_network_can_be_replaced_too_and_keep_all_scales(tmp_path):
    flags = ["--no-latency", "--no-onnx"]
    assert run("prune", *DIGITS[:4], "--ratio", "0.5", "--out", tmp_path / "one", *flags) == 0
    where = ["--until", "5", "--inference", "entropy", "--out", tmp_path / "two", "--no-onnx"]
    assert run("replace", tmp_path / "one" / "model.safetensors", "--data", "digits", *QUICK, *where) == 0
    network, report = compressor.load(tmp_path / "two" / "model.safetensors"), Report.load(tmp_path / "two")
    assert network.stage.block.scales == (3, 5, 7)
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert "the costs are those of all scales" in report.sections[0].text
    assert report.after.macs > report.before.macs
    assert any("does not pay here" in note for note in report.notes)
    assert "does not pay here" in report.sections[0].text


@pytest.mark.parametrize(("until", "said"), [("2", "MACs will rise"), ("5", "MACs fall only if 3x3 stays")])
def test_says_before_training_what_the_block_will_cost(until, said, capsys):
    wide = ["--arch", "sample_models/digits_cnn.py:build", "--data", "digits"]
    assert run("replace", *wide, "--until", until, "--out", "nowhere", "--dry-run") == 0
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_dry_run_names_costs_and_writes_nothing(tmp_path, capsys):
    assert run("replace", *DIGITS, "--until", "5", "--out", tmp_path / "run", "--dry-run", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["dry_run"] and told["after"]["macs"] != told["before"]["macs"]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_train_takes_the_papers_network_through_both_phases(tmp_path):
    arch = ["--arch", "sample_models/primenet.py:build", "--arch-arg", "retrain_epochs=1"]
    small = ["--arch-arg", "width=0.125", "--arch-arg", "size=12"]
    flags = ["--epochs", "1", "--data", "digits", "--no-latency", "--no-onnx", "--out", tmp_path / "run"]
    assert run("train", *arch, *small, *flags) == 0
    report, network = Report.load(tmp_path / "run"), compressor.load(tmp_path / "run" / "model.safetensors")
    assert report.settings["batch_size"] == 200 and report.settings["optimizer"] == "adam"  # the paper's
    assert [row["phase"] for row in report.rows] == ["representation", "classifier"]
    assert report.after.params < report.before.params and len(network.stage.block.scales) == 1


def test_mistakes_are_one_line_each(capsys, tmp_path):
    out = ["--out", tmp_path / "run"]
    assert "does not pay anywhere" in refused(capsys, "replace", *DIGITS, *QUICK, *out)
    assert "no such module; it may end at 2, 6" in refused(capsys, "replace", *DIGITS, "--until", "features.6", *out)
    assert "--data is missing" in refused(capsys, "replace", *DIGITS[:4], *out)
    assert "batches of one" in refused(capsys, "replace", *DIGITS, "--batch-size", "1", *out)
    assert "--scales '3,x'" in refused(capsys, "replace", *DIGITS, "--scales", "3,x", *out)
    assert "--scales 3,4" in refused(capsys, "replace", *DIGITS, "--until", "5", "--scales", "3,4", *out)
    mlp = ["--arch", "sample_models/mlp.py:build", "--arch-arg", "size=8", "--data", "digits"]
    assert "begins with linear" in refused(capsys, "replace", *mlp, *out)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_pickled_network_of_published_layers_needs_no_architecture(tmp_path):
    layers = [torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3), torch.nn.Flatten()]
    torch.save(torch.nn.Sequential(*layers, torch.nn.Linear(128, 10)), tmp_path / "net.pt")
    where = ["--data", "digits", "--input", "1x8x8", "--until", "1", "--out", tmp_path / "run"]
    assert run("replace", tmp_path / "net.pt", *where, *QUICK, "--no-onnx") == 0
    assert compressor.load(tmp_path / "run" / "model.safetensors")(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
