"""A run that was broken off anywhere and resumed ends at the weights, bit for bit, of the run left alone."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compressor.errors import DataError, FileError
from compressor.training import folders
from compressor.training.checkpoint import NAME, History, Saving, TrainState, latest_checkpoint
from compressor.training.data import open_data
from compressor.training.interrupt import Interrupted
from compressor.training.loop import fit
from compressor.training.settings import TrainSettings
from tests.training.small import assert_same, small_data, small_net, weights
from tests.training.test_folders import write_images

SETTINGS = TrainSettings(epochs=3, batch_size=16, lr=0.05, augment="crop+flip", warmup_epochs=1)


class Broken(Exception):
    """Stands for whatever ends a run."""


def rows(history: History) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in history.rows]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop"])
@pytest.mark.parametrize("at", [1, random.Random(0).randrange(2, 6), 6, 7, random.Random(1).randrange(8, 18), 18])
def test_resumed_run_equals_the_run_left_alone(tmp_path, optimizer, at):
    data, settings = small_data(), replace(SETTINGS, optimizer=optimizer, lr=0.01)
    alone = small_net()
    expected = fit(alone, data, settings)

    def break_off(state: TrainState) -> None:
        if state.step == at:
            raise Broken

    with pytest.raises(Broken):
        fit(small_net(), data, settings, after_step=break_off, saving=Saving(tmp_path, every_seconds=0))
    assert latest_checkpoint(tmp_path)[0]["counters"]["step"] == at - 1
    fresh = small_net(seed=9)
    history = fit(fresh, data, settings, saving=Saving(tmp_path, resume=True))
    assert_same(weights(alone), weights(fresh))
    assert rows(history) == rows(expected)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_finishes_the_step_and_writes_a_checkpoint(tmp_path, number, code):
    data, alone = small_data(), small_net()
    fit(alone, data, SETTINGS)

    def send(state: TrainState) -> None:
        if state.step == 8:
            signal.raise_signal(number)

    with pytest.raises(Interrupted, match=r"after step 8 .*compressor resume") as caught:
        fit(small_net(), data, SETTINGS, after_step=send, saving=Saving(tmp_path))
    assert caught.value.exit_code == code
    assert latest_checkpoint(tmp_path)[0]["counters"]["step"] == 8
    fresh = small_net(seed=9)
    fit(fresh, data, SETTINGS, saving=Saving(tmp_path, resume=True))
    assert_same(weights(alone), weights(fresh))


def test_signal_without_a_folder_says_that_nothing_was_saved():
    def send(state: TrainState) -> None:
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted, match="nothing was saved"):
        fit(small_net(), small_data(), SETTINGS, after_step=send)


def cut(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Drop the first channel of the first convolution, in model and momentum."""
    for module, name, dim in ((0, "weight", 0), (1, "weight", 0), (1, "bias", 0), (4, "weight", 1)):
        parameter = getattr(model[module], name)
        kept = torch.arange(1, parameter.shape[dim])
        parameter.data = parameter.data.index_select(dim, kept)
        if optimizer is not None:
            parameter.grad = None
            state = optimizer.state[parameter]
            state["momentum_buffer"] = state["momentum_buffer"].index_select(dim, kept)
    for name in ("running_mean", "running_var"):
        setattr(model[1], name, getattr(model[1], name)[1:])


@pytest.mark.parametrize("at", [4, 5, 9, 11])
def test_changed_structure_and_method_state_come_back(tmp_path, at):
    """A method that drops a channel every 4 steps, and counts."""
    data = small_data()

    def run(net: nn.Module, folder: Path | None, stop_at: int = 0) -> dict[str, Any]:
        method = {"cuts": 0, "sum": torch.zeros(2)}

        def after_step(state: TrainState) -> bool:
            method["sum"] = method["sum"] * 0.5 + state.step
            if state.step % 4 == 0:
                cut(state.model, state.optimizer)
                method["cuts"] += 1
            if state.step == stop_at:
                raise Broken
            return False

        def restore(structure: dict[str, Any], saved: dict[str, Any]) -> None:
            for _ in range(structure["cuts"]):
                cut(net, None)
            method.update(saved)

        saving = None
        if folder is not None:
            saving = Saving(folder, "prune", True, 0, lambda: {"cuts": method["cuts"]}, lambda: dict(method), restore)
        fit(net, data, SETTINGS, after_step=after_step, saving=saving)
        return method

    alone, broken, fresh = small_net(), small_net(), small_net(seed=9)
    expected = run(alone, None)
    with pytest.raises(Broken):
        run(broken, tmp_path, at)
    method = run(fresh, tmp_path)
    assert alone[0].weight.shape[0] == 2
    assert method["cuts"] == expected["cuts"] == 4
    assert torch.equal(method["sum"], expected["sum"])
    assert_same(weights(alone), weights(fresh))


