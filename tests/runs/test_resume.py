"""Runs that are broken off go on to the same end; settings go to a file and back."""

import json
import shutil
import signal
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

import compressor
from compressor.errors import FileError, UsageError
from compressor.pruning.settings import PruneSettings
from compressor.runs.folder import RunFolder
from compressor.runs.job import RunJob, TrainJob, flat
from compressor.runs.jobs import VERBS, AdaptJob, DetachJob, PruneJob, ReplaceJob, ShrinkJob, SweepJob
from compressor.runs.prune import PruneRun
from compressor.runs.restart import job_of
from compressor.runs.resume import resume
from compressor.runs.run import Run, run, run_class
from compressor.runs.settings import FINETUNE, GoalSettings, ModelSettings, OutputSettings
from compressor.training.checkpoint import NAME, PREVIOUS, read_checkpoint, write_checkpoint
from compressor.training.events import BatchEvent
from compressor.training.interrupt import Interrupted

ROOT = Path(__file__).parents[2]
DIGITS = ModelSettings(str(ROOT / "sample_models" / "digits_cnn.safetensors"))
FRESH = ModelSettings(arch=f"{ROOT / 'sample_models' / 'digits_cnn.py'}:build", arch_arg=(("width", 0.25),))
THREE_EPOCHS = replace(FINETUNE, epochs=3, device="cpu", log_seconds=0.0)


def out(folder):
    return OutputSettings(str(folder), latency=False, onnx=False)


def pruning(folder):
    choice = PruneSettings(method="taylor", score_images=64)
    return PruneJob(FRESH, "digits", out(folder), choice=choice, training=THREE_EPOCHS)


def training(folder):
    return TrainJob(FRESH, "digits", out(folder), training=THREE_EPOCHS, command="compressor train --arch x")


RUNS = {"prune": pruning, "train": training}


def breaking_off(epoch, batch):
    """A listener that sends this process SIGTERM in the middle of an epoch."""

    def listen(event):
        if isinstance(event, BatchEvent) and (event.epoch, event.batch) == (epoch, batch):
            signal.raise_signal(signal.SIGTERM)

    return listen


def weights(folder):
    return compressor.load(folder / "model.safetensors").state_dict()


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_broken_off_comes_to_the_same_end(name, tmp_path):
    job = RUNS[name]
    whole = run(job(tmp_path / "whole"))
    with pytest.raises(Interrupted, match="compressor resume"):
        run(job(tmp_path / "broken"), breaking_off(1, 4))
    assert not (tmp_path / "broken" / "model.safetensors").exists()

    (tmp_path / "broken").rename(tmp_path / "moved")
    report = resume(str(tmp_path / "moved"))
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "moved")
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert report.after.top1 == whole.after.top1 and report.edits == whole.edits
    assert [row["epoch"] for row in report.rows] == [0, 1, 2]
    assert report.command == job("").command

    lines = (tmp_path / "moved" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2]


def test_what_was_decided_is_not_decided_again(tmp_path, monkeypatch):
    """Times differ from day to day, and vector widths from chip to chip: another plan would not fit the checkpoint."""
    whole = run(pruning(tmp_path / "whole"))
    with pytest.raises(Interrupted):
        run(pruning(tmp_path / "broken"), breaking_off(1, 4))
    shutil.copytree(tmp_path / "broken", tmp_path / "odd")
    monkeypatch.setattr(PruneRun, "_selected", lambda self: pytest.fail("decided again"))
    report = resume(str(tmp_path / "broken"))
    assert report.edits == whole.edits and report.refused == whole.refused and report.notes == whole.notes

    content = read_checkpoint(tmp_path / "odd" / NAME)
    content["structure"]["edits"][0]["channels"] = [9999]
    write_checkpoint(tmp_path / "odd", content)
    with pytest.raises(FileError, match="plan does not fit the network .it removes channels that the network lacks"):
        resume(str(tmp_path / "odd"))


