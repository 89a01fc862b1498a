"""A process that has imported what looks at files, and forks one for each: importing ONNX Runtime takes half a second.

It lives until the process that started it, and all that were forked from that one, are gone.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_ARENA_MAX"), "1")
_HEAVY = ("onnx", "onnxruntime")
_PLACE = "socket"
_started = threading.Lock()
_place: str | None = None
_process: subprocess.Popen[bytes] | None = None


def asked(request: str) -> tuple[int, str, str]:
    """The exit code of a forked process that answers a request of `limits.apart`, its answer and its stderr."""
    with socket.socket(socket.AF_UNIX) as ours:
        try:
            ours.connect(_server())
        except OSError:  # it was killed
            stop()
            ours.connect(_server())
        ours.sendall(request.encode())
        ours.shutdown(socket.SHUT_WR)
        with ours.makefile("rb") as answer:
            code, answered, said = json.load(answer)
    return code, answered, said


def fresh(code: str) -> list[str]:
    """The command that runs code in a new interpreter, with this one's modules and nothing of the folder's."""
    root = str(Path(__file__).parents[1])
    return [sys.executable, "-I", "-c", f"import sys; sys.path[:0] = {[root, *filter(None, sys.path)]!r}; {code}"]


def stop() -> None:
    """End the server; the next request starts another one."""
    global _place, _process
    atexit.unregister(stop)
    with _started:
        if _process is not None:
            with _process:
                pass  # closes its pipes and waits for it
        _place = _process = None


def _server() -> str:
    """Where the server listens, which is started where there is none."""
    global _place, _process
    with _started:
        if _place is None:
            _place = tempfile.mkdtemp(prefix="compressor-")
            command = fresh(f"from compressor.files import forks, limits; forks.preside({_place!r}, limits.serve)")
            environment = {**os.environ, **ONE_THREAD}
            _process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            assert _process.stdout is not None
            _process.stdout.read()  # until it listens
            atexit.register(stop)
        return str(Path(_place, _PLACE))


def preside(folder: str, serve: Callable[[str, int], NoReturn]) -> NoReturn:
    """Be the server: fork a process for every request, which `serve` answers to an open file, until stdin is closed.

    The folder with its socket goes then. What a request calls is imported here, once for all that follow.
    """
    for name in _HEAVY:
        importlib.import_module(name)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(Path(folder, _PLACE)))
        listener.listen()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # tells that it listens
        while sys.stdin not in select.select([sys.stdin, listener], [], [])[0]:
            connection, _ = listener.accept()
            with connection.makefile("rb") as sent:
                request = sent.read().decode()
            importlib.import_module(json.loads(request)["function"].partition(":")[0])
            if os.fork() == 0:
                listener.close()
                _attend(connection, partial(serve, request))
            connection.close()
            while _ended():
                pass
    shutil.rmtree(folder)
    os._exit(0)


def _ended() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] > 0
    except ChildProcessError:
        return False


def _attend(connection: socket.socket, serve: Callable[[int], NoReturn]) -> NoReturn:
    """Fork once more, a process with limits, and send what became of it."""
    ours, answers = os.pipe()
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 2)
            serve(answers)
        os.close(answers)
        with os.fdopen(ours) as answer:
            answered = answer.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        outcome = [code, answered, said.read().decode(errors="replace")]
    connection.sendall(json.dumps(outcome).encode())
    os._exit(0)
