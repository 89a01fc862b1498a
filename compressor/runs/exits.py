"""What a report says of every model of a detachable network: costs, accuracies, and the two against each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from compressor.exits.cutting import ModelCost, model_costs
from compressor.exits.detachable import Detaching
from compressor.exporting.latency import profile
from compressor.report import units
from compressor.report.measurements import TOP, Figure, Measurements
from compressor.report.sections import Curve, Plot, Section, Table
from compressor.runs.subject import Subject
from compressor.training import distributed
from compressor.training.evaluate import evaluate

_HARDLY = 0.95  # of the base's multiply-adds: a sub-model above it is not worth its accuracy


@dataclass(frozen=True)
class Row:
    """One model of the network: its costs and, where they were measured, its accuracies."""

    cost: ModelCost
    main: float | None = None  # the main figure on the test data
    alone: float | None = None  # of the same model trained alone, with the same budget
    figure: Figure = TOP

    def to_json(self) -> dict[str, Any]:
        return {**self.cost.to_json(), self.figure.name: self.main, f"alone_{self.figure.name}": self.alone}


@distributed.by_first
def measured_rows(
    subject: Subject, model: Detaching, references: Sequence[float] = (), *, latency: bool
) -> tuple[Row, ...]:
    """A row for each model; the accuracies of the same models trained alone are `references`, where there are any."""
    data, rows = subject.data, []
    for cost in model_costs(model, subject.example, partial(profile, latency=latency, layers=False)):
        alone = references[cost.exit] if references else None
        if data is None:
            rows.append(Row(cost, alone=alone))
            continue
        main = evaluate(model.detach(cost.exit), data.test, data).main
        rows.append(Row(cost, main, alone, data.figure))
    return tuple(rows)


def exit_parts(subject: Subject, *, latency: bool) -> dict[str, Any]:
    """The parts of a report for a network that is detachable, by their names; none for another."""
    if not isinstance(subject.module, Detaching):
        return {}
    return parts_of(measured_rows(subject, subject.module, latency=latency))


def parts_of(rows: tuple[Row, ...]) -> dict[str, Any]:
    """The parts of a report that these rows make, by their names."""
    base, *exits = (row.to_json() for row in rows)
    details = {"base": base, "exits": exits}
    return {"sections": (exits_section(rows),), "variants": variants(rows), "details": details}


def hardly_smaller(rows: Sequence[Row]) -> list[str]:
    """A line for every sub-model that saves next to nothing."""
    base = rows[0].cost.macs
    return [
        f"exit {row.cost.exit} has {row.cost.macs / base:.0%} of the base's multiply-adds and saves next to nothing: "
        "give `at` or `targets` for another place"
        for row in rows[1:]
        if row.cost.macs > _HARDLY * base
    ]


def outdone(rows: Sequence[Row]) -> list[str]:
    """A line for every sub-model that something else does as well as, at its cost or less."""
    said = []
    known = [(row, row.main) for row in rows if row.main is not None]
    for row, main in known:
        if not row.cost.exit:
            continue
        figure = row.figure
        own = f"{_name(row)}, {units.macs(row.cost.macs)}, gets {figure.write(main)}"
        better = [each for each in known if each[0].cost.macs < row.cost.macs and figure.drop(main, each[1]) <= 0]
        if better:
            best, gets = max(better, key=lambda each: figure.drop(each[1], main))
            said.append(f"{own}: {_name(best)} is cheaper, {units.macs(best.cost.macs)}, and gets {figure.write(gets)}")
        if row.alone is not None and figure.drop(main, row.alone) <= 0:
            said.append(f"{own}: a network of its own of the same cost, trained as long, {figure.write(row.alone)}")
    return said


def variants(rows: Sequence[Row]) -> dict[str, Measurements]:
    """The sub-models as a report takes them; the base is the report's own."""
    found = {}
    for row in rows:
        cost = row.cost
        if cost.exit:
            reasons = {**cost.reasons, "file_bytes": "on the base's weights"}
            measured = Measurements(cost.macs, cost.macs_thop, cost.params, None, cost.latency_ms, None, reasons)
            found[f"exit {cost.exit}"] = (
                measured.scored(row.figure, {row.figure.name: row.main}) if row.main is not None else measured
            )
    return found


def exits_section(rows: tuple[Row, ...]) -> Section:
    """The rows as a table, and accuracy against multiply-adds as a plot."""
    columns = ("model", "starts at", "MACs", "params", "own", "latency", rows[0].figure.label, "alone")
    shown = len(columns) if any(row.alone is not None for row in rows) else -1
    cells = tuple(_cells(row)[:shown] for row in rows)
    table = Table(columns[:shown], cells, "Sub-models: what each costs and how well it does.")
    counted = tuple((_name(row), _macs(row.cost.macs_thop), units.amount(row.cost.shared_params)) for row in rows)
    shared = Table(("model", "MACs (thop)", "parameters shared with the base"), counted)
    curves = []
    axis, scale = rows[0].figure.axis
    for label, field in (("together", "main"), ("each trained alone", "alone")):
        known = [(row.cost.macs / 1e6, getattr(row, field)) for row in reversed(rows)]
        known = [(macs, scale * main) for macs, main in known if main is not None]
        if known:
            curves.append(Curve(label, tuple(macs for macs, _ in known), tuple(main for _, main in known)))
    plots = (Plot("Accuracy against cost", "million MACs", f"test {axis}", tuple(curves)),) if curves else ()
    text = "Exit 0 is the base; every sub-model is a step-down and the base's remaining layers, on the same weights."
    lacking = {_name(row): row.cost.reasons["macs_thop"] for row in rows if "macs_thop" in row.cost.reasons}
    text = " ".join((text, *(f"MACs (thop) of {name}: {why}." for name, why in lacking.items())))
    return Section("Sub-models", text, (table, shared), plots)


def _cells(row: Row) -> tuple[str | float | None, ...]:
    cost = row.cost
    timing = (cost.latency_ms or {}).get("torch")
    return (
        _name(row),
        cost.at,
        units.macs(cost.macs),
        units.amount(cost.params),
        units.amount(cost.own_params),
        None if timing is None else units.milliseconds(timing["median"]),
        None if row.main is None else row.figure.write(row.main),
        None if row.alone is None else row.figure.write(row.alone),
    )


def _macs(count: int | None) -> str | None:
    return None if count is None else units.macs(count)


def _name(row: Row) -> str:
    return f"exit {row.cost.exit}" if row.cost.exit else "base"
