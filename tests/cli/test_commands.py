"""Each command as a person runs it: the whole text it prints, its JSON, and the files it leaves."""

import json
import shlex
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compressor import profile
from compressor.cli.options import unused
from compressor.cli.results import _following
from compressor.report.runs import compare_runs
from compressor.runs.models import load
from tests.cli.command import ROOT, check_golden
from tests.report.reports import bare_report

DIGITS = "sample_models/digits_cnn.safetensors"
# Which filters AdapNet takes hangs on the last bits of sums, which are others on another processor.
ADAPTED = (
    (r"(pruned|merged|inserted|frozen) \d+", r"\1 N"),
    (r"\d+ filters, \d+% of MACs", "N filters, P% of MACs"),
    (r"[\d.]+ [kM]?MAC are left", "N MAC are left"),
    (r"[\d.]+x of the MACs \((.*) to .*\), [\d.]+x of", r"Nx of the MACs (\1 to N), Nx of"),
    (r"^((?:MACs|MACs \(thop\)|parameters|file size)\s.*) (?:SIZE|[\d.]+ \w+)\s+\d\.\d\dx$", r"\1 AFTER"),
)
SMALL = ["--no-latency", "--no-onnx", "--device", "cpu"]


def data_of(ran):
    assert ran.code == 0
    return json.loads(ran.out)


def test_version(compressor):
    ran = compressor("--version")
    assert (ran.code, ran.err) == (0, "") and ran.out.startswith("compressor ")
    assert [line.split()[0] for line in ran.out.splitlines()[2:]] == ["torch", "torchvision", "onnxruntime", "device"]


def test_doctor(compressor):
    ran = compressor("doctor", "--data", "digits")
    assert ran.code == 0 and "digits: 1,295 training, 143 validation, 359 test" in " ".join(ran.out.split())
    ran = compressor("doctor", "--data", "mnist:nowhere", "--json")
    [data] = [each for each in json.loads(ran.out)["findings"] if each["what"] == "data"]
    assert ran.code == 1 and data["good"] is False and "nowhere" in data["said"]
    assert "add --download" in compressor("doctor", "--data", f"mnist:{compressor.folder}").out


def test_results_spell_flags(compressor, monkeypatch):
    """What a result says in Python with the setting's name."""
    net, weights = compressor.folder / "net.py", compressor.folder / "weights.pt"
    net.write_text(
        "from torch import nn\nclass Net(nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, 10))\n        self.head = nn.Linear(10, 4)\n"
        "    def forward(self, x):\n        return self[1](self[0](x))\nbuild = Net\n"
    )
    ran = compressor("inspect", "--arch", f"{net}:build", "--input", "1x8x8", "--json")
    assert ran.code == 0 and "--also NAME follows" in json.loads(ran.out)["notes"][-1]
    torch.save(load(ROOT / DIGITS).state_dict(), weights)
    ran = compressor("evaluate", weights, "--arch", "sample_models/digits_cnn.py:build", "--data", "digits", "--json")
    assert ran.code == 0 and "give --mean and --std" in " ".join(json.loads(ran.out)["notes"])
    cost = replace(profile(load(ROOT / DIGITS), torch.zeros(1, 1, 8, 8)), reasons={"macs_thop": "give `input`"})
    monkeypatch.setattr("compressor.runs.profile.profile", lambda *_: cost)
    assert "give --input" in compressor("profile", DIGITS).out


def test_quiet_prints_results_and_errors_only(compressor):
    ran = compressor("prune", DIGITS, "--dry-run", "-q")
    assert (ran.code, ran.err) == (0, "") and ran.out == compressor("prune", DIGITS, "--dry-run").out
    assert compressor("prune", DIGITS, "-q", "--ratio", "0").err.startswith("error: ")


