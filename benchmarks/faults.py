"""Run the tests of faults and write down what came of each: `python -m benchmarks.faults`.

Takes some minutes of one core: the kills of every kind of run are among them. Writes benchmarks/results/faults.json,
from which `python -m benchmarks.readme` makes a table of docs/results.md. A row's outcome is what its tests hold, and
it is shown only where all of them passed.
"""

import argparse
import json
import platform
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from compressor.report.environment import versions
from tests.faults.corpus import CASES
from tests.faults.runs import RUNS
from tests.faults.test_fuzz import QUICK
from tests.faults.test_fuzz_graphs import QUICK as QUICK_GRAPHS
from tests.faults.test_kills import moments_of

RESULT = Path(__file__).parent / "results" / "faults.json"


@dataclass(frozen=True)
class Fault:
    """A fault, what the tool makes of it, and the tests that hold it (node ids, or their beginnings)."""

    name: str
    outcome: str
    tests: tuple[str, ...]


_KILLS = sum(len(moments_of(name)) for name in RUNS)
_BAD = "tests/faults/test_bad_times.py"
_GUARDS = "tests/faults/test_resume_guards.py"
_RESUME = "tests/training/test_resume.py"
_FOLDERS = "tests/training/test_folders.py"

FAULTS = (
    Fault(
        f"SIGKILL at {_KILLS} moments of {len(RUNS)} kinds of run: random, in a checkpoint's writing, in an edit",
        "resumed, the same weights bit for bit and the same report",
        ("tests/faults/test_kills.py",),
    ),
    Fault(
        "SIGINT, SIGTERM, Ctrl-C that reaches the workers, a second SIGINT",
        "step finished, checkpoint written, how to go on is said, exit 130 or 143; the second stops at once",
        (
            f"{_BAD}::test_signal",
            f"{_RESUME}::test_signal",
            f"{_RESUME}::test_ctrl_c",
            "tests/training/test_interrupt.py",
        ),
    ),
    Fault(
        "checkpoint cut off, overwritten or hostile",
        "the one before it is used, with a note; without one, one line",
        (f"{_RESUME}::test_damaged_checkpoint", f"{_GUARDS}::test_hostile_checkpoint"),
    ),
    Fault(
        "disk full, folder that cannot be written",
        "one line, last checkpoint whole, nothing half-written",
        (f"{_BAD}::test_full_disk", f"{_BAD}::test_small_disk", f"{_BAD}::test_metrics", f"{_BAD}::test_folder_under"),
    ),
    Fault(
        "data gone half-way, reading worker killed",
        "one line; goes on when the data are back",
        (f"{_BAD}::test_data_gone", f"{_FOLDERS}::test_set_that_vanishes", f"{_FOLDERS}::test_killed_worker"),
    ),
    Fault(
        "loss or weights no longer finite",
        "stopped with step, learning rate and advice; `--on-nan rollback` goes back, so many times",
        (f"{_BAD}::test_numbers_that_go_bad", f"{_BAD}::test_rollback"),
    ),
    Fault(
        "plan that costs more than `--undo-drop`",
        "undone and reported",
        ("tests/runs/test_adapnet.py::test_a_plan_that_costs_too_much_is_undone_and_reported",),
    ),
    Fault(
        "out of memory (injected)",
        "smaller pieces of the same batch, same gradients; said in the report",
        (f"{_BAD}::test_memory_that_runs_out", "tests/training/test_loop.py::test_short_memory"),
    ),
    Fault(
        f"{len(CASES)} hostile and broken model files, {3 * QUICK + QUICK_GRAPHS} random ones",
        "one line, exit 1 or 2, below 10 s and 2 GiB; no code run, nothing written",
        ("tests/faults/test_hostile_files.py", "tests/faults/test_globals.py",
         "tests/faults/test_fuzz.py::test_damaged_file",
         "tests/faults/test_fuzz.py::test_any", "tests/faults/test_fuzz_graphs.py::test_any"),
    ),
    Fault(
        "run folder from a stranger: code, trust, settings, another model",
        "nothing of it is run; asks for `--arch` or `--trust` again",
        (
            f"{_GUARDS}::test_architecture",
            f"{_GUARDS}::test_trust",
            f"{_GUARDS}::test_model_that",
            f"{_GUARDS}::test_settings",
        ),
    ),
    Fault(
        "images that are cut off, no images, bombs, 16-bit, transparent, rotated; empty classes",
        "read right, or left out and named in the report; `--bad-images stop` stops",
        ("tests/training/test_decoding.py", f"{_FOLDERS}::test_bad_image", f"{_FOLDERS}::test_empty_class"),
    ),
    Fault(
        "two runs in one folder; a run folder that was moved",
        "the second is refused; resumed where it lies now",
        (f"{_GUARDS}::test_second_run", "tests/runs/test_resume.py::test_a_run_that_was_broken_off"),
    ),
    Fault(
        "the same command twice",
        "the same report but for times",
        (f"{_BAD}::test_same_command",),
    ),
)  # fmt: skip


class Outcomes:
    """A pytest plugin that keeps how every test ended."""

    def __init__(self) -> None:
        self.of: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.of[report.nodeid] = report.outcome


def main() -> None:
    """Run them all, or again those whose name holds a word; write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORD", help="of the rows' names; the others stay as they are")
    only = parser.parse_args().only
    faults = [fault for fault in FAULTS if only in fault.name]
    before = {row["fault"]: row for row in json.loads(RESULT.read_text())["rows"]} if only else {}
    found = Outcomes()
    files = sorted({test.partition("::")[0] for fault in faults for test in fault.tests})
    pytest.main(
        [
            "-q",
            "-W",
            "ignore::pytest.PytestAssertRewriteWarning",
            "--deselect",
            "tests/faults/test_fuzz.py::test_many",
            *files,
        ],
        plugins=[found],
    )
    rows: list[dict[str, Any]] = []
    for fault in FAULTS:
        if fault not in faults:
            rows.append(before[fault.name])
            continue
        for test in fault.tests:
            assert any(node.startswith(test) for node in found.of), f"there is no test {test}"
        counts = Counter(outcome for node, outcome in found.of.items() if node.startswith(fault.tests))
        rows.append({"fault": fault.name, "outcome": fault.outcome, "tests": dict(counts)})
        print(fault.name, dict(counts))
    machine = f"{platform.system()}, {platform.machine()}, Python {platform.python_version()}"
    content = {"command": "python -m benchmarks.faults", "machine": machine, "versions": versions(), "rows": rows}
    RESULT.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
