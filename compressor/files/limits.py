"""What a file may cost: bytes before it is opened, time and memory while it is looked at in a process of its own.

Nothing heavy is imported, so that settings can take the default.

What looks at files is forked from a process that has imported it already, since importing ONNX Runtime takes half a
second; that one lives until the process that started it, and all that were forked from it, are gone.
"""

import atexit
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from compressor.errors import CompressorError, FileError

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
            command = fresh(f"from compressor.files import limits; limits.preside({_place!r}, limits.serve)")
            environment = {**os.environ, **ONE_THREAD}
            _process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            assert _process.stdout is not None
            _process.stdout.read()  # until it listens
            atexit.register(stop)
        return str(Path(_place, _PLACE))


def preside(folder: str, serve: Callable[[str, int], NoReturn]) -> NoReturn:
    """Be the server: fork a process for every request, which `serve` answers to an open file, until stdin is closed.

    The folder with its socket goes then. What a request calls is imported here, once for all that follow. Ctrl-C is
    meant for whoever asks, and for the processes that answer.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
    signal.signal(signal.SIGINT, signal.SIG_DFL)
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


GIB = 1 << 30
LARGEST_GIB = 16.0  # of a model file, as it lies on the disk and unpacked

_SECONDS, _WAITING = 5.0, 3.0  # of the processor; times as much on the clock, where others use the machine too
_MEMORY = GIB  # beside what its libraries have mapped, which is gigabytes where torch is built for CUDA
_OUT_OF_TIME = tuple(getattr(signal, name, None) for name in ("SIGXCPU", "SIGALRM"))


def check_size(what: str, size: int, most_gib: float = LARGEST_GIB) -> None:
    """Raises FileError where `size` bytes are more than `most_gib`; `what` begins the message, "model.pt is"."""
    if size > most_gib * GIB:
        raise FileError(
            f"{what} {size / GIB:,.1f} GiB, and at most {most_gib:g} are opened: give `max_size` {size / GIB + 1:.0f} "
            "if that is right"
        )


def apart(path: Path, function: str, *arguments: Any) -> Any:
    """Call `module:function`, which looks at a file from outside, in a process of its own with limited means.

    Arguments and result are what JSON holds. The function may use 5 seconds of the processor and 1 GiB beside its
    libraries, and more as it allows itself (`allow`) for what a large file needs.

    Raises:
        FileError: the function raised it, or the file made the process run on, fill the memory or crash.
    """
    request = json.dumps({"function": function, "arguments": arguments, "folder": str(Path.cwd())})
    code, answered, said = asked(request) if hasattr(os, "fork") else _alone(request)
    if code == 0:
        answer = json.loads(answered)
        if "refused" in answer:
            raise FileError(answer["refused"])
        return answer["value"]
    if -code in _OUT_OF_TIME:
        raise FileError(f"{path} takes too long to look at: it is damaged, or made to run without end")
    if code in (_NO_MEMORY, -getattr(signal, "SIGKILL", 0)):
        raise FileError(f"{path} takes too much memory to look at: it is damaged, or made to fill the memory")
    if code < 0:
        raise FileError(f"{path} makes ONNX Runtime crash ({signal.Signals(-code).name}): do not use it")
    raise RuntimeError(said)  # a bug of ours, with its traceback


def _alone(request: str) -> tuple[int, str, str]:
    """Answer a request in a fresh process, where the system cannot fork one."""
    done = subprocess.run(
        fresh("from compressor.files import limits; limits.serve(sys.stdin.read(), 1)"),
        input=request,
        capture_output=True,
        text=True,
        env={**os.environ, **ONE_THREAD},
    )
    return done.returncode, done.stdout, done.stderr


_serving = False  # whether this is a process of `apart`
_allowed = 0  # bytes of address space that it may use
_NO_MEMORY = 77  # exit code of a process that may not have more


def serve(request: str, answers: int) -> NoReturn:
    """Be the process of `apart`: one function, its result or refusal to the open file `answers`."""
    global _serving, _allowed
    _serving, _allowed = True, _mapped()
    asked = json.loads(request)
    answers = os.dup(answers)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print is no answer
    os.chdir(asked["folder"])
    allow(_SECONDS, _MEMORY)
    module, _, name = asked["function"].partition(":")
    try:
        try:
            answer = {"value": getattr(importlib.import_module(module), name)(*asked["arguments"])}
        except CompressorError as error:
            if lacks_memory(error):
                raise MemoryError from error
            answer = {"refused": str(error)}
        with os.fdopen(answers, "w") as out:
            json.dump(answer, out)
    except MemoryError:
        os._exit(_NO_MEMORY)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # libraries may wait for threads of theirs


def lacks_memory(error: BaseException) -> bool:
    """Whether an error of torch's, onnx's or ONNX Runtime's says that a device or the machine has no memory left."""
    kinds = {kind.__name__ for kind in type(error).__mro__}  # torch's own, where it is imported
    return not kinds.isdisjoint({"MemoryError", "OutOfMemoryError"}) or any(w in str(error) for w in _NO_MEMORY_LEFT)


_NO_MEMORY_LEFT = (
    *("bad_alloc", "bad allocation", "Failed to allocate"),
    *("can't allocate memory", "not enough memory"),
)


def memory_left() -> int:
    """Bytes that the machine can still give. Raises OSError where the system does not tell."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))


def _mapped() -> int:
    """Bytes of this process's address space; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


@contextmanager
def within_memory() -> Iterator[None]:
    """What asks inside for more memory than the machine has left gets an error, where the system would end the process.

    Where the system does not tell, nothing is limited.
    """
    try:
        import resource

        most = _mapped() + max(memory_left(), GIB)
    except (ImportError, OSError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY or most < soft:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def allow(seconds: float = 0.0, memory: int = 0) -> None:
    """Let a process of `apart` use so many seconds of the processor from now on, and so many bytes more; any other
    process has no limits and gets none."""
    if not _serving:
        return
    try:
        import resource
    except ImportError:  # not on Windows
        return
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    global _allowed
    _allowed += memory
    wanted = {resource.RLIMIT_CPU: int(used + seconds) + 1} if seconds else {}
    for kind, most in {**wanted, resource.RLIMIT_AS: _allowed}.items():
        hard = resource.getrlimit(kind)[1]  # where the caller has limits of its own
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    if seconds:
        signal.setitimer(signal.ITIMER_REAL, _WAITING * seconds)
