"""Give every file of the corpus to the command line, one after another in one process, and write down what happened.

`python -m tests.faults.attack FOLDER [NAME ...]` prints one JSON object: case -> what it did. A file that ends the
process, or keeps it for a minute, is written down by the process above, which has another go on with the next file.
"""

import gc
import json
import os
import resource
import select
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from compressor.cli import main as run
from compressor.files.limits import apart
from tests.commands import once
from tests.faults.corpus import CASES, Case, write

_PATIENCE = 60.0  # seconds after which a file counts as one that never ends
_NEVER = 8 << 30  # bytes of address space above which the machine is protected from the attack


def main(folder: Path, names: list[str]) -> dict[str, Any]:
    """Make the corpus and attack with it."""
    for each in ("files", "canaries", "home"):
        (folder / each).mkdir(parents=True)
    write(folder / "files", folder / "canaries")
    os.environ.update(HOME=str(folder / "home"), XDG_STATE_HOME=str(folder / "home"), TMPDIR=str(folder / "home"))
    apart(Path(), "os:getpid")  # starts the server that looks at ONNX files
    once()
    gc.collect()
    gc.freeze()  # or every collection while a file is read looks through all of torch
    left = {case.name: case for case in CASES.values() if not names or case.name in names}
    results: dict[str, Any] = {}
    while left:
        for name, result in _worked_through(left, folder).items():
            results[name] = result
            del left[name]
    return results


def _worked_through(cases: dict[str, Case], folder: Path) -> dict[str, Any]:
    """What the first files did, up to one that ended the process; at least one."""
    ours, its = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        _work_through(cases, folder, its)
    os.close(its)
    told = b""
    while select.select([ours], [], [], _PATIENCE)[0] and (more := os.read(ours, 1 << 16)):
        told += more
    os.close(ours)
    results = dict(json.loads(line) for line in told.splitlines() if line.endswith(b"]"))
    if len(results) < len(cases):
        os.kill(child, 9)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if len(results) < len(cases):
        ended = next(name for name in cases if name not in results)
        results[ended] = {"code": code, "seconds": _PATIENCE, "bytes": 0, "said": "", "written": []}
    return results


def _work_through(cases: dict[str, Case], folder: Path, told: int) -> NoReturn:
    """Run one command line after another as this process, and tell what each did."""
    os.chdir(folder / "home")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _NEVER, used + _NEVER))
    before = _listing(folder)
    for case in cases.values():
        said = os.open(folder / "said", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(said, stream)
        began = _seconds()
        Path("/proc/self/clear_refs").write_text("5")  # forget the most memory that was used so far
        code = _code([str(folder / "files" / case.file) if word == "FILE" else word for word in case.command])
        seconds, now = _seconds() - began, _listing(folder)
        text = (folder / "said").read_text(errors="replace")
        what = {"code": code, "seconds": seconds, "bytes": _peak(), "said": text, "written": sorted(now - before)}
        os.write(told, json.dumps([case.name, what]).encode() + b"\n")
        os.close(said)
        before = now
    os._exit(0)


def _code(command: list[str]) -> int:
    """The exit code of a command line; 70 for an exception that nobody caught, a bug."""
    try:
        run(command)
    except SystemExit as done:
        return int(done.code or 0)
    except BaseException:
        traceback.print_exc()
        return 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _seconds() -> float:
    """Of the processor, also by processes that were started: the machine may be busy with other tests."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _peak() -> int:
    """The most memory in use, of this process for the file at hand, or of one that was started."""
    own = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return max(int(own.split()[1]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * 1024


def _listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != "said"}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2:]), indent=1))
