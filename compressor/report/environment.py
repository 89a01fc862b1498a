"""Where a run took place: versions of what computes, and the device in words."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from compressor.report.units import counted

VERSION = "0.2.0"  # of this package; pyproject.toml reads it here
_PACKAGES = ("torch", "torchvision", "numpy", "onnx", "onnxruntime")


def versions() -> dict[str, str | None]:
    """Version of Python and of each package that takes part; None where one is not installed. Imports none of them."""
    ours: dict[str, str | None] = {"python": platform.python_version(), "compressor": VERSION}
    return ours | {name: version(name) for name in _PACKAGES}


def device_words(device: Any = "cpu") -> str:
    """The device with its model's name: "NVIDIA H200 (cuda:0)", "CPU: Intel(R) Xeon(R) ..., 2 cores, 1 thread".

    Args:
        device: a torch.device or its name.
    """
    import torch

    place = torch.device(device)
    if place.type == "cuda":
        return f"{torch.cuda.get_device_name(place)} ({place})"
    if place.type != "cpu":
        return str(place)
    cores, threads = usable_cores(), torch.get_num_threads()
    return f"CPU: {processor()}, {counted(cores, 'core')}, {counted(threads, 'thread')}"


def version(package: str) -> str | None:
    """Of an installed package; None where it is not."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def usable_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's own name where the system tells it, else the architecture."""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return " ".join(line.split(":", 1)[1].split())
    return platform.processor() or platform.machine()
