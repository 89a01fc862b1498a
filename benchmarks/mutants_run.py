"""Run tests on copies of the project, in processes forked from one that has torch imported.

A process forked here has not imported the project, so it takes the copy's files as they are then.
"""

import contextlib
import importlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "mutants"
# Imported once, before the fork: none of them starts threads, and none imports the project.
_HEAVY = ("torch", "torch.export", "torch._dynamo", "torch.onnx", "onnx", "onnxruntime", "scipy.sparse.csgraph",
          "sklearn.datasets", "hypothesis", "PIL.Image", "typer", "rich.console", "thop")  # fmt: skip
ARGUMENTS = ("-q", "-p", "no:cacheprovider", "-m", "not slow and not zoo", "--no-header", "--tb=line",
             "-W", "ignore::pytest.PytestAssertRewriteWarning")  # fmt: skip
RED = (1, 2)  # pytest's exit codes for tests that fail and for files that cannot be imported


def import_heavy() -> None:
    """Import what takes long and is not the project's."""
    for name in _HEAVY:
        importlib.import_module(name)


def fresh_copy(number: int) -> Path:
    """A copy of everything that git tracks or would, with compiled files so that no process compiles them again."""
    tree = WORK / f"tree{number}"
    shutil.rmtree(tree, ignore_errors=True)
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    subprocess.run([sys.executable, "-m", "compileall", "-q", "compressor"], cwd=tree, check=True)
    return tree


@dataclass
class Job:
    """Something to do in a process of its own, within so many seconds of the processor."""

    name: str
    work: Callable[[Path], int]  # given the copy to work on; returns the exit code
    cpu: float
    path: str = ""  # of the file to change in the copy, and its text there
    text: str = ""
    code: int | None = None  # None: it took too long, or died
    seconds: float = 0.0


def run(jobs: Iterable[Job], workers: int) -> Iterator[Job]:
    """Do them, so many at a time, each on a copy of its own; they come back in the order in which they end.

    What still runs when the caller stops, or is ended by a signal that Python handles, is ended too.
    """
    trees = [fresh_copy(number) for number in range(workers)]
    running: dict[int, tuple[Job, Path, float]] = {}
    waiting = iter(jobs)
    try:
        while True:
            while trees and (job := next(waiting, None)) is not None:
                tree = trees.pop()
                running[_forked(job, tree)] = job, tree, time.monotonic()
            if not running:
                return
            time.sleep(0.02)
            for pid, (job, tree, began) in list(running.items()):
                ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
                if ended or time.monotonic() - began > 20 * job.cpu:
                    del running[pid]
                    _reaped(pid, job)
                    if job.path:
                        _write(tree, job.path, (ROOT / job.path).read_text())
                    trees.append(tree)
                    yield job
    finally:
        for pid, (job, _, _) in running.items():
            _reaped(pid, job)


def _reaped(pid: int, job: Job) -> None:
    """End a process with whatever it has started, and note how it ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    job.code, job.seconds = code if code >= 0 else None, usage.ru_utime + usage.ru_stime


def _write(tree: Path, path: str, text: str) -> None:
    """Change a file of the copy; what was compiled of it goes, since files are compared by second and size."""
    (tree / path).write_text(text)
    for compiled in (tree / path).parent.glob(f"__pycache__/{Path(path).stem}.*.pyc"):
        compiled.unlink()


def _forked(job: Job, tree: Path) -> int:
    if job.path:
        _write(tree, job.path, job.text)
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setsid()
        os.chdir(tree)
        sys.path[:] = [str(tree), *(entry for entry in sys.path if entry not in ("", str(ROOT)))]
        os.environ["PYTHONPATH"] = str(tree)
        sys.dont_write_bytecode = True
        resource.setrlimit(resource.RLIMIT_CPU, (int(job.cpu) + 1, int(job.cpu) + 2))
        log = os.open(WORK / f"{tree.name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = job.work(tree)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class _Red:
    """A pytest plugin: the first test, or file of tests, that is not green; after so many seconds no more are run."""

    def __init__(self, seconds: float) -> None:
        self.by = ""
        self.seconds = seconds

    def pytest_runtest_setup(self) -> None:
        if time.process_time() > self.seconds:
            pytest.skip("the time is over")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.by = self.by or (report.nodeid if report.failed else "")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.by = self.by or (report.nodeid if report.failed else "")


def testing(tests: list[str], told: Path, seconds: float = float("inf")) -> Callable[[Path], int]:
    """Run these tests, at most so long, until one is red, whose name is then in the file `told`.

    With a limit file by file, so that nothing is spent on reading files whose turn does not come.
    """

    def work(_: Path) -> int:
        red = _Red(seconds)
        told.unlink(missing_ok=True)
        parts, code = [[test] for test in tests] if seconds < float("inf") else [tests], 0
        while parts and code == 0 and time.process_time() < seconds:
            part = parts.pop(0)
            code = int(pytest.main([*ARGUMENTS, "-x", *part], plugins=[red]))
            if code == pytest.ExitCode.USAGE_ERROR:  # the fault has changed the tests' names
                files = list(dict.fromkeys(test.partition("::")[0] for test in part))
                code = int(pytest.main([*ARGUMENTS, "-x", *files], plugins=[red]))
            if code == pytest.ExitCode.NO_TESTS_COLLECTED:
                code = 0
        told.write_text(red.by)
        return code

    return work
