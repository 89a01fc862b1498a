"""Several runs against each other: what each network costs, how well it does, which are on the front; and its page."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from compressor.files.paths import write_json, write_whole
from compressor.report import units
from compressor.report.html import drawn, rendered
from compressor.report.measurements import TOP, TOP1, Certificate, Figure
from compressor.report.sections import Curve, Plot
from compressor.report.tables import plain_table, with_remarks

PAGE, DATA = "comparison.html", "comparison.json"
MARK = "*"
LEGEND = MARK + " on the Pareto front: no other has at least this {} at this cost or less"
_SCALES = {"macs": (1e-6, "million MACs"), "latency": (1.0, "ms"), "file_bytes": (1e-6, "MB")}
# Cost -> how it is called. Less is better of each.
COSTS = {"macs": "MACs", "latency": "latency", "file_bytes": "file size"}


@dataclass(frozen=True)
class Point:
    """One network of a run: what it costs and how well it does; None where that was not measured."""

    run: str  # the folder; for a network that a run started from, its file
    method: str  # "start" for a network that a run started from
    variant: str = ""  # a sub-model of the run's network
    main: float | None = None  # the main figure on the test data
    figure: Figure = TOP
    macs: int | None = None  # of one image; where images differ, the mean
    params: int | None = None
    file_bytes: int | None = None
    latency: float | None = None  # median milliseconds of one image, on ONNX Runtime where all were measured there
    epochs: int = 0  # of training that the run itself did
    seed: int | None = None

    @property
    def top1(self) -> float | None:
        """Fraction in 0..1 of the test images, where these are classified."""
        return self.main if self.figure.name == TOP1 else None

    def to_json(self) -> dict[str, Any]:
        facts = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        main = facts.pop("main")
        return {**facts, self.figure.name: main, "figure": asdict(self.figure)}


@dataclass(frozen=True)
class RunComparison:
    """Networks side by side; what is printed, drawn and written is made from this.

    Example:
        compared = compressor.compare(["runs/l1", "runs/adapnet"])
        compared.fronts["macs"]         # numbers of the points that no other beats at fewer MACs
        compared.save("runs/compared")  # comparison.html and comparison.json
    """

    points: tuple[Point, ...]  # by MACs, the largest first
    engine: str | None  # that latency was measured on
    in_turn: str | None = None  # the device on which all were timed in turn; None: each run's own figure
    notes: tuple[str, ...] = ()  # what makes the comparison less than fair
    failed: dict[str, str] = field(default_factory=dict)  # runs that failed -> why
    # The cheapest run of which the certificate is true; None: no run, or none was asked for.
    promised: str | None = None
    certificate: Certificate | None = None
    data: str | None = None  # or the task, of all runs, as it was named; None: none, or several

    @property
    def promise(self) -> str | None:
        """What is promised, and of which run, in a sentence; None where nothing was asked for."""
        if self.certificate is None:
            return None
        words = self.certificate.words()
        return words if self.promised is None else f"{self.promised}: {words}"

    @property
    def figure(self) -> Figure:
        """What the networks are measured by."""
        return next((point.figure for point in self.points if point.main is not None), TOP)

    @property
    def fronts(self) -> dict[str, tuple[int, ...]]:
        """For each cost the points, counted from 1, that no other point beats in cost and accuracy at once."""
        return {cost: tuple(index + 1 for index in front(self.points, cost)) for cost in COSTS}

    def to_json(self) -> dict[str, Any]:
        return {
            "points": [{"number": number, **point.to_json()} for number, point in enumerate(self.points, 1)],
            "latency_engine": self.engine,
            "timed_in_turn_on": self.in_turn,
            "fronts": {cost: list(numbers) for cost, numbers in self.fronts.items()},
            "notes": list(self.notes),
            "failed": self.failed,
            "data": self.data,
            "promised": self.promised,
            "certificate": None if self.certificate is None else self.certificate.to_json(),
        }

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `comparison.html` and `comparison.json` into a folder; returns the path of the page.

        Raises:
            FileError: they cannot be written.
        """
        write_json(Path(folder) / DATA, self.to_json())
        return write_whole(Path(folder) / PAGE, comparison_page(self))

    def _repr_html_(self) -> str:
        """How a notebook shows the comparison."""
        return rendered("comparison.html", _content(self))


def front(points: Sequence[Point], cost: str) -> list[int]:
    """Indices of the Pareto-optimal points: no other is at most as dear and at least as good, and better in one.

    Points without that cost or without an accuracy are on no front.
    """
    known = [
        (index, value, point.main if point.figure.higher else -point.main)
        for index, point in enumerate(points)
        if (value := getattr(point, cost)) is not None and point.main is not None
    ]
    return [
        index
        for index, value, main in known
        if not any(other <= value and better >= main and (other < value or better > main) for _, other, better in known)
    ]


