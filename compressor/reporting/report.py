"""The report of a run as plain data: what was asked, what was done, what it cost before and after."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import FileError
from compressor.exporting.parity import OnnxCheck
from compressor.files import write_whole
from compressor.reporting.sections import Section, section_from_json

if TYPE_CHECKING:
    from compressor.profiling.cost import Profile

VERSION = 1
_MEASURED = ("macs", "macs_thop", "params", "file_bytes", "latency_ms", "top1")


@dataclass(frozen=True)
class Measurements:
    """What a model costs and how well it does; what is None or not whole has its reason in `reasons`.

    Example:
        Measurements(macs=313_201_664, params=14_728_266, reasons={"top1": "no --data was given"})
    """

    macs: int | None = None  # multiply-adds for one image
    macs_thop: int | None = None  # the same by thop's convention
    params: int | None = None
    file_bytes: int | None = None
    latency_ms: dict[str, Any] | None = None  # engine -> {median, p95, batch, ...} or None
    top1: float | None = None  # fraction in 0..1 of the test images
    reasons: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = {name: "not measured" for name in _MEASURED if getattr(self, name) is None}
        object.__setattr__(self, "reasons", {**missing, **self.reasons})

    @classmethod
    def of(
        cls,
        cost: "Profile",
        *,
        top1: float | None = None,
        file_bytes: int | None = None,
        reasons: Mapping[str, str] | None = None,
    ) -> "Measurements":
        """The measurements in a profile, with the accuracy and the file's size where they are known."""
        size = cost.file_bytes if file_bytes is None else file_bytes
        given = {"top1": top1, "file_bytes": size}
        known = {name: text for name, text in cost.reasons.items() if given.get(name) is None}
        why = {**known, **(reasons or {})}
        return cls(cost.macs, cost.macs_thop, cost.params, size, cost.latency_ms, top1, why)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**{name: _plain(getattr(self, name)) for name in _MEASURED}, "reasons": dict(self.reasons)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Measurements":
        """The measurements that `to_json` wrote."""
        return cls(**{name: data.get(name) for name in _MEASURED}, reasons=dict(data.get("reasons", {})))


@dataclass(frozen=True)
class LayerSize:
    """Filters of one layer."""

    name: str
    before: int
    after: int


@dataclass(frozen=True)
class Report:
    """A run from its command to its measurements; written as report.json and drawn as report.html.

    Example:
        report = compressor.Report.load("runs/demo")
        report.after.macs / report.before.macs    # 0.5
        report.frozen                             # {"layer1.0.conv2": "its channels are the model's output"}
    """

    command: str  # as it was typed
    settings: dict[str, Any]
    seed: int | None
    versions: dict[str, str | None]
    device: str
    before: Measurements
    after: Measurements
    edits: tuple[dict[str, Any], ...] = ()  # each: kind, period, group, channels, why
    frozen: dict[str, str] = field(default_factory=dict)  # group -> why it was not touched
    refused: dict[str, str] = field(default_factory=dict)  # what was wished and not done -> why
    layers: tuple[LayerSize, ...] = ()
    notes: tuple[str, ...] = ()
    rows: tuple[dict[str, Any], ...] = ()  # metrics, one row an epoch or period
    export: OnnxCheck | None = None
    sections: tuple[Section, ...] = ()
    variants: dict[str, Measurements] = field(default_factory=dict)  # sub-models on the same weights, by name

    def to_json(self) -> dict[str, Any]:
        """The report as plain types; a number that is not finite becomes None."""
        data: dict[str, Any] = {"report_version": VERSION}
        data.update((entry.name, _plain(getattr(self, entry.name))) for entry in fields(self))
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Report":
        """The report that `to_json` wrote.

        Raises:
            FileError: the data is of another version or lacks a part.
        """
        if not isinstance(data, Mapping) or "report_version" not in data:
            raise FileError("this is no report of compressor's; give the report.json of a run")
        if data["report_version"] != VERSION:
            raise FileError(f"the report has version {data['report_version']}, this compressor reads {VERSION}")
        values = {entry.name: data[entry.name] for entry in fields(cls) if entry.name in data}
        try:
            values["before"], values["after"] = (Measurements.from_json(data[side]) for side in ("before", "after"))
            values["layers"] = tuple(LayerSize(**layer) for layer in data.get("layers", ()))
            values["sections"] = tuple(section_from_json(section) for section in data.get("sections", ()))
            variants = data.get("variants", {}).items()
            values["variants"] = {name: Measurements.from_json(measured) for name, measured in variants}
            check = data.get("export")
            values["export"] = check and OnnxCheck(**{**check, "batches": tuple(check["batches"])})
            for name in ("edits", "notes", "rows"):
                values[name] = tuple(data.get(name, ()))
            return cls(**values)
        except (KeyError, TypeError, AttributeError) as error:
            raise FileError(f"the report is broken ({error}); run the command again") from error

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `report.json` into `folder` and return its path; an older one is replaced only by a whole one."""
        return write_json(Path(folder) / "report.json", self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Report":
        """The report in a run's folder, or in the given file.

        Raises:
            FileError: there is none, or it is broken.
        """
        file = Path(path) / "report.json" if Path(path).is_dir() else Path(path)
        try:
            return cls.from_json(json.loads(file.read_text(encoding="utf-8")))
        except OSError as error:
            raise FileError(f"{file} cannot be read ({error.strerror}); give a run's folder") from error
        except ValueError as error:  # also bytes that are no text
            raise FileError(f"{file} is no report ({error}); give the report.json of a run") from error
        except FileError as error:
            raise FileError(f"{file}: {error}") from error

    def _repr_html_(self) -> str:
        """How a notebook shows the report."""
        from compressor.reporting.page import fragment

        return fragment(self)


def write_json(path: Path, data: Mapping[str, Any]) -> Path:
    """Write plain data so that the file is there whole or not at all.

    Raises:
        FileError: it cannot be written.
    """
    return write_whole(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """Types that JSON has: tuples become lists, dataclasses dicts, numbers of NumPy and torch Python's."""
    if isinstance(value, Measurements):
        return value.to_json()
    if hasattr(value, "__dataclass_fields__"):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return _plain(value.item()) if hasattr(value, "item") else str(value)