def test_verbose_says_what_became_of_every_layer(compressor):
    ran = compressor("prune", DIGITS, "-v", "--out", compressor.folder / "run", *SMALL)
    assert "filters before" in ran.out
    assert "filters before" not in compressor("prune", DIGITS, "--out", compressor.folder / "other", *SMALL).out


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("compressor pr", {"prune", "profile"}),
        ("compressor prune --meth", {"--method"}),
        ("compressor prune --method l", {"l1", "l2"}),
        ("compressor sweep --methods l1,l", {"l1,l2"}),
        ("compressor detach --method n", {"nsn"}),
        ("compressor prune --schedule co", {"cosine", "constant"}),
        ("compressor doctor --data f", {"fashion-mnist:", "folder:"}),
        ("compressor train --data folder:sample_m", {"folder:sample_models/"}),
        ("compressor train --arch t", {"torchvision:", "timm:", "tests/"}),
        ("compressor train --arch torchvision:resnet18", {"torchvision:resnet18"}),
        ("compressor train --arch sample_models/vgg11", {"sample_models/vgg11.py:"}),
        ("compressor train --arch sample_models/vgg11.py:", {"sample_models/vgg11.py:build"}),
        ("compressor train --arch nowhere/x", set()),
    ],
)
def test_the_shell_completes(compressor, monkeypatch, typed, offered):
    monkeypatch.setenv("_COMPRESSOR_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    assert set(compressor().out.split()) == offered


def test_profile(compressor):
    check_golden("profile", compressor("profile", DIGITS, "--layers"), compressor.folder)


def test_profile_of_random_weights(compressor):
    check_golden("profile-arch", compressor("profile", "--arch", "torchvision:alexnet"), compressor.folder)


def test_profile_as_json(compressor):
    data = data_of(compressor("profile", DIGITS, "--json"))
    assert {"macs", "macs_thop", "params", "layers"} <= set(data)
    assert {"name", "kind", "input_shapes", "output_shapes", "macs", "params"} <= set(data["layers"][0])
    assert sum(layer["macs"] for layer in data["layers"]) == data["macs"]
    assert sum(layer["params"] for layer in data["layers"]) == data["params"]


def test_latency_as_json_has_median_spread_and_batch(compressor):
    timings = data_of(compressor("profile", DIGITS, "--latency", "--json"))["latency_ms"]
    assert all({"median", "p95", "batch"} <= set(timings[engine]) for engine in ("torch", "onnxruntime"))


def test_evaluate(compressor):
    check_golden("evaluate", compressor("evaluate", DIGITS, "--data", "digits"), compressor.folder)


def test_evaluate_as_json(compressor):
    data = data_of(compressor("evaluate", DIGITS, "--data", "digits", "--json"))
    assert data["top1"] > 0.98 and data["count"] == 359 and data["split"] == "test"


def test_prune_dry_run(compressor):
    ran = compressor("prune", DIGITS, "--target-macs", "0.5", "--round-to", "8", "--dry-run")
    check_golden("prune-dry-run", ran, compressor.folder)


def test_prune_dry_run_as_json(compressor):
    out = compressor.folder / "a run"
    ran = compressor("prune", DIGITS, "--out", out, "--dry-run", "--json")
    data = data_of(ran)
    assert data["dry_run"] and data["after"]["macs"] < data["before"]["macs"] and data["edits"]
    assert [each.name for each in out.iterdir()] == ["plan.json"]
    [following] = [line for line in ran.err.splitlines() if line.startswith("next: compressor ")]
    again = data_of(compressor(*shlex.split(following)[2:], "--dry-run", "--json"))
    assert [edit["channels"] for edit in again["edits"]] == [edit["channels"] for edit in data["edits"]]


def test_the_next_command_is_one_that_a_shell_takes_as_it_stands():
    for data in (None, "digits"):
        report = replace(bare_report(), settings={"data": data})
        assert shlex.split(_following(Path("a run/x"), report))[2] == "a run/x/model.safetensors"


def test_the_next_command_names_a_folder_that_is_free(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = replace(bare_report(), settings={"data": "digits"})
    found = []
    for _ in range(3):
        found.append(_following(Path("run"), report).split()[-1])
        Path(found[-1]).mkdir()
    assert found == ["deploy", "deploy-2", "deploy-3"]
    assert unused("a b") == "'a b'"


def test_compare_names_the_folder_of_the_page_that_it_proposes(compressor, monkeypatch):
    report = replace(bare_report(), settings={"data": "digits"})
    monkeypatch.setattr("compressor.runs.compare.compare", lambda *runs, **more: compare_runs({"a b": report}))
    monkeypatch.chdir(compressor.folder)
    assert compressor("compare", "a b").err.splitlines()[-1] == "next: compressor compare 'a b' --out runs/compared"


def test_prune_one_shot(compressor):
    ran = compressor("prune", DIGITS, "--method", "fpgm", "--round-to", "8", "--out", compressor.folder / "run", *SMALL)
    check_golden("prune", ran, compressor.folder)


def test_prune_with_data(compressor):
    out = compressor.folder / "run"
    ran = compressor(
        "prune", DIGITS, "--data", "digits", "--epochs", "2", "--round-to", "8", "--out", out, "--no-latency"
    )
    check_golden("prune-with-data", ran, compressor.folder)
    assert (out / "model.onnx").exists()


def test_prune_of_an_onnx_file(compressor):
    out, file = compressor.folder / "run", compressor.folder / "digits.onnx"
    network = load(ROOT / DIGITS)
    axes = {"dynamic_axes": {"x": {0: "batch"}}, "dynamo": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (torch.zeros(1, 1, 8, 8),), file, input_names=["x"], **axes)
    ran = compressor(
        "prune", file, "--data", "digits", "--epochs", "0", "--round-to", "8", "--out", out, "--no-latency"
    )
    check_golden("prune-onnx", ran, compressor.folder)
    assert json.loads((out / "settings.json").read_text())["lr"] == 0.001  # batch norms are folded
    again = data_of(compressor("evaluate", out / "model.safetensors", "--data", "digits", "--json"))
    assert again["top1"] == json.loads((out / "report.json").read_text())["after"]["top1"]


def test_prune_as_json_is_the_report(compressor):
    out = compressor.folder / "run"
    data = data_of(compressor("prune", DIGITS, "--out", out, "--json", *SMALL))
    report = json.loads((out / "report.json").read_text())
    assert data == {"dry_run": False, **report}
    assert report["command"] == f"compressor prune {DIGITS} --out {out} --json {' '.join(SMALL)}"


def test_flags_reach_the_settings(compressor):
    flags = ["--ratio-for", "3=0.25", "--ratio-for", "7=0.1", "--keep", "0", "--seed", "5", "--min-channels", "3"]
    settings = data_of(compressor("prune", DIGITS, "--dry-run", "--json", *flags))["settings"]
    assert settings["ratio_for"] == [["3", 0.25], ["7", 0.1]] and settings["keep"] == ["0"]
    assert settings["seed"] == 5 and settings["min_channels"] == 3 and settings["ratio"] == 0.5


def test_each_settings_keep_their_own_default_until_a_flag_is_typed(compressor):
    def rate(*arguments):
        return data_of(compressor(*arguments, "--data", "digits", "--dry-run", "--json"))["settings"]["lr"]

    assert rate("finetune", DIGITS) == 0.01
    assert rate("train", "--arch", "sample_models/digits_cnn.py:build") is None
    assert rate("finetune", DIGITS, "--lr", "0.2") == 0.2


def test_train(compressor):
    arguments = ["--arch", "sample_models/digits_cnn.py:build", "--arch-arg", "width=0.25", "--data", "digits"]
    ran = compressor("train", *arguments, "--epochs", "1", "--out", compressor.folder / "run", *SMALL)
    check_golden("train", ran, compressor.folder)


def test_finetune(compressor):
    ran = compressor(
        "finetune", DIGITS, "--data", "digits", "--epochs", "1", "--out", compressor.folder / "run", *SMALL
    )
    check_golden("finetune", ran, compressor.folder)


@pytest.mark.parametrize(
    "command",
    [["finetune", DIGITS], ["train", "--arch", "sample_models/digits_cnn.py:build"]],
    ids=["finetune", "train"],
)
def test_training_dry_run(compressor, command):
    ran = compressor(*command, "--data", "digits", "--dry-run")
    check_golden(f"{command[0]}-dry-run", ran, compressor.folder)


def test_demo(compressor, monkeypatch):
    """The demo itself, but for its length and its latency."""

    from compressor.runs import demo

    def quick(*arguments):
        job = whole(*arguments)
        short = replace(job.adapnet, max_epochs=4, finetune_epochs=1)
        return replace(job, adapnet=short, output=replace(job.output, latency=False))

    whole = demo.demo_job
    monkeypatch.setattr(demo, "demo_job", quick)
    out = compressor.folder / "demo"
    check_golden("demo", compressor("demo", "--out", out), compressor.folder, ADAPTED)
    report = json.loads((out / "report.json").read_text())
    assert report["edits"] and report["after"]["macs"] < report["before"]["macs"]
    assert demo.demo_job(str(out), False, "").output.overwrite, "an earlier demo is replaced without asking"
    (out / "settings.json").write_text('{"command": "prune"}')
    assert compressor("demo", "--out", out).code == 2, "anything else is not"


def test_demo_dry_run_as_json_writes_nothing(compressor):
    out = compressor.folder / "demo"
    data = data_of(compressor("demo", "--out", out, "--dry-run", "--json"))
    assert data["dry_run"] and data["before"]["macs"] and not out.exists()


def test_nothing_is_wider_than_a_terminal(compressor):
    for arguments in (["profile", "--arch", "torchvision:densenet121", "--layers"], ["prune", DIGITS, "--dry-run"]):
        ran = compressor(*arguments)
        assert max(map(len, ran.out.splitlines())) <= 80


def test_the_next_command_names_the_model_as_it_was_opened(compressor):
    """A file of weights alone needs its architecture again."""
    weights = compressor.folder / "weights.pt"
    torch.save(load_file(DIGITS), weights)
    how = ["--arch", "sample_models/digits_cnn.py:build", "--arch-arg", "num_classes=10", "--input", "1x8x8"]
    data = ["--data", "digits", "--mean", "0.3", "--std", "0.4"]
    ran = compressor("evaluate", weights, *how, *data)
    [following] = [line for line in ran.err.splitlines() if line.startswith("next: compressor prune ")]
    assert f"prune {weights} {' '.join([*how, *data])} --out" in following
    words = following.replace("runs/small", str(compressor.folder / "small")).split()[2:]
    assert compressor(*words, "--dry-run").code == 0


def test_a_package_is_not_to_be_pruned_next(tmp_path):
    from compressor.cli.options import is_onnx
    from compressor.runs.settings import ModelSettings

    assert [is_onnx(ModelSettings(model=name)) for name in (str(tmp_path), "a.onnx", "a.pt", None)] == [1, 1, 0, 0]