def test_a_run_broken_off_before_its_first_checkpoint_begins_again(tmp_path):
    with pytest.raises(Interrupted):
        run(training(tmp_path / "run"), breaking_off(0, 1))
    for name in (NAME, PREVIOUS):
        (tmp_path / "run" / name).unlink(missing_ok=True)
    assert len(resume(str(tmp_path / "run")).rows) == 3


@pytest.mark.slow
def test_paths_are_those_of_the_folder_where_the_run_began(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    shutil.copy(DIGITS.model, tmp_path / "here" / "model.safetensors")
    monkeypatch.chdir(tmp_path / "here")
    model = ModelSettings("model.safetensors", arch=f"{ROOT / 'sample_models' / 'digits_cnn.py'}:build")
    job = replace(pruning("run"), model=model, training=replace(THREE_EPOCHS, epochs=1))
    with pytest.raises(Interrupted):
        run(job, breaking_off(0, 2))
    monkeypatch.chdir(tmp_path)
    assert resume("here/run").after.top1 is not None
    assert Path.cwd() == tmp_path


def test_a_finished_run_is_not_run_again(tmp_path):
    run(replace(pruning(tmp_path / "run"), training=replace(THREE_EPOCHS, epochs=1)))
    with pytest.raises(UsageError, match="finished"):
        resume(str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "there is no run"),
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"command": "demo"}', "cannot be resumed"),
        ('{"command": "train"}', "lacks 'data'"),
    ],
    ids=["missing", "truncated", "a-list", "another-command", "incomplete"],
)
def test_a_folder_without_a_run_is_one_line(tmp_path, content, complaint):
    if content is not None:
        (tmp_path / "settings.json").write_text(content)
    with pytest.raises(FileError, match=complaint):
        resume(str(tmp_path))


def jobs():
    """One job of every kind, with settings that are not the defaults."""
    output = OutputSettings("runs/x", overwrite=True, latency=False)
    choice = PruneSettings(ratio_for=(("a", 0.5), ("b", 0.25)), keep=("c",), target_macs=0.3)
    training = replace(FINETUNE, milestones=(1, 2), epochs=7, lr=0.25)
    yield PruneJob(DIGITS, "digits", output, choice=choice, training=training, command="compressor prune a b")
    yield TrainJob(FRESH, "digits", output, training=training, command="compressor train a", chosen=("lr",))
    yield TrainJob(DIGITS, "digits", output, command="compressor finetune a")
    goals = GoalSettings(keep=("a",))
    command = "compressor prune --method adapnet"
    yield AdaptJob(FRESH, "digits", output, goals=goals, preset="paper", command=command)
    yield ReplaceJob(DIGITS, "digits", output, until="5", command="compressor replace a")
    yield DetachJob(DIGITS, "digits", output, command="compressor detach a")


@pytest.mark.parametrize("job", list(jobs()), ids=lambda job: job.command)
def test_settings_go_to_json_and_back(job):
    again = job_of(json.loads(json.dumps(flat(job))))
    differing = [entry.name for entry in fields(job) if getattr(job, entry.name) != getattr(again, entry.name)]
    if isinstance(job, AdaptJob):
        # AdapNet's own learning rate stands under the name that training has too, and is the one that counts.
        differing.remove("training")
    assert not differing


def test_a_setting_that_somebody_chose_in_a_newer_compressor_is_not_left_out():
    settings = {**flat(next(jobs())), "carbon": 0.5}
    assert job_of(settings) == next(jobs())
    with pytest.raises(FileError, match="there is no setting 'carbon'"):
        job_of({**settings, "chosen": ["carbon"]})


@pytest.mark.parametrize("kind", [kind for kinds in VERBS.values() for kind in kinds if issubclass(kind, RunJob)])
def test_every_job_that_leaves_a_run_names_the_class_that_carries_it_out(kind):
    assert kind in (SweepJob, ShrinkJob) or issubclass(run_class(kind), Run)


def test_a_folder_with_a_run_that_was_broken_off_says_how_to_go_on(tmp_path):
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(UsageError, match=f"go on with its run: compressor resume {tmp_path}; else give another `out`"):
        RunFolder(OutputSettings(str(tmp_path)))
