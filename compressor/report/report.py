"""The report of a run as plain data: what was asked, what was done, what it cost before and after; and its page.

The page needs nothing else: its plots stand in it, its colours follow the reader's choice.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from compressor.errors import FileError
from compressor.files.paths import write_json, write_whole
from compressor.files.plain import from_plain, plain
from compressor.report import html, units
from compressor.report.comparison import answers, compare
from compressor.report.measurements import LayerSize, Measurements, OnnxCheck
from compressor.report.plots import filters_plots, run_plots, times_plots
from compressor.report.sections import Section
from compressor.report.units import NOTHING

VERSION = 1
_MOST_EDITS = 1000  # rows on the page; report.json has them all
_MOST_CHANNELS = 24  # numbers written out for one edit


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
    details: dict[str, Any] = field(default_factory=dict)  # what else the verb found, as plain data

    def to_json(self) -> dict[str, Any]:
        """The report as plain types; a number that is not finite becomes None."""
        data: dict[str, Any] = {"report_version": VERSION}
        data.update((entry.name, plain(getattr(self, entry.name))) for entry in fields(self))
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
        try:
            return from_plain(cls, data)
        except (KeyError, TypeError, ValueError) as error:
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

    @property
    def answers(self) -> list[tuple[str, bool]]:
        """What the run came to, a line each, and whether that is good."""
        return answers(self.before, self.after, self.settings.get("round_to"))

    @property
    def changed(self) -> list[LayerSize]:
        """The layers that have other filters than before."""
        return [layer for layer in self.layers if layer.before != layer.after]

    def _repr_html_(self) -> str:
        """How a notebook shows the report."""
        return fragment(self)


def write_page(report: Report, folder: str | os.PathLike[str]) -> Path:
    """Write `report.html` into `folder` and return its path.

    Raises:
        FileError: it cannot be written.
    """
    return write_whole(Path(folder) / "report.html", page(report))


def page(report: Report) -> str:
    """The report as a whole HTML document."""
    return html.rendered("page.html", {"body": "fragment.html", **_content(report)})


def fragment(report: Report) -> str:
    """The report as one `<article>`, for a notebook."""
    return html.rendered("fragment.html", _content(report))


def _content(report: Report) -> dict[str, Any]:
    """Everything that the templates show, as texts and finished plots."""
    comparison = compare(report.before, report.after, larger=True)
    edits = list(_edit_rows(report.edits))
    original = report.before if report.settings.get("model") else None  # from random weights there is none
    return {
        "title": f"{_title(report.command)}: before and after",
        "report": report,
        "answers": report.answers,
        "comparison": [(line.label, line.before, line.after, line.change) for line in comparison.lines],
        "worse": [number for number, line in enumerate(comparison.lines) if line.better is False],
        "remarks": comparison.remarks,
        "run_plots": html.drawn(run_plots(report.rows, original)),
        "sections": [html.section(each) for each in report.sections],
        "filters": html.drawn(filters_plots(report.layers)) if report.changed else [],
        "layers": [(layer.name, str(layer.before), str(layer.after)) for layer in report.layers],
        "times": html.drawn(times_plots(report.before, report.after)),
        "filters_remark": f"{len(report.changed)} of {len(report.layers)} layers changed",
        "edits": edits[:_MOST_EDITS],
        "edits_summary": _edits_summary(report.edits),
        "edits_counted": units.counted(len(edits), "edit"),
        "edits_left_out": max(0, len(edits) - _MOST_EDITS),
        "untouched": [*report.frozen.items(), *report.refused.items()],
        "export": _export_rows(report),
        "settings": _settings_rows(report, chosen=True),
        "other_settings": _settings_rows(report, chosen=False),
        "versions": [(name, version or "not installed") for name, version in report.versions.items()],
    }


def _title(command: str) -> str:
    """The verb of the command, with the program's name."""
    words = [Path(word).name for word in command.split()[:2]]
    return " ".join(words) or "compressor"


def _settings_rows(report: Report, *, chosen: bool) -> list[tuple[str, str]]:
    """Those that somebody gave, or those that have their default values."""
    given = report.settings.get("chosen") or ()
    return [(name, html.written(value)) for name, value in report.settings.items() if (name in given) == chosen]


def _edit_rows(edits: tuple[Mapping[str, Any], ...]) -> Iterator[tuple[str, str, str, str, str]]:
    for edit in edits:
        channels = list(edit.get("channels", ()))
        shown = ", ".join(map(str, channels[:_MOST_CHANNELS]))
        more = f", … ({len(channels)} in all)" if len(channels) > _MOST_CHANNELS else ""
        texts = (str(edit.get(name, NOTHING)) for name in ("group", "period", "kind"))
        group, period, kind = texts
        yield group, period, kind, shown + more, str(edit.get("why", ""))


def _edits_summary(edits: tuple[Mapping[str, Any], ...]) -> str:
    """ "prune: 312 channels in 14 groups; merge: ...", or "fold: 3 blocks"."""
    channels: Counter[str] = Counter()
    groups: dict[str, set[str]] = {}
    blocks = {str(edit.get("kind")) for edit in edits if "channels" not in edit}
    for edit in edits:
        kind = str(edit.get("kind", NOTHING))
        # A merge names two channels and takes one away; an insert names the one that it follows.
        channels[kind] += len(edit.get("channels", ())) if kind == "prune" else 1
        groups.setdefault(kind, set()).add(str(edit.get("group")))
    return "; ".join(
        f"{kind}: {units.counted(count, 'block')}"
        if kind in blocks
        else f"{kind}: {units.counted(count, 'channel')} in {units.counted(len(groups[kind]), 'group')}"
        for kind, count in channels.items()
    )


def _export_rows(report: Report) -> list[tuple[str, str]]:
    check = report.export
    if check is None:
        return []
    batches = " and ".join(map(str, check.batches))
    return [
        ("ONNX opset", str(check.opset)),
        ("file size", units.size(check.file_bytes)),
        ("largest difference from torch", f"{check.max_abs:.1e}"),
        ("as a fraction of the largest output", f"{check.max_rel:.1e}"),
        ("compared on", f"{check.inputs} inputs, batch {batches}"),
    ]