def test_finished_phase_is_not_trained_again(tmp_path):
    data, net = small_data(), small_net()
    history = fit(net, data, SETTINGS, saving=Saving(tmp_path))
    fresh = small_net(seed=9)
    again = fit(
        fresh, data, SETTINGS, after_step=lambda state: pytest.fail("trained"), saving=Saving(tmp_path, resume=True)
    )
    assert again.rows == history.rows
    assert_same(weights(net), weights(fresh))


def test_resume_with_nothing_to_resume_starts(tmp_path):
    data, net, alone = small_data(), small_net(), small_net()
    fit(alone, data, SETTINGS)
    fit(net, data, SETTINGS, saving=Saving(tmp_path / "new" / "run", resume=True))
    assert_same(weights(alone), weights(net))


def test_damaged_checkpoint_is_passed_over_with_a_note(tmp_path):
    data, alone = small_data(), small_net()
    fit(alone, data, SETTINGS, saving=Saving(tmp_path))
    file = tmp_path / NAME
    file.write_bytes(file.read_bytes()[:-100])
    fresh = small_net(seed=9)
    history = fit(fresh, data, SETTINGS, saving=Saving(tmp_path, resume=True))
    assert "damaged" in history.notes[0]
    assert_same(weights(alone), weights(fresh))


def test_other_data_are_refused(tmp_path):
    fit(small_net(), small_data(), SETTINGS, saving=Saving(tmp_path))
    with pytest.raises(DataError, match="had 96 images when the run began, now 80"):
        fit(small_net(), small_data(train=80), SETTINGS, saving=Saving(tmp_path, resume=True))


def test_other_model_is_refused(tmp_path):
    data = small_data()
    fit(small_net(), data, SETTINGS, saving=Saving(tmp_path))
    with pytest.raises(FileError, match="does not fit the model"):
        fit(small_net(classes=11), data, SETTINGS, saving=Saving(tmp_path, resume=True))


def test_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError, match="cannot be made"):
        fit(small_net(), small_data(), SETTINGS, saving=Saving(tmp_path / "file" / "run"))


def test_ctrl_c_reaches_the_workers_too_and_they_go_on(tmp_path, monkeypatch):
    """A large folder, whose workers are in the process group that the terminal signals."""
    for split, count in (("train", 24), ("test", 4)):
        write_images(tmp_path / "data" / split / "cat", count)
        write_images(tmp_path / "data" / split / "dog", count)
    monkeypatch.setattr(folders, "IN_MEMORY_BYTES", 0)
    data = open_data(f"folder:{tmp_path / 'data'}", input_shape=(1, 8, 8))
    settings = replace(SETTINGS, batch_size=4, epochs=2)
    alone, fresh = small_net(2), small_net(2, seed=9)
    fit(alone, data, settings)

    def ctrl_c(state: TrainState) -> None:
        if state.step == 3:
            workers = multiprocessing.active_children()
            assert workers
            for worker in workers:
                os.kill(worker.pid, signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        assert state.step <= 3

    with pytest.raises(Interrupted, match="after step 3"):
        fit(small_net(2), data, settings, after_step=ctrl_c, saving=Saving(tmp_path / "run"))
    fit(fresh, data, settings, saving=Saving(tmp_path / "run", resume=True))
    assert_same(weights(alone), weights(fresh))


@pytest.mark.slow
def test_run_killed_at_any_moment_ends_at_the_same_weights(tmp_path):
    """SIGKILL at random times and in the middle of writing a checkpoint; see killed.py."""
    script = Path(__file__).with_name("killed.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[2])}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["kills"] >= 8
    assert result["equal"]
