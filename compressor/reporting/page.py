"""A report as one HTML page that needs nothing else: its plots stand in it, its colours follow the reader's choice."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compressor.files import write_whole
from compressor.reporting import units
from compressor.reporting.comparison import NOTHING, compare
from compressor.reporting.plots import draw, run_plots
from compressor.reporting.report import Report
from compressor.reporting.sections import Curve, Gallery, Plot, Section, Table
from compressor.text import printable

_MOST_EDITS = 1000  # rows on the page; report.json has them all
_QUANTITY = re.compile(r"[+-]?[\d.,]+( ?[TGMk]?(?:MAC|B)| [TGMk]| ms| %| pp|x)?")
_MOST_CHANNELS = 24  # numbers written out for one edit


def write_page(report: Report, folder: str | os.PathLike[str]) -> Path:
    """Write `report.html` into `folder` and return its path.

    Raises:
        FileError: it cannot be written.
    """
    return write_whole(Path(folder) / "report.html", page(report))


def page(report: Report) -> str:
    """The report as a whole HTML document."""
    return rendered("page.html", {"body": "fragment.html", **_content(report)})


def fragment(report: Report) -> str:
    """The report as one `<article>`, for a notebook."""
    return rendered("fragment.html", _content(report))


def rendered(template: str, content: Mapping[str, Any]) -> str:
    """A template of this folder, filled."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    folder = Path(__file__).with_name("templates")
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup((folder / "style.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(style=style, **content)


def _content(report: Report) -> dict[str, Any]:
    """Everything that the templates show, as texts and finished plots."""
    comparison = compare(report, larger=True)
    changed = [layer for layer in report.layers if layer.before != layer.after]
    edits = list(_edit_rows(report.edits))
    return {
        "title": f"{_title(report.command)}: before and after",
        "report": report,
        "comparison": [(line.label, line.before, line.after, line.change) for line in comparison.lines],
        "remarks": comparison.remarks,
        "run_plots": drawn(run_plots(report.rows)),
        "sections": [_section(section) for section in report.sections],
        "filters": drawn((_filters_plot(report),)) if changed else [],
        "filters_remark": f"{len(changed)} of {len(report.layers)} layers changed",
        "edits": edits[:_MOST_EDITS],
        "edits_summary": _edits_summary(report.edits),
        "edits_counted": units.counted(len(edits), "edit"),
        "edits_left_out": max(0, len(edits) - _MOST_EDITS),
        "untouched": [*report.frozen.items(), *report.refused.items()],
        "export": _export_rows(report),
        "settings": [(name, _written(value)) for name, value in report.settings.items()],
        "versions": [(name, version or "not installed") for name, version in report.versions.items()],
    }


def _title(command: str) -> str:
    """The verb of the command, with the program's name."""
    words = [Path(word).name for word in command.split()[:2]]
    return " ".join(words) or "compressor"


def drawn(plots: tuple[Plot, ...]) -> list[tuple[str, Any]]:
    """Titles and finished pictures, as the templates take them."""
    from markupsafe import Markup

    return [(plot.title, Markup(draw(plot))) for plot in plots]


def _filters_plot(report: Report) -> Plot:
    names = tuple(layer.name for layer in report.layers)
    before = Curve("before", names, tuple(float(layer.before) for layer in report.layers))
    after = Curve("after", names, tuple(float(layer.after) for layer in report.layers))
    return Plot("Filters", "filters", "", (before, after), kind="bars")


def _section(section: Section) -> dict[str, Any]:
    return {
        "title": section.title,
        "text": section.text,
        "plots": drawn(section.plots),
        "tables": [_table(table) for table in section.tables],
        "galleries": [_gallery(gallery) for gallery in section.galleries],
    }


def _gallery(gallery: Gallery) -> dict[str, Any]:
    """Only pictures that stand in the page itself: a report may come from anyone, and a page asks for nothing."""
    inside = "data:image/png;base64,"
    rows = [(label, [each for each in pictures if each.startswith(inside)]) for label, pictures in gallery.rows]
    return {"title": gallery.title, "caption": gallery.caption, "rows": rows}


def _table(table: Table) -> dict[str, Any]:
    numbers = [index for index in range(1, len(table.columns)) if _of_numbers([row[index] for row in table.rows])]
    rows = [tuple(_written(cell) for cell in row) for row in table.rows]
    return {"columns": table.columns, "rows": rows, "caption": table.caption, "numbers": numbers}


def _of_numbers(cells: list[str | float | None]) -> bool:
    """Whether a column holds numbers, bare or written with their units; digits alone may be a module's name."""
    written = [_QUANTITY.fullmatch(cell) for cell in cells if isinstance(cell, str)]
    bare = any(isinstance(cell, int | float) for cell in cells)
    return all(written) and (bare or any(found and found[1] for found in written))


def _edit_rows(edits: tuple[Mapping[str, Any], ...]) -> Iterator[tuple[str, str, str, str, str]]:
    for edit in edits:
        channels = list(edit.get("channels", ()))
        shown = ", ".join(map(str, channels[:_MOST_CHANNELS]))
        more = f", … ({len(channels)} in all)" if len(channels) > _MOST_CHANNELS else ""
        texts = (str(edit.get(name, NOTHING)) for name in ("group", "period", "kind"))
        group, period, kind = texts
        yield group, period, kind, shown + more, str(edit.get("why", ""))


def _edits_summary(edits: tuple[Mapping[str, Any], ...]) -> str:
    """ "prune: 312 channels in 14 groups; merge: ..."."""
    channels: Counter[str] = Counter()
    groups: dict[str, set[str]] = {}
    for edit in edits:
        kind = str(edit.get("kind", NOTHING))
        # A merge names two channels and takes one away; an insert names the one that it follows.
        channels[kind] += len(edit.get("channels", ())) if kind == "prune" else 1
        groups.setdefault(kind, set()).add(str(edit.get("group")))
    return "; ".join(
        f"{kind}: {units.counted(count, 'channel')} in {units.counted(len(groups[kind]), 'group')}"
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


def _written(value: Any) -> str:
    """A cell or a setting as text."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_written(entry)}" for name, entry in value.items())
    return ", ".join(map(_written, value)) if isinstance(value, list | tuple) else str(value)
