"""`compressor resume` prints what the run itself would have printed."""

import json
import re
import signal
from pathlib import Path

import pytest

import compressor
from compressor.cli import main
from compressor.training.events import EpochEvent
from compressor.training.interrupt import Interrupted

ROOT = Path(__file__).parents[2]
MODEL = "sample_models/digits_cnn.safetensors"
COMMON = {"data": "digits", "epochs": 2, "batch_size": 256, "latency": False, "onnx": False}
RUNS = {
    "detach": (compressor.detach, {"exits": 1}, ("base", "exits")),
    "route": (compressor.route, {"router_epochs": 1}, ("ways", "curves")),
}


def printed(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as left:
        main([str(each) for each in arguments])
    out, err = capsys.readouterr()
    assert not left.value.code, err
    return out


def stop(event: object) -> None:
    if isinstance(event, EpochEvent) and event.row["epoch"] == 0:
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("command", ["detach", "route"])
@pytest.mark.slow
def test_the_tables_are_those_of_the_run(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    run, choice, keys = RUNS[command]
    flags = [part for name, value in choice.items() for part in (f"--{name.replace('_', '-')}", value)]
    flags += ["--data", "digits", "--epochs", 2, "--batch-size", 256, "--no-latency", "--no-onnx"]
    whole = printed(capsys, command, MODEL, *flags, "--out", tmp_path / "whole")
    for name in ("text", "json"):
        with pytest.raises(Interrupted):
            run(MODEL, out=tmp_path / name, tell=stop, **COMMON, **choice)
    assert "top-1" in whole and _without_sizes(printed(capsys, "resume", tmp_path / "text")) == _without_sizes(whole)
    found = json.loads(printed(capsys, "resume", tmp_path / "json", "--json"))
    assert all(found["details"][key] for key in keys)


def _without_sizes(text: str) -> list[str]:
    """The lines but for the file, and its size, which depends on how the command was written."""
    lines = (line for line in text.splitlines() if "file size" not in line and not line.endswith("model.safetensors"))
    return [re.sub(r"\s+", " ", line) for line in lines]
