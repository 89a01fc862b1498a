"""Every command and Python line of docs/commands.md is run, in its order and in a folder of its own; README's too.

To take seconds and not minutes, training is cut to an epoch and latency left out; nothing else is changed.
"""

import contextlib
import itertools
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import compressor
from compressor.cli import main
from tests.pages import PAGES, README, ROOT, owned, run, shortened, stand_ins
from tests.pages import commands as commands_of

PAGE = PAGES["commands.md"]
COMMANDS = commands_of(PAGE)


def python(page):
    """The blocks of Python of a page."""
    return re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)


def commands():
    """Those that need no folder of the reader's."""
    return [line for line in COMMANDS if "DIR" not in line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the sample models in it, in which the commands follow each other."""
    place = tmp_path_factory.mktemp("readme")
    (place / "sample_models").symlink_to(ROOT / "sample_models")
    return place


def test_there_are_commands_to_run():
    assert len(commands()) >= 8


def test_every_command_that_exists_is_shown():
    from compressor.runs.jobs import VERBS

    shown = {line.split()[1] for line in commands()} | set(re.findall(r"`compressor (\w+)`", PAGE))
    made = {line.split()[-1] for line in re.findall(r"^ {4}(make \w+)", README, flags=re.MULTILINE)}
    assert VERBS.keys() <= shown | made


@pytest.mark.slow
def test_commands_run_one_after_the_other(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for line in commands():
        words = shortened(line)
        if words[0] == "resume":  # as if the run had been broken off
            (Path(words[1]) / "report.json").unlink()
        run(words, capsys)


def test_the_package_classifies_an_image_as_shown(folder):
    """After the commands, one of which makes it."""
    lines = re.findall(r"^ {4}(python run.py [^#\n]*)", PAGE, flags=re.MULTILINE)
    assert len(lines) == 2
    if not (folder / "runs" / "deploy" / "run.py").exists():
        pytest.skip("the commands have not run")
    np.save(folder / "image.npy", np.full((8, 8), 128, np.uint8))
    for line in lines:
        words = ["image.npy" if word == "IMAGE" else word for word in shlex.split(line)[2:]]
        script = folder / "runs" / "deploy" / "run.py"
        ran = subprocess.run([sys.executable, script, *words], cwd=folder, capture_output=True, text=True)
        assert ran.returncode == 0 and len(ran.stdout.splitlines()) == 5, ran.stderr


@pytest.mark.slow
def test_commands_on_data_of_the_readers_run(tmp_path, monkeypatch, capsys):
    stand_ins(tmp_path)
    monkeypatch.chdir(tmp_path)
    lines = [line for line in COMMANDS if "DIR" in line]
    assert lines
    for line in owned(lines):
        run(shortened(line), capsys)


@pytest.mark.slow
def test_the_command_for_several_processes_runs(tmp_path):
    """On two processes of this machine; the one for several machines needs those."""
    [line] = re.findall(r"^ {4}torchrun --nproc-per-node=4 -m (.*)$", PAGE, flags=re.MULTILINE)
    trained = str(ROOT / "sample_models" / "digits_cnn.safetensors")
    words = shortened(line.replace("runs/digits/model.safetensors", trained))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    ran = subprocess.run([*torchrun, "compressor", *words], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "runs" / "four" / "model.safetensors").exists()


@pytest.mark.slow
def test_python_lines_run(folder, monkeypatch):
    """After the commands, whose results they open."""
    monkeypatch.chdir(folder)
    [block] = python(PAGE)
    if not (folder / "runs" / "small" / "model.safetensors").exists():
        pytest.skip("the commands have not run")
    exec(compile(block, "commands.md", "exec"), {"example": torch.zeros(1, 1, 8, 8)})


@pytest.mark.slow
def test_the_readmes_python_runs_on_a_strangers_network(tmp_path, monkeypatch, capsys):
    stand_ins(tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(compile(python(README)[0].replace("DIR", "images"), "README.md", "exec"), {})
    assert 0.4 < float(capsys.readouterr().out.split()[-1]) < 0.55


SHAPES = python(README)[1:]  # in memory, in a loop of one's own, with a task of one's own


def test_the_three_shapes_take_at_most_five_lines_each():
    assert len(SHAPES) == 3
    assert all(len(block.strip().splitlines()) <= 5 for block in SHAPES)


def test_a_small_network_is_pruned_at_once_and_in_a_loop_of_ones_own():
    at_once, in_a_loop, _ = SHAPES
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Linear(8 * 36, 5),
    )  # fmt: skip
    loader = [(torch.rand(8, 1, 8, 8), torch.randint(5, (8,))) for _ in range(10)]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)

    def train_on(x, y):
        torch.nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    given = {
        "compressor": compressor, "module": module, "example": torch.zeros(1, 1, 8, 8), "loader": loader,
        "optimizer": optimizer, "train_on": train_on, "chain": itertools.chain, "repeat": itertools.repeat,
    }  # fmt: skip
    exec(compile(in_a_loop, "README.md", "exec"), given)
    assert given["report"].rows  # a period at least
    exec(compile(at_once, "README.md", "exec"), given)
    assert given["report"].after.macs < 0.55 * given["report"].before.macs
    assert "refitted by least squares" in " ".join(given["report"].notes)


def test_a_task_of_ones_own_is_trained_pruned_and_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(SystemExit):
        main(["new-task", "net.py"])
    names = runpy.run_path("net.py")
    torch.save(names["build"]().state_dict(), "weights.pt")
    block = SHAPES[2].replace("epochs=2", "epochs=1, latency=False, onnx=False")
    exec(compile(block, "README.md", "exec"), {"compressor": compressor, **names})
    assert capsys.readouterr().out.count("IoU") == 2 and Path("runs/task/model.safetensors").exists()
