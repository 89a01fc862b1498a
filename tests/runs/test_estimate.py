"""What a dry run predicts of time and memory: the arithmetic on a clock of our own, and that nothing is left behind."""

from dataclasses import replace
from pathlib import Path

import pytest

from compressor.errors import UsageError
from compressor.pruning.settings import PruneSettings
from compressor.runs import estimate as estimating
from compressor.runs import run as running
from compressor.runs.estimate import Enough, Estimate, Pace
from compressor.runs.job import FinetuneJob
from compressor.runs.jobs import PruneJob
from compressor.runs.run import dry_run, run
from compressor.runs.settings import FINETUNE, ModelSettings, OutputSettings, TimeSettings, duration
from compressor.runs.stages import PartEvent, PeriodEvent, PeriodStep
from compressor.training.events import BatchEvent, EpochEvent

DIGITS = ModelSettings(str(Path(__file__).parents[2] / "sample_models" / "digits_cnn.safetensors"))


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands at what is put in; trying takes the two seconds of a user's."""
    now = [0.0]
    monkeypatch.setattr(estimating, "_SECONDS", 2.0)
    monkeypatch.setattr(estimating.time, "perf_counter", lambda: now[0])
    return now


def batch(epoch: int, done: int) -> BatchEvent:
    return BatchEvent(epoch, 10, done, 20, 0.5, 0.9, 100.0, 1.0, 0.1)


def test_the_pace_is_what_passes_between_the_first_and_the_last_event(clock):
    pace = Pace()
    for clock[0], event in ((5.0, batch(0, 2)), (6.0, batch(0, 12)), (6.5, EpochEvent({"epoch": 0}))):
        pace.tell(event)
    assert pace.began == 5.0 and pace.saw_an_epoch
    assert pace.epoch_seconds == pytest.approx(1.5 / 0.9)
    clock[0] = 8.0
    with pytest.raises(Enough):
        pace.tell(batch(1, 3))


def test_changes_of_structure_count_apart(clock):
    pace = Pace()
    told = ((0.0, batch(0, 0)), (1.0, PeriodStep(0, 10, 10)), (4.0, PeriodEvent({}, "")), (4.5, batch(0, 15)))
    for clock[0], event in told:
        pace.tell(event)
    assert pace.period_seconds == [3.0]
    assert pace.epoch_seconds == pytest.approx(1.5 / 0.75)


def test_a_stage_in_parts_is_predicted_from_its_first_ones(clock):
    pace = Pace()
    pace.tell(PartEvent("least squares", 0, 40))
    clock[0] = 2.5
    with pytest.raises(Enough):
        pace.tell(PartEvent("least squares", 5, 40))
    assert pace.parts_seconds == pytest.approx(20.0)


def test_nothing_trained_has_no_pace():
    assert Pace().epoch_seconds is None


def test_a_dry_run_predicts_and_leaves_the_plan_only(tmp_path, monkeypatch):
    monkeypatch.setattr(estimating, "_SECONDS", 0.0)
    output = OutputSettings(str(tmp_path / "run"), latency=False, onnx=False)
    before = Path(DIGITS.model).read_bytes()
    report = dry_run(PruneJob(DIGITS, "digits", output, training=FINETUNE, choice=PruneSettings(method="l1")))
    found = report.details["estimate"]
    assert found["seconds"] > 0 and found["peak_bytes"] > 50e6
    assert report.rows == () and not any("validation" in note for note in report.notes)
    assert [each.name for each in (tmp_path / "run").iterdir()] == ["plan.json"]
    assert Path(DIGITS.model).read_bytes() == before


def test_a_run_for_a_time_trains_as_many_epochs_as_fit(tmp_path, monkeypatch):
    """A run that is estimated to take 10 s and 2 s an epoch has time for three in 17 s."""
    monkeypatch.setattr(running, "estimate", lambda run: Estimate(10 + 2 * run.epochs(), 10.0, None, 2.0))
    output = OutputSettings(str(tmp_path / "run"), latency=False, onnx=False)
    training = replace(FINETUNE, device="cpu", epochs=9)
    job = FinetuneJob(DIGITS, "digits", output, training=training, time=TimeSettings(17.0))
    report = run(job)
    assert len(report.rows) == 3 and report.settings["epochs"] == 3
    assert any("0:17 have time for 3 epochs here" in note for note in report.notes)
    with pytest.raises(UsageError, match="takes about 0:12 here"):
        run(replace(job, time=TimeSettings(11.0), output=replace(output, out=str(tmp_path / "short"))))
    assert not (tmp_path / "short").exists()


def test_times_are_read_as_people_write_them():
    assert [duration(text) for text in ("90s", "20m", "2h", "1h30m", "1.5")] == [90, 1200, 7200, 5400, 90]
    for text in ("", "soon", "m20", "3 d"):
        with pytest.raises(ValueError, match=r".*"):
            duration(text)
