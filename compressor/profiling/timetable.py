"""How long a chip takes for a layer by its widths: samples on a grid, and what lies between them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.errors import FileError
from compressor.files.paths import write_json
from compressor.files.plain import from_plain

# ONNX Runtime packs the channels of a feature map in blocks of this many before it convolves, and falls back to a
# slower way where they do not fill the blocks.
_WIDE, _OTHER = 16, 8


def preferred_multiple(capability: str | None = None) -> tuple[int, str]:
    """The multiple that widths should be rounded to on this machine, and why.

    `capability` is torch's name of the CPU's vector instructions, such as "AVX512"; this machine's where left out.

    Example:
        preferred_multiple("AVX512")[0]      # 16
    """
    found = torch.backends.cpu.get_cpu_capability() if capability is None else capability
    if found.upper().startswith("AVX512"):
        return _WIDE, f"ONNX Runtime convolves in blocks of {_WIDE} channels on a chip with AVX-512"
    return _OTHER, f"ONNX Runtime convolves in blocks of {_OTHER} channels on a chip without AVX-512 ({found})"


Widths = tuple[int, int]  # channels that a layer takes and makes
FORMAT = "compressor timetable 1"


@dataclass(frozen=True, order=True)
class Layer:
    """A layer of a runtime's graph but for its widths."""

    operator: str  # Conv, ConvTranspose, Gemm
    size: tuple[int, ...]  # of the maps that it takes, (height, width); rows of a matrix product
    settings: tuple[tuple[str, tuple[int, ...]], ...] = ()  # attributes of the operator, such as strides, by name
    groups: int = 1  # 0: as many as channels


@dataclass(frozen=True)
class Machine:
    """What times hold for."""

    chip: str
    runtime: str  # with its version: "onnxruntime 1.23.2"
    threads: int
    batch: int = 1


@dataclass
class Timetable:
    """Milliseconds of layers by their widths, sampled on one machine."""

    machine: Machine
    samples: dict[Layer, dict[Widths, float]] = field(default_factory=dict)
    whole: dict[str, float] | None = None  # of the one network that it is of: by operator, what its graph took

    def add(self, layer: Layer, widths: Widths, ms: float) -> None:
        """Add a sample, in the place of an older one."""
        self.samples.setdefault(layer, {})[widths] = ms

    def grid(self, layer: Layer, taken: Sequence[int], made: Sequence[int]) -> "Grid":
        """The layer's times at these widths, which rise. KeyError where none was sampled."""
        ms = np.full((len(taken), len(made)), np.nan)
        for (a, b), value in self.samples[layer].items():
            if a in taken and b in made:
                ms[taken.index(a), made.index(b)] = value
        for row in ms:  # what was not sampled follows from what is beside it
            _fill(row, made)
        for column in ms.T:
            _fill(column, taken)
        if np.isnan(ms).all():
            raise KeyError(layer)
        # A narrower layer takes no longer than a wider one: what says so was disturbed.
        for side in (0, 1):
            ms = np.flip(np.minimum.accumulate(np.flip(ms, side), side), side)
        return Grid(np.array(taken, float), np.array(made, float), ms)

    def write(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        rows = [
            {**asdict(layer), "samples": [[*widths, ms] for widths, ms in sorted(found.items())]}
            for layer, found in sorted(self.samples.items())
        ]
        write_json(path, {"format": FORMAT, "machine": asdict(self.machine), "layers": rows, "whole": self.whole})

    @classmethod
    def read(cls, path: Path) -> "Timetable":
        """Raises FileError for a file that is missing or no timetable."""
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
            if read["format"] != FORMAT:
                raise ValueError(f"its format is {read['format']!r}, not {FORMAT!r}")
            table = cls(from_plain(Machine, read["machine"]), whole=read.get("whole"))
            for row in read["layers"]:
                for taken, made, ms in row["samples"]:
                    table.add(from_plain(Layer, row), (int(taken), int(made)), float(ms))
        except OSError as error:
            raise FileError(f"{path} cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError) as error:
            raise FileError(f"{path} is no timetable of compressor ({error}): write one with tune --kit") from error
        return table


@dataclass(frozen=True, eq=False)
class Grid:
    """Milliseconds of a layer at some widths."""

    taken: NDArray[np.float64]  # (a,), rising
    made: NDArray[np.float64]  # (b,), rising
    ms: NDArray[np.float64]  # (a, b)

    def at(self, taken: float, made: float) -> float:
        """Linear in either width between samples, and in proportion to it outside of them."""
        inside = (np.clip(taken, self.taken[0], self.taken[-1]), np.clip(made, self.made[0], self.made[-1]))
        rows = [np.interp(inside[1], self.made, row) for row in self.ms]
        return float(np.interp(inside[0], self.taken, rows)) * _beyond(taken, inside[0]) * _beyond(made, inside[1])


def _beyond(wanted: float, inside: float) -> float:
    return wanted / inside if wanted > inside > 0 else 1.0


def _fill(values: NDArray[np.float64], places: Sequence[int]) -> None:
    known, at = ~np.isnan(values), np.array(places, float)
    if known.any():
        values[~known] = np.interp(at[~known], at[known], values[known])
