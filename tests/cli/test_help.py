"""Help pages: their whole text, a worked example in each, 80 columns, and an answer before torch could be imported."""

import resource
import subprocess
import sys
import time

import pytest

from compressor.runs.jobs import VERBS
from tests.cli.command import ROOT, check_golden


def test_list_of_commands(compressor):
    ran = compressor("--help")
    check_golden("help", ran, compressor.folder)
    assert compressor() == ran, "no arguments at all say the same"


@pytest.mark.parametrize("command", VERBS)
def test_help_of_each_command(compressor, command):
    ran = compressor(command, "--help")
    check_golden(f"help-{command}", ran, compressor.folder)
    assert f"Example\n  compressor {command} " in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80


def test_help_all_shows_the_rare_flags(compressor):
    ran = compressor("prune", "--help-all")
    assert ran.code == 0
    assert "--label-smoothing" in ran.out and "--label-smoothing" not in compressor("prune", "--help").out


@pytest.mark.parametrize("arguments", [["--help"], ["prune", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\n"
        "from compressor.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'torchvision', 'onnx', 'sklearn', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.splitlines()[-1] == "[]"


def test_a_command_leaves_without_a_search_for_garbage():
    """Through all of torch's objects that takes one to three seconds, in which the prompt does not come back."""
    code = (
        "import atexit, gc\n"
        "from compressor.cli import main\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 0))\n"
        "main(['--version'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.splitlines()[-1] == "True"


def processor_time(*command):
    """Seconds of the fastest of three, since other processes may be running."""
    spent = []
    for _ in range(3):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, *command], capture_output=True, check=True, cwd=ROOT)
        after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
        spent.append(min(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    return min(spent)


def test_help_answers_in_half_a_second():
    """Of a machine on which what draws the page is imported in a fifth of a second."""
    imports = processor_time("-c", "import typer, rich.console, rich.panel, rich.table")
    assert processor_time("-m", "compressor", "--help") < max(0.5, 3 * imports)
