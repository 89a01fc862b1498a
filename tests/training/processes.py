"""Several processes on this machine, as torchrun would start them; forked, so that torch need not be imported again."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from compressor.training import distributed

PATIENCE = 120.0  # seconds


def together(work: Callable[..., Any], folder: Path, *arguments: Any, count: int = 2) -> list[Any]:
    """What `work(*arguments)` returns in each of `count` processes; plain data and tensors.

    Raises RuntimeError when one of them fails: its traceback is on stderr.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    paths = [folder / f"process{number}.pt" for number in range(count)]
    processes = [
        context.Process(target=_run, args=(work, arguments, number, count, port, path))
        for number, path in enumerate(paths)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    if any(codes):
        raise RuntimeError(f"exit codes {codes}")
    return [torch.load(path, weights_only=False) for path in paths]


def _run(work: Callable[..., Any], arguments: tuple[Any, ...], number: int, count: int, port: int, out: Path) -> None:
    torch.set_num_threads(1)  # the pool of threads was not forked along
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with distributed.joined():
        torch.save(work(*arguments), out)
    os._exit(0)  # not through the test runner's own end
