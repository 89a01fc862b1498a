"""Every command and every Python line of the README is run, in its order and in a folder of its own.

To take seconds and not minutes, training is cut to an epoch and latency left out; nothing else is changed.
"""

import re
import shlex
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

SHORT = {"--epochs": "1", "--latency": None}  # flag -> what it becomes; None: left out
MORE = {  # added to a command that has the words
    "compressor compare": "",
    "--method adapnet": "--startup-epochs 0 --max-epochs 1 --finetune-epochs 0 --lsep 3 --no-latency",
    "prune": "--no-latency",
    "train": "--no-latency",
    "finetune": "--no-latency",
    "detach": "--no-latency",
    "sweep": "--no-latency --no-onnx",
    "route": "--no-latency",
    "replace": "--retrain-epochs 1 --no-latency",
}


def commands():
    """The lines of indented blocks that call the program; those about a folder of the reader's are left out."""
    lines = re.findall(r"^ {4}(compressor .*)$", README, flags=re.MULTILINE)
    return [line.partition(" #")[0].strip() for line in lines if "DIR" not in line]


def shortened(line):
    """The command's arguments, made quick."""
    words = shlex.split(line)[1:]
    for flag, value in SHORT.items():
        if flag in words:
            at = words.index(flag)
            words[at : at + (1 if value is None else 2)] = [] if value is None else [flag, value]
    more = next((extra for key, extra in MORE.items() if key in line), "")
    return words + more.split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the sample models in it, in which the commands follow each other."""
    place = tmp_path_factory.mktemp("readme")
    (place / "sample_models").symlink_to(ROOT / "sample_models")
    return place


def test_there_are_commands_to_run():
    assert len(commands()) >= 8


def test_every_command_that_exists_is_shown():
    from compressor.cli.app import app

    shown = {line.split()[1] for line in commands()} | set(re.findall(r"`compressor (\w+)`", README))
    made = {line.split()[-1] for line in re.findall(r"^ {4}(make \w+)", README, flags=re.MULTILINE)}
    assert {command.name for command in app.registered_commands} <= shown | made


def test_commands_run_one_after_the_other(folder, monkeypatch, capsys):
    from compressor.cli import main

    monkeypatch.chdir(folder)
    for line in commands():
        words = shortened(line)
        if words[0] == "resume":  # as if the run had been broken off
            (Path(words[1]) / "report.json").unlink()
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 0, f"{line}: {capsys.readouterr().err}"
        capsys.readouterr()


def test_python_lines_run(folder, monkeypatch):
    """After the commands, whose results they open."""
    monkeypatch.chdir(folder)
    [block] = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    if not (folder / "runs" / "small" / "model.pt").exists():
        pytest.skip("the commands have not run")
    exec(compile(block, "README.md", "exec"), {"example": torch.zeros(1, 1, 8, 8)})
