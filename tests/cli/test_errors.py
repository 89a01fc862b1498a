"""What a person does wrong: one line on stderr that says what and what to do, the right exit code, nothing written."""

import errno
import tempfile
from pathlib import Path

import pytest
import torch

from tests.cli.command import check_golden

DIGITS = "sample_models/digits_cnn.safetensors"

WRONG_USE = {
    "unknown-runtime": ["export", DIGITS, "--to", "coreml", "--out", "deploy"],
    "no-such-command": ["squeeze"],
    "no-such-flag": ["prune", DIGITS, "--rato", "0.5"],
    "flag-without-value": ["prune", DIGITS, "--ratio"],
    "ratio-out-of-range": ["prune", DIGITS, "--ratio", "2"],
    "ratio-is-a-word": ["prune", DIGITS, "--ratio", "half"],
    "no-model": ["prune", "--dry-run"],
    "no-out": ["prune", DIGITS],
    "two-models": ["prune", DIGITS, DIGITS],
    "unknown-method": ["prune", DIGITS, "--method", "bnscale", "--dry-run"],
    "method-needs-data": ["prune", DIGITS, "--method", "taylor", "--dry-run"],
    "epochs-without-data": ["prune", DIGITS, "--epochs", "3", "--dry-run"],
    "unreadable-input": ["profile", DIGITS, "--input", "4x4"],
    "unreadable-arch-arg": ["profile", "--arch", "torchvision:resnet18", "--arch-arg", "10"],
    "unreadable-ratio-for": ["prune", DIGITS, "--ratio-for", "0.5", "--dry-run"],
    "unreadable-mean": ["finetune", DIGITS, "--data", "digits", "--mean", "a,b", "--dry-run"],
    "unknown-architecture": ["profile", "--arch", "torchvision:resnet19"],
    "architecture-without-home": ["profile", "--arch", "resnet18"],
    "unknown-data": ["evaluate", DIGITS, "--data", "digit"],
    "no-data": ["evaluate", DIGITS],
    "train-a-file": ["train", DIGITS],
    "train-nothing": ["train", "--data", "digits"],
    "export-nowhere": ["export", DIGITS],
    "nothing-pruned": ["prune", DIGITS, "--ratio", "0.01", "--dry-run"],
    "no-such-layer": ["prune", DIGITS, "--ratio-for", "layer9=0.5", "--dry-run"],
    "target-met-already": ["prune", DIGITS, "--target-macs", "1", "--dry-run"],
    "no-such-device": ["profile", DIGITS, "--device", "gpu"],
    "inspect-nothing": ["inspect"],
    "compare-nothing": ["compare"],
    "resume-nothing": ["resume"],
    "verify-nothing": ["verify"],
    "tune-nothing": ["tune"],
    "tune-without-threads": ["tune", "nowhere", "--threads", "0"],
    "sweep-without-data": ["sweep", DIGITS, "--out", "nowhere"],
    "detach-without-data": ["detach", DIGITS, "--out", "nowhere"],
    "route-without-data": ["route", DIGITS, "--out", "nowhere"],
    "replace-without-data": ["replace", DIGITS, "--out", "nowhere"],
    "export-program-into-folder": ["export", DIGITS, "--to", "pt2", "--out", "nowhere"],
    "export-package-called-program": ["export", DIGITS, "--out", "nowhere.pt2"],
    "export-int8-without-data": ["export", DIGITS, "--to", "onnx", "--precision", "int8", "--out", "nowhere"],
    "export-no-such-exit": ["export", DIGITS, "--exit", "3", "--out", "nowhere.onnx"],
    "export-no-such-opset": ["export", DIGITS, "--opset", "3", "--out", "nowhere.onnx"],
    "doctor-no-such-flag": ["doctor", "--date", "digits"],
    "demo-no-such-flag": ["demo", "--fast"],
}

CANNOT = {
    "no-such-file": ["profile", "nowhere.pt"],
    "not-a-model": ["profile", "README.md"],
    "target-out-of-reach": ["prune", DIGITS, "--target-macs", "0.3", "--min-channels", "30", "--dry-run"],
    "everything-kept": ["prune", DIGITS, "--keep", "*", "--dry-run"],
    "wrong-input": ["profile", DIGITS, "--input", "3x8x8"],
    "data-of-other-classes": [
        "evaluate",
        "--arch",
        "sample_models/digits_cnn.py:build:num_classes=7",
        "--data",
        "digits",
    ],
    "no-such-data-folder": ["evaluate", DIGITS, "--data", "folder:nowhere"],
    "resume-no-run": ["resume", "nowhere"],
    "verify-no-package": ["verify", "sample_models"],
    "tune-no-package": ["tune", "sample_models"],
    "compare-no-run": ["compare", "sample_models", "nowhere"],
}


