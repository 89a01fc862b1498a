"""`compressor detach` from the command line: what it lists, predicts, makes, refuses."""

import json
from pathlib import Path

import pytest
import torch

from compressor.cli import main
from compressor.report.report import Report
from compressor.runs.models import open_model
from compressor.training.data import open_data
from compressor.training.evaluate import evaluate

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "sample_models" / "digits_cnn.safetensors")
VGG = f"{ROOT / 'sample_models' / 'vgg16_cifar.py'}:build"
MLP = f"{ROOT / 'sample_models' / 'mlp.py'}:build"


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["detach", *arguments])
    printed = capsys.readouterr()
    return int(left.value.code or 0), printed.out, printed.err


def test_list_shows_every_legal_point(capsys):
    code, out, _ = run(capsys, DIGITS, "--list", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["base"]["params"] == 56_554
    assert found["base"]["macs"] > found["points"][0]["macs"] > found["points"][1]["macs"]
    assert [(point["at"], point["shape"]) for point in found["points"]] == [("3", [32, 8, 8]), ("7", [64, 4, 4])]
    assert all(point["own_params"] < point["params"] for point in found["points"])
    code, out, _ = run(capsys, DIGITS, "--list")
    assert code == 0 and "64x4x4" in out and max(map(len, out.splitlines())) <= 80


def test_dry_run_predicts_the_papers_costs(capsys):
    code, out, _ = run(capsys, "--arch", VGG, "--at", "features.7,features.24", "--dry-run", "--json")
    found = json.loads(out)
    assert code == 0 and found["dry_run"]
    models = [found["details"]["base"], *found["details"]["exits"]]
    assert [model["macs"] for model in models] == [313_201_664, 273_880_064, 123_474_944]
    assert [round(model["macs_thop"] / 1e9, 3) for model in models] == [0.314, 0.275, 0.124]
    assert [model["at"] for model in models] == [None, "features.7", "features.24"]
    assert [model["own_params"] for model in models[1:]] == [896, 49_664]


def test_dry_run_of_nested_networks_has_the_papers_sizes(capsys):
    code, out, _ = run(capsys, "--arch", MLP, "--method", "nsn", "--dry-run", "--json")
    found = json.loads(out)["details"]
    assert code == 0
    assert [model["params"] for model in (found["base"], *found["exits"])] == [1_238_730, 623_290, 7_850]


def test_trains_saves_and_opens_again(capsys, tmp_path):
    out = tmp_path / "run"
    flags = ("--exits", "1", "--data", "digits", "--epochs", "1", "--batch-size", "256", "--lr", "0.05")
    code, printed, err = run(capsys, DIGITS, *flags, "--no-latency", "--baseline", "--json", "--out", str(out))
    assert code == 0, err
    found = json.loads(printed)["details"]
    opened = open_model(out / "model.safetensors")
    data = open_data("digits")
    for exit, row in enumerate((found["base"], *found["exits"])):
        top1 = evaluate(opened.module.detach(exit), data.test, data).top1
        assert row["top1"] == pytest.approx(top1, abs=0.006)
        assert row["alone_top1"] is not None and row["exit"] == exit
    names = {path.name for path in out.iterdir()}
    assert {"model.safetensors", "model.onnx", "report.json", "report.html", "metrics.jsonl"} <= names
    report = Report.load(out)
    assert report.sections[0].tables[0].rows[1][1] == "7"
    assert "Accuracy against cost" in (out / "report.html").read_text()
    assert report.after.macs_thop == found["base"]["macs_thop"]
    assert any("statistics of its own" in note for note in report.notes)


def test_every_models_statistics_are_measured_again(capsys, tmp_path):
    flags = ("--exits", "1", "--data", "digits", "--epochs", "1", "--batch-size", "256")
    more = ("--bn", "recalibrated", "--no-latency", "--no-onnx", "--out", str(tmp_path / "run"))
    code, _, err = run(capsys, DIGITS, *flags, *more)
    assert code == 0, err
    module = open_model(tmp_path / "run" / "model.safetensors").module
    twin = module.submodels[0].tail.get_submodule("8")
    assert twin is not module.base[8] and not torch.equal(twin.running_mean, module.base[8].running_mean)


def test_nested_networks_train_on_plain_pixels(capsys, tmp_path):
    flags = ("--arch", MLP, "--arch-arg", "size=8", "--method", "nsn", "--data", "digits", "--epochs", "1")
    code, printed, err = run(capsys, *flags, "--no-latency", "--no-onnx", "--json", "--out", str(tmp_path / "run"))
    assert code == 0, err
    opened = open_model(tmp_path / "run" / "model.safetensors")
    assert (opened.preparation.mean, opened.preparation.std) == ((0.0,), (1.0,))
    settings = json.loads(printed)["settings"]
    assert (settings["lr"], settings["weight_decay"], settings["augment"]) == (0.3, 0.0, "none")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((DIGITS, "--at", "6", "--dry-run"), 2, "'6' is no legal cut point; the nearest legal ones are 3, 7"),
        ((DIGITS, "--at", "nowhere", "--dry-run"), 2, "'nowhere' is no module of the network"),
        ((DIGITS, "--exits", "5", "--dry-run"), 2, "5 exits were asked for, and there are 2 legal points"),
        ((DIGITS, "--targets", "half", "--dry-run"), 2, "--targets 'half' is not a list of numbers"),
        ((DIGITS, "--method", "nsn", "--dry-run"), 1, "use --method cnsn"),
        (("--arch", MLP, "--dry-run"), 1, "use --method nsn"),
        (("--arch", MLP, "--method", "nsn", "--list"), 2, "--list is for cnsn"),
        ((DIGITS,), 2, "--data is missing"),
        ((DIGITS, "--data", "digits", "--loss-weights", "1,1,1,1", "--out", "OUT"), 2, "give 3, the base's"),
    ],
)
def test_bad_wishes_are_one_line(capsys, tmp_path, arguments, code, message):
    given = [str(tmp_path / "run") if each == "OUT" else each for each in arguments]
    left, _, err = run(capsys, *given)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert left == code and len(lines) == 1 and message in lines[0]
    assert "Traceback" not in err and not (tmp_path / "run").exists()
