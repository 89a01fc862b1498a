"""Pages that need nothing else: templates filled, plots drawn into them, sections as the templates take them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.errors import printable
from compressor.report.plots import draw
from compressor.report.sections import Gallery, Plot, Section, Table
from compressor.report.units import NOTHING

_QUANTITY = re.compile(r"[+-]?[\d.,]+( ?[TGMk]?(?:MAC|B)| [TGMk]| ms| %| pp|x)?")


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


def drawn(plots: tuple[Plot, ...]) -> list[tuple[str, Any]]:
    """Titles and finished pictures, as the templates take them."""
    from markupsafe import Markup

    return [(plot.title, Markup(draw(plot))) for plot in plots]


def section(section: Section) -> dict[str, Any]:
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
    rows = [tuple(written(cell) for cell in row) for row in table.rows]
    return {"columns": table.columns, "rows": rows, "caption": table.caption, "numbers": number_columns(table)}


def number_columns(table: Table) -> list[int]:
    """Which columns hold numbers, to be set flush right; the first never does."""
    return [index for index in range(1, len(table.columns)) if _of_numbers([row[index] for row in table.rows])]


def _of_numbers(cells: list[str | float | None]) -> bool:
    """Whether a column holds numbers, bare or written with their units; digits alone may be a module's name."""
    written = [_QUANTITY.fullmatch(cell) for cell in cells if isinstance(cell, str)]
    bare = any(isinstance(cell, int | float) for cell in cells)
    return all(written) and (bare or any(found and found[1] for found in written))


def written(value: Any) -> str:
    """A cell or a setting as text."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {written(entry)}" for name, entry in value.items())
    return ", ".join(map(written, value)) if isinstance(value, list | tuple) else str(value)
