"""Pages that need nothing else: templates filled, plots as SVG that take the page's colours, light or dark."""

import hashlib
import io
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import printable
from compressor.report.sections import Curve, Gallery, Plot, Section, Table
from compressor.report.units import NOTHING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# matplotlib wants colours; these stand for the page's own and are exchanged in the finished SVG.
_INK, _FAINT = "#010203", "#040506"
_SERIES = ("#a00001", "#a00002", "#a00003", "#a00004", "#a00005", "#a00006")
_EXCHANGE = {
    _INK: "currentColor",
    _FAINT: "var(--line)",
    **{color: f"var(--series-{number})" for number, color in enumerate(_SERIES, 1)},
}
_SHAPES = ("o", "s", "^", "D", "v", "P")  # of points, so that series differ without colours too
_WIDTH = 4.6  # inches: 331 points, shown near their natural size on a telephone and on a desk
_BAR_HEIGHT = 0.17  # inches


def draw(plot: Plot) -> str:
    """The plot as one `<svg>` element, at most as wide as what it stands in."""
    import matplotlib
    from matplotlib.figure import Figure

    plot = _readable(plot)
    bars = plot.kind == "bars"
    names = len(plot.curves[0].x) if bars and plot.curves else 0
    height = 0.9 + _BAR_HEIGHT * names * max(len(plot.curves), 1) if bars else 2.7
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "compressor",
        "font.size": 8.5,
        "text.parse_math": False,  # a layer's name may hold a dollar sign
        "text.color": _INK,
        "axes.edgecolor": _FAINT,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "grid.color": _FAINT,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = figure.subplots()
        (_draw_bars if bars else _draw_curves)(axes, plot)
        axes.set_xlabel(plot.x_label)
        axes.set_ylabel(plot.y_label)
        axes.spines[["top", "right"]].set_visible(False)
        if len(plot.curves) > 1:
            figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=8.5)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(buffer.getvalue(), _alternative(plot))


def _draw_curves(axes: "Axes", plot: Plot) -> None:
    colors, shapes = itertools.cycle(_SERIES), itertools.cycle(_SHAPES)
    for curve in plot.curves:
        known = [(x, y) for x, y in zip(curve.x, curve.y) if y is not None]
        x, y = [float(pair[0]) for pair in known], [pair[1] for pair in known]
        axes.plot(x, y, label=curve.label, **_look(plot, curve, len(known), colors, shapes))
        for name, at in zip(curve.names, known):
            if name:
                axes.annotate(name, (float(at[0]), at[1]), xytext=(4, 3), textcoords="offset points", fontsize=8)
    places = {float(x) for curve in plot.curves for x in curve.x}
    if len(places) == 1 and plot.kind == "line":
        axes.set_xlim(min(places) - 1, max(places) + 1)
    if all(place.is_integer() for place in places):
        _few_ticks(axes, integer=True)
    axes.grid(linewidth=0.6)


def _few_ticks(axes: "Axes", **settings: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(**settings))


def _look(plot: Plot, curve: Curve, points: int, colors: Iterator[str], shapes: Iterator[str]) -> dict[str, Any]:
    """How a curve is drawn; marks and dashed lines take no colour of the series."""
    if curve.look == "dashed":
        return {"color": _SERIES[-1], "linestyle": "--", "linewidth": 1.2, "zorder": 1}
    if curve.look:
        marker = {"gone": "x", "come": "^", "joined": "o"}[curve.look]
        return {"color": _INK, "linestyle": "none", "marker": marker, "markersize": 5.5, "markerfacecolor": "none"}
    if plot.kind == "points":
        return {"color": next(colors), "linestyle": "none", "marker": next(shapes), "markersize": 4.5}
    return {"color": next(colors), "linewidth": 1.6, "marker": "o" if points <= 40 else "", "markersize": 3.2}


def _draw_bars(axes: "Axes", plot: Plot) -> None:
    thick = 0.8 / len(plot.curves)
    # The last colour is the quiet one: what was before, behind what is now.
    colors = itertools.cycle((_SERIES[-1], *_SERIES[:-1]) if len(plot.curves) > 1 else _SERIES)
    for index, (curve, color) in enumerate(zip(plot.curves, colors)):
        places = [row - 0.4 + thick * (index + 0.5) for row in range(len(curve.x))]
        lengths = [value or 0.0 for value in curve.y]
        axes.barh(places, lengths, height=thick * 0.95, color=color, label=curve.label)
    names = [_shortened(str(name)) for name in plot.curves[0].x]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labeltop=True)  # of a long figure the lower end may be out of sight
    _few_ticks(axes, nbins=5)
    if plot.longest:
        axes.set_xlim(0, 1.05 * plot.longest)


def _readable(plot: Plot) -> Plot:
    """The plot with texts that control nothing, and that the fonts can be asked for."""
    curves = tuple(
        replace(
            curve,
            label=printable(curve.label),
            x=tuple(printable(each) if isinstance(each, str) else each for each in curve.x),
            names=tuple(map(printable, curve.names)),
        )
        for curve in plot.curves
    )
    title, x_label, y_label = map(printable, (plot.title, plot.x_label, plot.y_label))
    return replace(plot, title=title, x_label=x_label, y_label=y_label, curves=curves)


def _shortened(name: str, longest: int = 26) -> str:
    return name if len(name) <= longest else f"…{name[1 - longest :]}"


def _alternative(plot: Plot) -> str:
    """What stands for the picture where it is read aloud: each curve's ends, or how many bars or points there are."""
    told = []
    for curve in plot.curves:
        known = [value for value in curve.y if value is not None]
        if plot.kind == "line" and known and curve.look in ("", "dashed"):
            first, last = f"{known[0]:.4g}", f"{known[-1]:.4g}"
            told.append(f"{curve.label} at {last}" if first == last else f"{curve.label} from {first} to {last}")
        elif known and not curve.look:
            told.append(f"{curve.label}, {len(known)} {plot.kind}")
    axes = ", ".join(filter(None, (plot.y_label, plot.x_label)))
    return f"{plot.title} ({axes}): {'; '.join(told)}"


def _for_page(svg: str, alternative: str) -> str:
    """Without prolog and notes, with the page's colours and font, and identifiers that no other plot has."""
    from markupsafe import escape

    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    for stand_in, color in _EXCHANGE.items():
        body = body.replace(stand_in, color)
    body = re.sub(r"font-family: [^;\"]*;? ?|<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", body)
    prefix = f"plot-{hashlib.sha256(body.encode()).hexdigest()[:8]}-"
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", body)
    return body.replace("<svg ", f'<svg role="img" aria-label="{escape(alternative)}" ', 1)


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
    environment.filters["coded"] = _coded
    style = Markup((folder / "style.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(style=style, **content)


def _coded(text: Any) -> Any:
    """What stands in backquotes as code, all else as text."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(printable(str(text))))))


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
