"""Give every file of the corpus to the command line, each in a process of its own, and write down what happened.

`python -m tests.faults.attack FOLDER [NAME ...]` prints one JSON object: case -> what it did. The processes are forked
from one that has imported everything, so that a file takes a fraction of a second.
"""

import gc
import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from compressor.limits import apart
from tests.faults.corpus import CASES, Case, write

_PATIENCE = 60.0  # seconds after which a file counts as one that never ends
_EVERYTHING = (
    "compressor.cli.app",
    "compressor.pipeline.evaluate",
    "compressor.pipeline.profile",
    "compressor.reporting.tables",
    "compressor.subnets.detachable",
    "compressor.subnets.nested",
    "onnx",
    "onnxruntime",
    "timm",  # after torchvision, which has one door
)
_NEVER = 8 << 30  # bytes of address space above which the machine is protected from the attack


def main(folder: Path, names: list[str]) -> dict[str, Any]:
    """Make the corpus and attack with it."""
    files, canaries, home = folder / "files", folder / "canaries", folder / "home"
    for each in (files, canaries, home):
        each.mkdir(parents=True)
    write(files, canaries)
    os.environ.update(HOME=str(home), XDG_STATE_HOME=str(home), TMPDIR=str(home))
    _warm_up()
    before = _listing(folder)
    results = {}
    for case in CASES.values():
        if not names or case.name in names:
            results[case.name] = _attack(case, files, home)
            results[case.name]["written"] = sorted(_listing(folder) - before)
            before = _listing(folder)
    return results


def _warm_up() -> None:
    """Import all that a command needs, so that the children have it, and start the server that looks at ONNX files."""
    for name in _EVERYTHING:
        importlib.import_module(name)
    apart(Path(), "os:getpid")


def _listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.name.endswith(".said")}


def _attack(case: Case, files: Path, home: Path) -> dict[str, Any]:
    said = files / f"{case.name}.said"
    command = [str(files / case.file) if word == "FILE" else word for word in case.command]
    began = time.monotonic()
    gc.freeze()  # a collection in the child would copy every page
    child = os.fork()
    if child == 0:
        _be_the_command(command, said, home)
    while (waited := os.wait4(child, os.WNOHANG))[0] == 0:
        if time.monotonic() - began > _PATIENCE:
            os.kill(child, 9)
        time.sleep(0.002)
    _, status, usage = waited
    return {
        "code": os.waitstatus_to_exitcode(status),
        "seconds": round(usage.ru_utime + usage.ru_stime, 2),  # the machine may be busy with other tests
        "bytes": usage.ru_maxrss * 1024,
        "said": said.read_text(errors="replace") if said.exists() else "",
    }


def _be_the_command(command: list[str], said: Path, home: Path) -> NoReturn:
    """Run one command line as this process."""
    output = os.open(said, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.chdir(home)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _NEVER, used + _NEVER))
    code = 70  # a bug: any exception that nobody caught
    try:
        from compressor.cli import main as run

        run(command)
    except SystemExit as done:
        code = int(done.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2:]), indent=1))
