"""`compressor prune --method adapnet`: its flags, what they make, and what it refuses."""

import json
from dataclasses import fields, replace

import pytest

from compressor.pruning.adapnet.settings import PRESETS, AdapNetSettings
from compressor.pruning.settings import ABOUT
from compressor.runs.settings import GoalSettings

DIGITS = "sample_models/digits_cnn.safetensors"
PRUNE = ("prune", DIGITS, "--method", "adapnet")


@pytest.fixture
def jobs(monkeypatch):
    """The jobs that the command would have run."""
    from compressor.runs import run

    seen = []

    def instead(job, tell):
        seen.append(job)
        return dry_run(job, tell)

    dry_run = run.dry_run
    monkeypatch.setattr(run, "dry_run", instead)
    return seen


def test_every_setting_is_a_flag(compressor):
    page = compressor("prune", "--help-all").out
    for room in (AdapNetSettings, GoalSettings):
        for field in fields(room):
            assert not field.metadata or f"--{field.name.replace('_', '-')}" in page, field.name
    assert "--no-merge" in page and "--no-freeze" in page and "--no-insert" in page


def test_a_preset_gives_what_was_not_typed(compressor, jobs):
    arguments = ["--data", "digits", "--dry-run", "--lsep", "8"]
    untrained = ["prune", "--arch", "sample_models/digits_cnn.py:build", *PRUNE[2:]]
    assert compressor(*PRUNE, *arguments, "--preset", "quick", "--no-merge", "--lr", "0.3").code == 0
    assert compressor(*PRUNE, *arguments, "--preset", "paper").code == 0
    assert compressor(*PRUNE, *arguments).code == 0
    assert compressor(*untrained, *arguments).code == 0
    quick, paper, trained, random = [job.adapnet for job in jobs]
    assert quick == replace(PRESETS["quick"], lsep=8, merge=False, lr=0.3)
    assert paper == random == replace(PRESETS["paper"], lsep=8)
    assert trained == replace(PRESETS["short"], lsep=8) and trained.reconstruct


def test_goals_and_shared_flags_reach_the_job(compressor, jobs):
    goals = ["--target-macs", "0.5", "--target-params", "0.6", "--undo-drop", "0.02", "--distill"]
    shared = ["--seed", "7", "--keep", "3", "--augment", "flip"]
    ran = compressor(*PRUNE, "--data", "digits", "--preset", "quick", "--dry-run", "--json", *goals, *shared)
    assert ran.code == 0
    (job,) = jobs
    assert job.goals == GoalSettings(target_macs=0.5, target_params=0.6, undo_drop=0.02, keep=("3",))
    assert (job.training.seed, job.training.augment, job.distilling.distill) == (7, "flip", True)
    printed = json.loads(ran.out)
    assert printed["settings"]["method"] == "adapnet" and printed["settings"]["lsep"] is None
    assert printed["frozen"].keys() == {"3", "12"} and printed["after"]["macs"] is None


def test_without_data_it_names_the_methods_that_need_none(compressor):
    ran = compressor(*PRUNE, "--out", compressor.folder / "run")
    assert ran.code == 2 and "needs --data" in ran.err
    assert all(name in ran.err for name, about in ABOUT.items() if not about.needs_data)
    assert "taylor" not in ran.err and not (compressor.folder / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ratio", "0.3"], "--ratio is not for adapnet: it decides itself"),
        (["--epochs", "3"], "--epochs is not for adapnet: give --startup-epochs"),
        (["--schedule", "cosine"], "--schedule is not for adapnet: it halves its rate every --lr-halve-every epochs"),
        (["--warmup-epochs", "1"], "--warmup-epochs is not for adapnet"),
        (["--prune-cap", "2"], "--prune-cap"),
        (["--preset", "slow"], "--preset"),
        (["--lsep", "9999"], "a period of 9999 steps fits 0 times"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_flags_that_do_not_fit_are_one_line(flags, message, compressor):
    ran = compressor(*PRUNE, "--data", "digits", "--preset", "quick", "--out", compressor.folder / "run", *flags)
    assert ran.code == 2
    assert message in ran.err.splitlines()[-1] and ran.err.splitlines()[-1].startswith("error: ")
    assert not (compressor.folder / "run").exists()


@pytest.mark.parametrize("flags", [["--no-insert"], ["--preset", "quick"], ["--target-params", "0.5"]])
def test_other_methods_refuse_its_flags(flags, compressor):
    ran = compressor("prune", DIGITS, "--method", "l1", "--dry-run", *flags)
    assert ran.code == 2 and "belongs to --method adapnet, not to l1: give --method adapnet, or leave --" in ran.err
