"""`compressor sweep` and `compressor compare`: the grid, going on, what fails, and the comparison at the end."""

import json

import pytest

from compressor.runs import sweep as sweeping
from tests.cli.command import check_golden

DIGITS = "sample_models/digits_cnn.safetensors"
QUICK = ["--data", "digits", "--epochs", "1", "--no-latency", "--no-onnx", "--device", "cpu"]


def test_dry_run_says_every_command(compressor):
    arguments = ["--methods", "l1,adapnet", "--targets", "0.5", "--data", "digits", "--epochs", "8", "--lr", "0.02"]
    ran = compressor("sweep", DIGITS, *arguments, "--out", "runs/sweep", "--dry-run")
    check_golden("sweep-dry-run", ran, compressor.folder)


def test_targets_in_milliseconds_are_runs_of_methods_that_meet_them(compressor):
    given = ["--target-ms", "0.05,0.2", "--data", "digits", "--no-reconstruct", "--no-control"]
    ran = compressor("sweep", DIGITS, *given, "--out", "runs/sweep", "--dry-run", "--json")
    commands = json.loads(ran.out)["commands"]
    assert [command.split(" --out ")[1] for command in commands] == [
        f"runs/sweep/{method}-{target}ms" for method in ("obs", "taylor", "adapnet") for target in ("0.05", "0.2")
    ]
    assert all("--target-ms 0." in command and "--target-macs" not in command for command in commands)
    blocks = compressor("sweep", DIGITS, "--methods", "blocks", *given, "--out", "runs/sweep", "--dry-run", "--json")
    for command in json.loads(blocks.out)["commands"]:
        assert "--method blocks" in command and "--no-reconstruct" not in command


@pytest.mark.slow
def test_every_command_of_a_dry_run_is_one(compressor):
    """The commands of the cells say what the cells do."""
    ran = compressor(
        "sweep", DIGITS, "--targets", "0.5", *QUICK, "--out", compressor.folder / "s", "--dry-run", "--json"
    )
    for command in json.loads(ran.out)["commands"]:
        words = command.split()[1:]
        there = compressor(*words, "--dry-run", "--json")
        assert there.code == 0 or "a period of" in there.err, there.err


@pytest.mark.slow
def test_grid_goes_on_where_it_was_and_ends_in_the_comparison(compressor):
    out = compressor.folder / "sweep"
    begin = ["sweep", DIGITS, "--methods", "l1", "--targets", "0.7,0.0001", *QUICK, "--out", out]
    first = compressor(*begin, "--json")
    data = json.loads(first.out)
    assert first.code == 0
    assert [point["method"] for point in data["points"]] == ["finetune", "start", "l1"]
    assert list(data["failed"]) == ["l1-0.0001"] and "cannot be reached" in data["failed"]["l1-0.0001"]
    written = (out / "l1-0.7" / "report.json").stat().st_mtime_ns

    (out / "control" / "report.json").unlink()
    (out / "comparison.html").unlink()  # as if it had been broken off
    resumed = compressor("resume", out)
    assert resumed.code == 0 and "l1-0.7 is done already" in resumed.err and "comparison.html" in resumed.err
    assert (out / "l1-0.7" / "report.json").stat().st_mtime_ns == written

    wider = compressor("sweep", DIGITS, "--methods", "l1", "--targets", "0.7,0.6", *QUICK, "--out", out)
    assert wider.code == 0 and (out / "l1-0.6" / "report.json").exists()
    other = compressor(*begin, "--seed", "4")
    assert other.code == 2 and "seed 0, now 4" in other.err

    same = compressor("compare", out / "control", out / "l1-0.7", "--json")
    points = json.loads(same.out)["points"]
    assert {point["macs"] for point in points} == {point["macs"] for point in data["points"]}


@pytest.mark.slow
def test_stopped_sweep_says_how_to_go_on(compressor, monkeypatch):
    import signal

    from compressor.training.interrupt import Interrupted

    def stopped(job, tell, **more):
        raise Interrupted(signal.SIGINT, "stopped by SIGINT after step 3")

    monkeypatch.setattr(sweeping, "run", stopped)
    out = compressor.folder / "sweep"
    ran = compressor("sweep", DIGITS, "--methods", "l1", *QUICK, "--out", out)
    assert ran.code == 130 and ran.err.strip().endswith(f"with the others: compressor resume {out}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([DIGITS, "--targets", "1.5"], "no share of the MACs"),
        ([DIGITS, "--methods", "l1,l1"], "without repetition"),
        ([DIGITS, "--target-ms", "3,3"], "--target-ms once"),
        ([DIGITS, "--target-ms", "3", "--targets", "0.5"], "leave one of them out"),
        ([DIGITS, "--methods", "taylr"], "did you mean taylor"),
        (["--arch", "torchvision:resnet18"], "starts from a trained model"),
    ],
    ids=["target", "twice", "twice in ms", "both targets", "method", "untrained"],
)
def test_grids_that_make_no_sense_are_refused(compressor, arguments, said):
    out = compressor.folder / "sweep"
    ran = compressor("sweep", *arguments, "--data", "digits", "--out", out)
    assert ran.code == 2 and said in ran.err and not out.exists()


@pytest.mark.parametrize(
    ("folders", "said"),
    [(["a"], "holds no run"), (["begun"], "compressor resume"), (["a", "a"], "named twice")],
    ids=["none", "unfinished", "twice"],
)
def test_what_is_no_finished_run_is_refused(compressor, folders, said):
    for name in ("a", "begun"):
        (compressor.folder / name).mkdir()
    (compressor.folder / "begun" / "settings.json").write_text("{}")
    ran = compressor("compare", *(compressor.folder / name for name in folders))
    assert ran.code != 0 and said in ran.err


def test_comparison_is_not_written_over_unasked(compressor, monkeypatch):
    from tests.report.reports import full_report

    monkeypatch.chdir(compressor.folder)
    full_report().save("runs/l1")
    arguments = ["compare", "runs/l1", "--out", "compared"]
    check_golden("compare", compressor(*arguments), compressor.folder)
    again = compressor(*arguments)
    assert again.code == 2 and "--overwrite" in again.err
    assert compressor(*arguments, "--overwrite").code == 0
