"""Colour and bars with a terminal, neither without one nor with NO_COLOR: the program as a process of its own."""

import os
import pty
import re
import subprocess
import sys

import pytest

from tests.cli.command import ROOT

COLOUR = re.compile(r"\x1b\[[\d;]*(?:3[0-8]|9[0-7]|4[0-8])[\d;]*m")
ESCAPE = "\x1b"
HELP = ["prune", "--help"]
ADAPT = ["prune", "sample_models/digits_cnn.safetensors", "--method", "adapnet", "--preset", "quick",
         "--data", "digits", "--max-epochs", "1", "--lsep", "3", "--finetune-epochs", "0",
         "--no-latency", "--no-onnx"]  # fmt: skip


def started(arguments, **streams):
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    environment |= {"TERM": "xterm-256color", "COLUMNS": "80", **streams.pop("environment", {})}
    command = [sys.executable, "-m", "compressor", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, **streams)


def on_terminal(*arguments, **environment):
    """All that a terminal gets to see, on stdout and stderr."""
    ours, its = pty.openpty()
    process = started(arguments, stdin=its, stdout=its, stderr=its, environment=environment)
    os.close(its)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        seen += piece
    os.close(ours)
    assert process.wait() == 0, seen.decode()
    return seen.decode()


def through_pipe(*arguments):
    process = started(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seen, _ = process.communicate()
    assert process.returncode == 0, seen
    return seen


def test_help_is_coloured_on_a_terminal_only():
    coloured = on_terminal(*HELP)
    assert COLOUR.search(coloured)
    assert not COLOUR.search(on_terminal(*HELP, NO_COLOR="1"))
    plain = through_pipe(*HELP)
    assert ESCAPE not in plain
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured).replace("\r\n", "\n").split() == plain.split()


@pytest.mark.slow
def test_bars_of_a_run_are_nested_and_lines_stay(tmp_path):
    """Epochs, the batches of one, the period of AdapNet and what the last one decided; then the table of the result."""
    seen = on_terminal(*ADAPT, "--out", tmp_path / "run")
    assert COLOUR.search(seen)
    drawn = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", seen)
    for bar in (r"epoch +━", r"batch +━", r"period +━\S* +\d/3", r"period +━\S* +\d/3 +last: "):
        assert re.search(bar, drawn), bar
    assert re.search(r"\repoch 1/1  loss .* images/s", drawn)
    table = [line for line in drawn.replace("\r", "").splitlines() if re.match(r"(MACs|parameters|file size) ", line)]
    assert len(table) >= 3 and max(map(len, table)) <= 80

    plain = on_terminal(*ADAPT, "--out", tmp_path / "plain", NO_COLOR="1")
    assert not COLOUR.search(plain) and "━" in plain


@pytest.mark.slow
def test_a_run_without_a_terminal_is_lines(tmp_path):
    seen = through_pipe(*ADAPT, "--out", tmp_path / "run")
    assert ESCAPE not in seen and "━" not in seen and "\r" not in seen
    assert re.search(r"^epoch 1/1  loss .* images/s$", seen, flags=re.MULTILINE)
