"""What would fill the machine's memory gets an error instead, and the process its own limits back."""

import json
import mmap
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.errors import ModelError
from compressor.files.limits import GIB, memory_left, serve, within_memory
from compressor.graph import capture


def filled() -> list[Tensor]:
    """More than there is, in pieces each of which there is room for."""
    return [torch.empty(int(0.7 * memory_left()), dtype=torch.uint8) for _ in range(2)]


def test_memory_that_is_not_there_is_an_error() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    with within_memory(), pytest.raises(RuntimeError, match="allocate memory"):
        filled()
    assert resource.getrlimit(resource.RLIMIT_AS) == before


ASKING = """
import time
from compressor.files import limits
limits._server()
try:
    print("asked", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    limits.stop()
"""


def test_ctrl_c_ends_the_server_without_a_word() -> None:
    command = [sys.executable, "-c", ASKING]
    with subprocess.Popen(command, stdout=-1, stderr=-1, start_new_session=True) as asking:
        assert asking.stdout is not None and asking.stdout.readline() == b"asked\n"
        os.killpg(asking.pid, signal.SIGINT)
        assert asking.communicate(timeout=60)[1] == b"" and asking.returncode == 0


class Filling(nn.Sequential):
    def forward(self, x: Tensor) -> Any:
        x.numpy()  # so that only data do
        return super().forward(x), filled()


def test_a_network_that_fills_the_memory_is_refused_in_one_line() -> None:
    with pytest.raises(ModelError, match="not enough memory for an input of shape 1x3x8x8: give a smaller one"):
        capture(Filling(nn.Conv2d(3, 4, 3)), torch.zeros(1, 3, 8, 8))


class Counting(nn.Module):
    """Counts up to a number that stands in a buffer, which no shape says."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.conv, self.most = nn.Conv2d(3, 4, 3), nn.Buffer(torch.tensor([most]))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + torch.bincount(self.most).sum()


def test_a_value_that_asks_for_all_memory_is_refused_too() -> None:
    assert capture(Counting(3), torch.zeros(1, 3, 8, 8)).frozen
    with pytest.raises(ModelError, match="not enough memory"):
        capture(Counting(int(0.7 * memory_left() / 2)), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(("count", "code"), [(50_000_000, 0), (10**9, 77)])
def test_what_libraries_have_mapped_is_not_what_a_file_costs(count: int, code: int, tmp_path: Path) -> None:
    """A torch that is built for CUDA maps gigabytes as it is imported, and every file was then too much."""
    request = json.dumps({"function": "operator:mul", "arguments": ["ab", count], "folder": str(tmp_path)})
    child = os.fork()
    if child == 0:
        mapped = mmap.mmap(-1, 4 * GIB, prot=mmap.PROT_READ)
        assert mapped
        serve(request, os.open(tmp_path / "answer", os.O_WRONLY | os.O_CREAT))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
    assert (tmp_path / "answer").stat().st_size == (len('{"value": ""}') + 2 * count if code == 0 else 0)
