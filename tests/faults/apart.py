"""Try a hostile file in a process of its own, forked from one that has imported everything: a crash is a finding."""

import gc
import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from compressor.errors import CompressorError

SECONDS, BYTES = 10.0, 2 << 30  # what a file may cost
_NEVER = 8 << 30  # bytes of address space above which the machine is protected from the file
_PATIENCE = 60.0


@dataclass(frozen=True)
class Outcome:
    """What became of it: `said` is one line of a refusal, "" where the file opened, a traceback where neither."""

    fine: bool
    said: str
    seconds: float  # of the processor
    bytes: int


def apart(work: Callable[[], object]) -> Outcome:
    """Run `work`, which may raise a CompressorError and nothing else."""
    ours, its = os.pipe()
    gc.freeze()  # a collection in the child would copy every page
    child = os.fork()
    if child == 0:
        os.close(ours)
        _run(work, its)
    os.close(its)
    began = time.monotonic()
    said = b""
    os.set_blocking(ours, False)
    while (waited := os.wait4(child, os.WNOHANG))[0] == 0:
        said += _read(ours)
        if time.monotonic() - began > _PATIENCE:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.001)
    said += _read(ours)
    os.close(ours)
    _, status, usage = waited
    code = os.waitstatus_to_exitcode(status)
    text = said.decode(errors="replace") if code in (0, 1) else f"ended with {code}: {said.decode(errors='replace')}"
    return Outcome(code == 0, text, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def _read(pipe: int) -> bytes:
    try:
        return os.read(pipe, 1 << 16)
    except BlockingIOError:
        return b""


def _run(work: Callable[[], object], pipe: int) -> None:
    """Be the child: 0 for a result or a refusal in one line, 1 for anything else, with what was said."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _NEVER, used + _NEVER))
    code, text = 1, ""
    try:
        try:
            work()
            code = 0
        except CompressorError as error:
            text = str(error)
            code = int("\n" in text or len(text) > 2000 or not text.isprintable())
    except BaseException:
        import traceback

        text = traceback.format_exc()
    os.write(pipe, text.encode()[-60_000:])
    os._exit(code)


def check(outcome: Outcome) -> None:
    """The property: a result, or one line for the user, in little time and memory."""
    assert outcome.fine, outcome.said
    assert outcome.seconds < SECONDS
    assert outcome.bytes < BYTES
