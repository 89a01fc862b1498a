"""Plant faults in the code and see which ones the fast tests notice: `python -m benchmarks.mutants`.

Faults of three kinds: known ones that no test once saw, ones that a careless change would make, and 200 drawn from the
rooms that compute (comparisons flipped, constants moved, calls dropped, arguments swapped, terms dropped, conditions
negated, and/or, min/max). Each is put into a copy of the project, and the tests that run the line are run until one is
red. Which ones these are is measured first, which takes as long as the tests; both go on where they were broken off.

    python -m benchmarks.mutants --only 20        # the first faults that have no result yet
    python -m benchmarks.mutants --again          # try once more what no test noticed and is not harmless
    python -m benchmarks.mutants --near --seconds 30 --file compressor/routing   # by file names, nothing is measured

The table is in docs/results.md; survivors stand in the result file, with the reason why they are harmless,
where one is.
"""

import argparse
import importlib.metadata
import json
import platform
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.mutants_drawn import Mutant, draw
from benchmarks.mutants_measured import choose_tests, lines_of, measured, near_tests
from benchmarks.mutants_recorded import HARMLESS, KNOWN, OWN
from benchmarks.mutants_run import RED, ROOT, WORK, Job, import_heavy, run, testing

RESULT = ROOT / "benchmarks" / "results" / "mutants.json"
ROOMS = tuple(f"compressor/{room}" for room in ("graph", "surgery", "pruning/adapnet", "routing", "exits", "primenet"))
WATCHED = (*ROOMS, "compressor/profiling", "compressor/training")  # where recorded faults are, too
_PATIENCE = 4  # times what the tests took, before they count as hanging


def recorded() -> Iterator[tuple[str, Mutant]]:
    """The faults that are put in by name; the script ends where a text is not found, or is there twice."""
    named = [(kind, fault) for kind, faults in (("known", KNOWN), ("careless", OWN)) for fault in faults]
    sources = {fault.path: (ROOT / "compressor" / fault.path).read_text() for _, fault in named}
    lost = [f"{fault.path}: {fault.old}" for _, fault in named if sources[fault.path].count(fault.old) != 1]
    if lost:
        sys.exit("\n".join(("not there once, adapt benchmarks/mutants_recorded.py:", *lost)))
    for kind, fault in named:
        start = sources[fault.path].index(fault.old)
        end = start + len(fault.old)
        yield kind, Mutant(f"compressor/{fault.path}", start, end, fault.old, fault.new, "recorded")