@pytest.mark.parametrize("name", WRONG_USE)
def test_wrong_use_is_exit_code_2(compressor, name):
    ran = compressor(*WRONG_USE[name])
    check_golden(f"error-{name}", ran, compressor.folder)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.count("error: ") == 1 and ran.err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("name", CANNOT)
def test_what_cannot_be_done_is_exit_code_1(compressor, name):
    ran = compressor(*CANNOT[name])
    check_golden(f"error-{name}", ran, compressor.folder)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.splitlines()[-1].startswith("error: ")


def test_a_folder_with_something_in_it_is_refused_and_left_alone(compressor):
    mine = compressor.folder / "mine.txt"
    mine.write_text("mine")
    ran = compressor("prune", DIGITS, "--out", compressor.folder)
    assert ran.code == 2 and "--overwrite" in ran.err
    assert list(compressor.folder.iterdir()) == [mine]


def test_a_file_in_the_place_of_the_folder_is_refused(compressor):
    mine = compressor.folder / "mine"
    mine.write_text("mine")
    ran = compressor("prune", DIGITS, "--out", mine)
    assert ran.code == 2 and "is a file" in ran.err
    assert mine.read_text() == "mine"


def test_a_ratio_and_a_target_exclude_each_other(compressor):
    ran = compressor("prune", DIGITS, "--ratio", "0.5", "--target-macs", "0.5", "--dry-run")
    assert ran.code == 2 and "exclude each other" in ran.err


@pytest.mark.parametrize("verb", ["sweep", "shrink"])
def test_several_runs_of_a_file_that_is_not_there_are_refused_in_one_line(compressor, verb):
    out = compressor.folder / "runs"
    ran = compressor(
        verb, "nowhere.pt", "--data", "digits", "--out", out, *(["--max-drop", "0.1"] * (verb == "shrink"))
    )
    assert (ran.code, ran.err.splitlines()[-1]) == (1, "error: there is no file nowhere.pt")
    assert not out.exists()


def test_a_run_that_fails_writes_nothing(compressor):
    out = compressor.folder / "run"
    assert compressor("prune", DIGITS, "--out", out, "--ratio", "0.01").code == 2
    assert not out.exists()


@pytest.mark.parametrize("damage", ["empty", "truncated"])
def test_damaged_files_are_one_line(compressor, damage):
    content = Path(DIGITS).read_bytes()
    path = compressor.folder / "damaged.pt"
    path.write_bytes(b"" if damage == "empty" else content[: len(content) // 2])
    ran = compressor("profile", path)
    assert ran.code == 1 and ran.out == ""
    assert [line.startswith("error: ") for line in ran.err.splitlines()] == [False, True]


def test_a_state_dict_that_does_not_fit_names_the_keys(compressor):
    path = compressor.folder / "weights.pt"
    torch.save({"features.0.weight": torch.zeros(4, 3, 3, 3)}, path)
    ran = compressor("profile", path, "--arch", "sample_models/digits_cnn.py:build")
    assert ran.code == 1 and "features.0.weight" in ran.err and "0.weight" in ran.err


def test_a_bug_keeps_its_traceback(compressor, monkeypatch):
    import compressor.runs.subject as runs

    def broken(*_):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(runs, "open_subject", broken)
    with pytest.raises(ZeroDivisionError):
        from compressor.cli import main

        main(["profile", DIGITS])


def test_ctrl_c_leaves_without_a_traceback(compressor, monkeypatch):
    import compressor.runs.subject as runs

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "open_subject", interrupted)
    ran = compressor("profile", DIGITS)
    assert ran.code == 130 and ran.err.splitlines()[-1] == "error: stopped"


WRITES = {
    "prune": ["prune", "nowhere.pt"],
    "train": ["train", "--arch", "torchvision:resnet18", "--data", "digits"],
    "detach": ["detach", "nowhere.pt", "--data", "digits"],
    "sweep": ["sweep", DIGITS, "--data", "nowhere", "--methods", "l1", "--targets", "0.5"],
    "compare": ["compare", "one", "other"],
    "export": ["export", "nowhere.pt"],
    "export-file": ["export", "nowhere.pt"],
    "tune": ["tune", "nowhere.pt"],
}


@pytest.mark.parametrize("name", WRITES)
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(compressor, monkeypatch, name):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    out = compressor.folder / "results"
    ran = compressor(*WRITES[name], "--kit" if name == "tune" else "--out", out / "a.onnx" if "file" in name else out)
    said = f"error: {out} cannot be written (Read-only file system): choose another folder\n"
    assert (ran.code, ran.err) == (1, said)
    assert not any(compressor.folder.iterdir())
