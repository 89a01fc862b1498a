"""Colour and bars with a terminal, neither without one nor with NO_COLOR: the program as a process of its own."""

import ast
import io
import os
import pty
import re
import subprocess
import sys

import pytest
from rich.console import Console

from compressor.cli.terminal import Bars, Lines
from compressor.runs.stages import PartEvent, PeriodEvent, Stage
from compressor.training.events import BatchEvent, EpochEvent, NoteEvent
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


def test_what_takes_seconds_to_import_is_imported_while_the_command_says_that_it_starts():
    slow = ("compressor.runs", "compressor.exporting")
    found = []
    for path in sorted((ROOT / "compressor" / "cli").glob("*.py")):
        for function in (each for each in ast.walk(ast.parse(path.read_text())) if isinstance(each, ast.FunctionDef)):
            inside = list(ast.walk(function))
            shown = [
                each.lineno for each in inside if isinstance(each, ast.With) and ".progress()" in ast.unparse(each)
            ]
            imports = [
                each for each in inside if isinstance(each, ast.ImportFrom) and each.lineno < min(shown, default=0)
            ]
            found += [f"{path.name}:{each.lineno}" for each in imports if str(each.module).startswith(slow)]
    assert not found


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
    table = [line for line in drawn.replace("\r", "").splitlines() if re.match(r"test top-1 |unchanged: MACs", line)]
    assert len(table) == 2 and max(map(len, table)) <= 80

    plain = on_terminal(*ADAPT, "--out", tmp_path / "plain", NO_COLOR="1")
    assert not COLOUR.search(plain) and "━" in plain


@pytest.mark.slow
def test_a_run_without_a_terminal_is_lines(tmp_path):
    seen = through_pipe(*ADAPT, "--out", tmp_path / "run")
    assert ESCAPE not in seen and "━" not in seen and "\r" not in seen
    assert re.search(r"^epoch 1/1  loss .* images/s$", seen, flags=re.MULTILINE)


ROW = {"epoch": 2, "train_loss": 0.5, "train_top1": 0.9, "validation_top1": 0.875, "images_per_second": 1234.4}
BATCH = BatchEvent(2, 10, 40, 391, 0.51234, 0.9013, 5123.4, 3725.0, 0.1)


def told(events, *, terminal):
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=terminal, color_system=None, highlight=False)
    if not terminal:
        listener = Lines(console)
        for event in events:
            listener.tell(event)
        return file.getvalue()
    with Bars(console) as bars:
        for event in events:
            bars.tell(event)
    return file.getvalue()


@pytest.mark.parametrize("terminal", [False, True], ids=["lines", "bars"])
def test_epochs_notes_and_periods_leave_a_line(terminal):
    text = told(
        [Stage("training"), EpochEvent(ROW), NoteEvent("mind `target_macs` of `a_layer`"), PeriodEvent({}, "period 3")],
        terminal=terminal,
    )
    assert "epoch 3  loss 0.5000  top-1 90.0%  validation 87.5%  1,234 images/s\n" in text
    assert "note: mind --target-macs of `a_layer`\n" in text and "period 3\n" in text


def test_lines_say_the_stage_and_only_now_and_then_the_batches():
    assert told([Stage("measuring")], terminal=False) == "measuring ...\n"
    assert told([BATCH], terminal=False) == ""


@pytest.mark.parametrize("terminal", [False, True], ids=["lines", "bars"])
def test_parts_of_a_stage_are_counted_where_they_take_long(terminal, monkeypatch):
    part = PartEvent("least squares", 3, 40)
    assert ("3/40" in told([part], terminal=terminal)) == terminal
    monkeypatch.setattr("compressor.cli.terminal.SECONDS_BETWEEN_LINES", 0.0)
    text = told([part], terminal=terminal)
    assert "least squares" in text and "3/40" in text


def test_a_batch_that_took_long_is_a_line(monkeypatch):
    monkeypatch.setattr("compressor.cli.terminal.SECONDS_BETWEEN_LINES", 0.0)
    text = told([BATCH, EpochEvent(ROW)], terminal=False)
    assert text.splitlines()[0] == "epoch  3/10  40/391  loss 0.5123  top-1 90.1%  5,123 images/s  1:02:05 left"
    assert text.splitlines()[1].startswith("epoch  3/10  loss")


def test_bars_show_loss_accuracy_speed_and_time_left():
    text = told([BATCH], terminal=True)
    for words in ("2/10", "40/391", "loss 0.5123", "top-1 90.1%", "5,123 images/s", "1:02:05 left"):
        assert words in text


def test_what_a_step_does_not_count_is_left_out():
    row = {**ROW, "train_top1": None, "validation_top1": None}
    assert told([EpochEvent(row)], terminal=False) == "epoch 3  loss 0.5000  1,234 images/s\n"


def test_no_line_is_wider_than_a_terminal():
    text = told([EpochEvent({**ROW, "epoch": 199, "images_per_second": 123456.0}), BATCH], terminal=False)
    assert max(map(len, text.splitlines())) <= 80


def test_a_part_is_a_bar_with_rate_and_time_left(monkeypatch):
    clock = iter([100.0, 110.0])
    monkeypatch.setattr("compressor.cli.terminal.time.monotonic", lambda: next(clock))
    text = told([PartEvent("evaluating images", 0, 1000), PartEvent("evaluating images", 200, 1000)], terminal=True)
    assert "200/1000" in text and "20/s" in text and "0:40 left" in text