def planned(number: int, seed: int) -> list[tuple[str, Mutant]]:
    """All faults, with their kind."""
    files = (path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    return [*recorded(), *(("drawn", mutant) for mutant in draw(files, ROOT, number, seed))]


def row_of(kind: str, mutant: Mutant) -> dict[str, Any]:
    """A fault as the result file tells it, before it was tried."""
    source = (ROOT / mutant.path).read_text()
    first, last = source.rfind("\n", 0, mutant.start) + 1, source.find("\n", mutant.end)
    before, after = source[first:last], source[first : mutant.start] + mutant.new + source[mutant.end : last]
    row = {
        "kind": kind,
        "operator": mutant.operator,
        "file": mutant.path,
        "line": source.count("\n", 0, mutant.start) + 1,
    }
    row |= {"before": before.strip(), "after": after.strip(), "key": f"{kind} {mutant.key(source)}"}
    harmless = HARMLESS.get((mutant.path.removeprefix("compressor/"), after.strip()))
    return row | ({"harmless": harmless} if harmless else {})


def main() -> None:
    """Try what has not been tried, write every result as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drawn", type=int, default=200, help="faults that are drawn")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing")
    parser.add_argument("--only", type=int, help="try at most so many now")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time")
    parser.add_argument("--seconds", type=float, default=60.0, help="of tests for one fault; more count as not noticed")
    parser.add_argument("--again", action="store_true", help="try the unnoticed once more, but the harmless")
    parser.add_argument("--measure", action="store_true", help="measure anew what every test runs")
    parser.add_argument("--room", action="append", help="measure these folders of tests only, and go by what is known")
    parser.add_argument("--near", action="store_true", help="measure nothing: run tests of the same names and room")
    parser.add_argument("--file", action="append", default=[], help="faults in these files and folders only")
    given = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # with what has been started
    import_heavy()
    known = [] if given.near else measured(WATCHED, given.workers, given.measure, given.room)
    kept = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    held = {row["key"]: row for row in kept}  # what is tried again is kept until it has been
    done = {key for key, row in held.items() if row["noticed"] or "harmless" in row or not given.again}
    rows: dict[str, dict[str, Any]] = {}
    jobs = []
    for kind, mutant in planned(given.drawn, given.seed):
        row = row_of(kind, mutant)
        rows[row["key"]] = (held[row["key"]] | row) if row["key"] in held else row
        wanted = mutant.path.startswith(tuple(given.file) or "")
        if row["key"] not in done and wanted and (given.only is None or len(jobs) < given.only):
            jobs.append((_near if given.near else partial(_job, known=known))(mutant, row, seconds=given.seconds))
    for number, job in enumerate(run(jobs, given.workers), 1):
        row = rows[job.name]
        row |= _outcome(job)
        said = row["by"] or "SURVIVES"
        print(
            f"{number}/{len(jobs)} {row['file']}:{row['line']} {row['after']} | {said} {job.seconds:.0f} s", flush=True
        )
        _write(rows, given.seed, given.near)
    _write(rows, given.seed, given.near)
    print(summary([row for row in rows.values() if "noticed" in row]))


def _near(mutant: Mutant, row: dict[str, Any], seconds: float) -> Job:
    source, tests = (ROOT / mutant.path).read_text(), near_tests(mutant.path)
    row["tests"] = f"up to {seconds:g} s of {len(tests)} files"
    job = Job(row["key"], testing(tests, _told(row["key"]), seconds), _PATIENCE * seconds, mutant.path)
    return replace(job, text=source[: mutant.start] + mutant.new + source[mutant.end :])


def _job(mutant: Mutant, row: dict[str, Any], known: list[Any], seconds: float) -> Job:
    source = (ROOT / mutant.path).read_text()
    tests = choose_tests(mutant.path, source, lines_of(source, mutant.start, mutant.end), known, seconds)
    row["tests"] = len(tests)
    took = {test: one.seconds[test] for one in known for test in one.seconds}
    job = Job(row["key"], testing(tests, _told(row["key"])), 30 + _PATIENCE * sum(took[test] for test in tests))
    job = replace(job, path=mutant.path, text=source[: mutant.start] + mutant.new + source[mutant.end :])
    return job if tests else replace(job, work=lambda _: 0)


def _told(key: str) -> Path:
    return WORK / f"{key.rpartition(' ')[2]}.red"


def _outcome(job: Job) -> dict[str, Any]:
    told = _told(job.name)
    by = told.read_text() if told.exists() else ""
    told.unlink(missing_ok=True)
    if job.code in RED:
        return {"noticed": True, "by": by, "seconds": round(job.seconds, 1)}
    ended = None if job.code == 0 else "hangs or ends the process"
    return {"noticed": job.code != 0, "by": ended, "seconds": round(job.seconds, 1)}


def _write(rows: dict[str, dict[str, Any]], seed: int, near: bool) -> None:
    machine = f"{platform.system()}, {platform.machine()}, Python {platform.python_version()}"
    versions = {name: importlib.metadata.version(name) for name in ("torch", "pytest", "coverage")}
    done = [row for row in rows.values() if "noticed" in row]
    command = "python -m benchmarks.mutants" + " --near" * near
    content = {"command": command, "machine": machine, "versions": versions, "seed": seed}
    RESULT.write_text(json.dumps(content | {"planned": len(rows), "rows": done}, indent=1) + "\n")


def summary(rows: list[dict[str, Any]]) -> str:
    """How many of each kind were noticed, a line each."""
    lines = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        mine = [row for row in rows if row["kind"] == kind]
        lines.append(f"{kind}: {sum(row['noticed'] for row in mine)} of {len(mine)} noticed")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
