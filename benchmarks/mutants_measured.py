"""What every test runs of the project, by function and line, and so which tests could notice a fault.

Lines are counted from the first of their function's body, so that the measurement outlives changes elsewhere in a file;
of a function that has changed since, all lines count.
"""

import ast
import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import coverage
import pytest

from benchmarks.mutants_run import ARGUMENTS, ROOT, WORK, Job, run

_RARELY = ("tests/cli/", "tests/faults/", "tests/test_")  # run last: they hold whole commands

Ran = dict[str, dict[str, int]]  # file -> function -> lines that ran, as bits, from the first line of its body


@dataclass
class Function:
    """A function's body: lines `first` to `last`, and a number of its text."""

    name: str
    first: int
    last: int
    sha: str


def functions(source: str) -> list[Function]:
    """Every function of a file, inner ones after the ones around them."""
    found, lines = [], source.splitlines()

    def visit(node: ast.AST, outer: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = outer
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{outer}.{child.name}"
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                first, last = child.body[0].lineno, child.end_lineno or 0
                sha = hashlib.sha256("\n".join(lines[first - 1 : last]).encode()).hexdigest()[:12]
                found.append(Function(name, first, last, sha))
            visit(child, name)

    visit(ast.parse(source), "")
    return found


def function_at(known: list[Function], line: int) -> Function | None:
    """The innermost function whose body has this line."""
    around = [each for each in known if each.first <= line <= each.last]
    return around[-1] if around else None


@dataclass
class Measured:
    """One test file: seconds of each test, what it runs, and the functions as they were."""

    sha: str
    seconds: dict[str, float] = field(default_factory=dict)
    ran: dict[str, Ran] = field(default_factory=dict)
    shas: dict[str, dict[str, str]] = field(default_factory=dict)


class _Contexts:
    """A pytest plugin that tells coverage which test or shared fixture runs, and times the tests."""

    def __init__(self, watching: coverage.Coverage) -> None:
        self.watching = watching
        self.seconds: dict[str, float] = {}
        self.fixtures: dict[str, list[str]] = {}
        self.failed: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.watching.switch_context(item.nodeid)
        self.fixtures[item.nodeid] = list(getattr(item, "fixturenames", ()))
        began = time.process_time()
        result = yield
        self.seconds[item.nodeid] = round(time.process_time() - began, 3)
        self.watching.switch_context("")
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Iterator[Any]:
        if fixturedef.scope == "function":
            return (yield)
        self.watching.switch_context(f"fixture {fixturedef.argname}")
        result = yield
        self.watching.switch_context(request._pyfuncitem.nodeid)
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome != "passed":
            self.failed.add(report.nodeid)


def measuring(test: str, rooms: tuple[str, ...], out: Path) -> Job:
    """Run one test file under coverage and keep what it ran of these rooms; tests that fail or are skipped are left."""

    def work(tree: Path) -> int:
        watching = coverage.Coverage(data_file=None, include=[f"{tree}/{room}/*" for room in rooms], config_file=False)
        watching.start()
        watch = _Contexts(watching)
        code = int(pytest.main([*ARGUMENTS, test], plugins=[watch]))
        watching.stop()
        found = Measured(_sha(tree / test))
        by_context: dict[str, Ran] = {}
        data = watching.get_data()
        for file in data.measured_files():
            path = Path(file).relative_to(tree).as_posix()
            known = functions((tree / path).read_text())
            found.shas[path] = {each.name: each.sha for each in known}
            for line, contexts in data.contexts_by_lineno(file).items():
                here = function_at(known, line)
                for context in contexts if here is not None else ():
                    ran = by_context.setdefault(context, {}).setdefault(path, {})
                    ran[here.name] = ran.get(here.name, 0) | 1 << (line - here.first)
        for name, seconds in watch.seconds.items():
            if name not in watch.failed:
                found.seconds[name] = seconds
                contexts = [name, *(f"fixture {each}" for each in watch.fixtures[name])]
                found.ran[name] = _merged(by_context.get(each, {}) for each in contexts)
        out.write_text(json.dumps(vars(found)))
        return 0 if code in (0, 5) else code

    return Job(test, work, cpu=1800)


def _merged(several: Iterable[Ran]) -> Ran:
    whole: Ran = {}
    for one in several:
        for path, ran in one.items():
            here = whole.setdefault(path, {})
            for name, bits in ran.items():
                here[name] = here.get(name, 0) | bits
    return whole


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def measured(rooms: tuple[str, ...], workers: int, again: bool, folders: list[str] | None = None) -> list[Measured]:
    """What every test file runs of these rooms; files that are new or have changed since are measured now.

    Of `folders` alone, where given; of the other files what is known already.
    """
    kept = WORK / "measured"
    kept.mkdir(parents=True, exist_ok=True)
    outs: dict[str, Path] = {}
    jobs = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        name = path.relative_to(ROOT).as_posix()
        out = outs[name] = kept / f"{name.replace('/', '+')}.json"
        stale = again or not out.exists() or json.loads(out.read_text())["sha"] != _sha(path)
        if stale and (folders is None or name.startswith(tuple(folders))):
            jobs.append(measuring(name, rooms, out))
    for number, job in enumerate(run(jobs, workers), 1):
        red = "" if job.code == 0 else ", RED"
        print(f"{number}/{len(jobs)} measured: {job.name}, {job.seconds:.0f} s{red}", flush=True)
    return [Measured(**json.loads(out.read_text())) for out in outs.values() if out.exists()]


def choose_tests(path: str, source: str, lines: tuple[int, int], known: list[Measured], budget: float) -> list[str]:
    """The tests that run these lines: of the same name first, then of the same room, each time the fastest first.

    So many seconds of them. Of lines that run when the file is imported: those of the room, and all that use the file.
    """
    here = function_at(functions(source), lines[0])
    mirror, room = _mirror(path), str(Path(_mirror(path)).parent)
    found: list[tuple[int, float, str]] = []
    for one in known:
        for test, ran in one.ran.items():
            rank = (
                0 if test.startswith(mirror) else 1 if test.startswith(room) else 3 if test.startswith(_RARELY) else 2
            )
            if here is None:
                reached = path in ran or rank < 2
            else:
                bits = ran.get(path, {}).get(here.name, 0)
                same = one.shas.get(path, {}).get(here.name) == here.sha
                wanted = (1 << (lines[1] - lines[0] + 1)) - 1 << (lines[0] - here.first)
                reached = bool(bits & wanted if same else bits)
            if reached:
                found.append((rank, one.seconds[test], test))
    chosen: list[str] = []
    spent = 0.0
    for _, seconds, test in sorted(found):
        spent += seconds
        if chosen and spent > budget:
            break
        chosen.append(test)
    return chosen


def near_tests(path: str) -> list[str]:
    """Without a measurement: the file of tests of the same name, those that name the module, and its room's others."""
    mirror, module = _mirror(path), path.removesuffix(".py").replace("/", ".")
    room = (ROOT / mirror).parent

    def rank(test: Path) -> tuple[int, int]:
        text = test.read_text()
        about = test.parent == room and f"{Path(mirror).stem}_".startswith(f"{test.stem}_")  # test_rules of rules_parts
        return 0 if test.as_posix().endswith(mirror) else 1 if about else 2 if module in text else 3, len(text)

    known = [test for test in (ROOT / "tests").rglob("test_*.py") if not test.is_relative_to(ROOT / "tests/faults")]
    near = [test for test in known if test.parent == room or rank(test)[0] < 3]
    return [test.relative_to(ROOT).as_posix() for test in sorted(near, key=rank)]


def _mirror(path: str) -> str:
    """The file of tests of the same name."""
    inside = Path(path).relative_to("compressor")
    return (Path("tests") / inside.parent / f"test_{inside.stem}.py").as_posix()


def lines_of(source: str, start: int, end: int) -> tuple[int, int]:
    """First and last line of the innermost statement, or header of one, around these characters."""
    first, last = source.count("\n", 0, start) + 1, source.count("\n", 0, end) + 1
    best = first, last
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt) and node.lineno <= first and last <= (node.end_lineno or 0):
            inner = [child.lineno for child in ast.walk(node) if isinstance(child, ast.stmt) and child is not node]
            header = min(inner, default=(node.end_lineno or 0) + 1) - 1
            best = (node.lineno, header) if last <= header else best
    return best