def comparison_table(compared: RunComparison) -> RenderableType:
    """One row a network, within 80 columns; below, what the marks mean and what makes it less than fair."""
    costs = ((title, "right") for title in ("MACs", "file", "latency", compared.figure.label))
    shared = _shared(compared.points)
    table = plain_table("run", ("method", "left"), *costs)
    fronts = compared.fronts
    for number, point in enumerate(compared.points, 1):
        cells = (_marked(_cost(point, cost), number in fronts[cost]) for cost in ("macs", "file_bytes", "latency"))
        table.add_row(Text(f"{number} {_name(point, shared)}"), Text(point.method), *cells, _main(point))
    remarks = [LEGEND.format(compared.figure.label), _latency_remark(compared), *compared.notes]
    remarks += [f"{name} failed: {why}" for name, why in compared.failed.items()]
    return with_remarks(table, *remarks)


def comparison_page(compared: RunComparison) -> str:
    """The comparison as a whole HTML document."""
    return rendered("page.html", {"body": "comparison.html", **_content(compared)})


def _content(compared: RunComparison) -> dict[str, Any]:
    remarks = [LEGEND.format(compared.figure.label), _latency_remark(compared)]
    return {
        "title": f"{units.counted(len(compared.points), 'network')} side by side",
        "rows": list(_rows(compared)),
        "columns": (
            *("run", compared.figure.label, "MACs", "latency"),  # what a telephone shows of it
            *("file size", "parameters", "method", "epochs", "seed"),
        ),
        "remarks": [remark for remark in remarks if remark],
        "notes": [note for note in (compared.promise, *compared.notes) if note],
        "plots": drawn(tuple(_plots(compared))),
        "failed": list(compared.failed.items()),
    }


def _rows(compared: RunComparison) -> Iterator[tuple[str, ...]]:
    fronts, shared = compared.fronts, _shared(compared.points)
    for number, point in enumerate(compared.points, 1):
        macs, size, latency = (
            _marked(_cost(point, cost), number in fronts[cost]) for cost in ("macs", "file_bytes", "latency")
        )
        costs = (macs, latency, size, units.or_nothing(point.params, units.amount))
        about = (point.method, str(point.epochs), units.or_nothing(point.seed, str))
        yield (f"{number} {_name(point, shared)}", _main(point), *costs, *about)


def _plots(compared: RunComparison) -> Iterator[Plot]:
    """Accuracy against each cost that was measured, the points numbered as in the table."""
    axis, scale = compared.figure.axis
    for cost, name in COSTS.items():
        factor, unit = _SCALES[cost]
        places = {
            number: (float(getattr(point, cost)) * factor, scale * point.main, point.method)
            for number, point in enumerate(compared.points, 1)
            if getattr(point, cost) is not None and point.main is not None
        }
        if not places:
            continue
        curves = []
        for method in dict.fromkeys(method for _, _, method in places.values()):
            own = {number: place for number, place in places.items() if place[2] == method}
            x, y = tuple(place[0] for place in own.values()), tuple(place[1] for place in own.values())
            curves.append(Curve(method, x, y, names=tuple(_label(number, places) for number in own)))
        best = sorted(places[number][:2] for number in compared.fronts[cost])
        line = Curve("Pareto front", tuple(x for x, _ in best), tuple(y for _, y in best), look="dashed")
        what = "Accuracy" if compared.figure == TOP else axis
        yield Plot(f"{what} against {name}", unit, f"test {axis}", (*curves, line), kind="points")


def _label(number: int, places: dict[int, tuple[float, float, str]]) -> str:
    """A point's number; the first of several in one place has all their numbers."""
    here = [other for other, place in places.items() if place[:2] == places[number][:2]]
    return ", ".join(map(str, here)) if number == here[0] else ""


def _shared(points: Sequence[Point]) -> str:
    """The folder that all runs lie in, with its slash."""
    folders = [Path(point.run).parent for point in points if point.method != "start"]
    shared = os.path.commonpath(folders) if len({folder.is_absolute() for folder in folders}) == 1 else ""
    return f"{shared}/" if shared and len(points) > 1 else ""


def _name(point: Point, shared: str) -> str:
    """Run and sub-model, without the folder that all runs lie in."""
    if point.method == "start":
        return Path(point.run).name
    name = point.run.removeprefix(shared)
    return f"{name}: {point.variant}" if point.variant else name


def _cost(point: Point, cost: str) -> str:
    write = {"macs": units.macs, "latency": units.milliseconds, "file_bytes": units.size}[cost]
    return units.or_nothing(getattr(point, cost), write)


def _marked(text: str, on_front: bool) -> str:
    """With the mark, or with a place for it, so that numbers stand below each other."""
    return f"{text} {MARK if on_front else ' '}"


def _main(point: Point) -> str:
    return units.or_nothing(point.main, point.figure.write)


def _latency_remark(compared: RunComparison) -> str:
    if compared.engine is None:
        return "latency: measured in none of the runs"
    how = "each as its own run measured it"
    if compared.in_turn is not None:
        how = f"timed in turn on {compared.in_turn}"
    return f"latency: median of one image on {units.ENGINES[compared.engine]}, {how}"
