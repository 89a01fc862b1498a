"""AdapNet from a network and data to a smaller network and its report: `compressor prune --method adapnet`.

Reference: Ahmadluei, Faez, Masoumi, "Adaptive Pruning of Convolutional Neural Network".
"""

import base64
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from compressor.graph import capture
from compressor.graph.channels import Channels
from compressor.pruning.adapnet.method import AdapNet
from compressor.pruning.adapnet.unit import Unit
from compressor.pruning.price import in_words
from compressor.pruning.settings import in_time
from compressor.report.measurements import Measurements
from compressor.report.sections import Curve, Gallery, Look, Plot, Section, Table
from compressor.report.units import counted
from compressor.runs.goals import Guard, Target
from compressor.runs.jobs import AdaptJob
from compressor.runs.latency_goal import goal_in_ms
from compressor.runs.periods import Periods
from compressor.runs.phases import Phases, TrainingPhases, check_period, hints
from compressor.runs.run import UNMEASURED, Run
from compressor.runs.stages import Stage
from compressor.runs.subject import refuse_routed
from compressor.runs.tuning import measured_here
from compressor.training import distributed
from compressor.training.events import NoteEvent

_MOST_CURVES = 12


def section(
    rows: Sequence[Mapping[str, Any]], edits: Sequence[Mapping[str, Any]] = (), galleries: tuple[Gallery, ...] = ()
) -> tuple[Section, ...]:
    """Filters and concepts of every layer over the periods, with the edits and what concepts look like.

    Args:
        rows: what each period found; without any there is no section.
        edits: what was carried out, as the report has it.
        galleries: pictures of concepts.
    """
    if not rows:
        return ()
    names = list(dict.fromkeys(each["group"] for row in rows for each in row["groups"]))
    shown = names[:: -(-len(names) // _MOST_CURVES)]
    left_out = f" Of {len(names)} layers {len(shown)} are drawn." if len(shown) < len(names) else ""
    periods = tuple(float(row["period"]) for row in rows)
    kinds = {"frozen": "frozen", "prunes": "pruned", "merges": "merged", "inserts": "inserted"}
    counts = tuple(Curve(label, periods, tuple(float(row[key]) for row in rows)) for key, label in kinds.items())
    text = (
        "At the end of every period the feature maps that each layer showed are clustered; clusters on which filters "
        "differ are concepts. Filters equally active on all concepts are frozen for one period and then removed, "
        "filters that are alike become one, and layers whose filters are active on too many grow. Marks show where a "
        f"layer's filters were pruned, merged or inserted.{left_out}"
    )
    plots = (
        Plot("Filters of each layer", "period", "filters", _filters(rows, shown, edits)),
        Plot("Concepts of each layer", "period", "concepts", _curves(rows, shown, lambda each: each["concepts"])),
        Plot("Edits", "period", "filters", counts),
    )
    last = {each["group"]: each for row in rows for each in row["groups"]}
    table = Table(
        ("layer", "filters", "clusters", "concepts"),
        tuple((name, last[name]["filters"], last[name]["clusters"], last[name]["concepts"]) for name in names),
        "At the last period that judged the layer.",
    )
    return (Section("AdapNet", text, (table,), plots, galleries),)


_MARKS: dict[str, tuple[str, Look]] = {
    "prune": ("pruned", "gone"),
    "merge": ("merged", "joined"),
    "insert": ("inserted", "come"),
}


def _filters(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], edits: Sequence[Mapping[str, Any]]
) -> tuple[Curve, ...]:
    """Filters of every layer over the periods, with a mark wherever an edit changed them."""
    curves = _curves(rows, names, lambda each: each["filters"])
    count = {(curve.label, period): value for curve in curves for period, value in zip(curve.x, curve.y)}
    marks = []
    for kind, (label, look) in _MARKS.items():
        places = {(edit["group"], float(edit["period"])) for edit in edits if edit["kind"] == kind} & count.keys()
        if places:
            ordered = sorted(places, key=lambda place: place[1])
            marks.append(Curve(label, tuple(at for _, at in ordered), tuple(count[place] for place in ordered), look))
    return (*curves, *marks)


def _curves(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], value: Callable[[Mapping[str, Any]], float]
) -> tuple[Curve, ...]:
    curves = []
    for name in names:
        found = [(row["period"], each) for row in rows for each in row["groups"] if each["group"] == name]
        curves.append(Curve(name, tuple(float(at) for at, _ in found), tuple(float(value(each)) for _, each in found)))
    return tuple(curves)


_MOST_LAYERS, _MOST_CONCEPTS, _MOST_MAPS = 6, 6, 6


def galleries(units: Iterable[Unit]) -> tuple[Gallery, ...]:
    """One gallery a layer that has concepts, evenly chosen where there are many; a row a concept, strongest first.

    The maps are the unit's exemplars, which AdapNet keeps nearest to the centre first. Black is a map's least
    activation, white its largest.
    """
    found = [unit for unit in units if unit.concepts]
    return tuple(_gallery(unit) for unit in found[:: max(1, -(-len(found) // _MOST_LAYERS))])


def _gallery(unit: Unit) -> Gallery:
    strength = unit.table.sum(0)
    ranked = sorted(unit.concepts, key=lambda concept: -float(strength[concept]))
    shown = ranked[:_MOST_CONCEPTS]
    shares = (strength / strength.sum()).tolist()
    rows = tuple((f"{100 * shares[each]:.0f} %", tuple(_pictures(unit, each))) for each in shown)
    more = f", the {len(shown)} strongest of {len(ranked)}" if len(shown) < len(ranked) else ""
    side = f"{unit.size}x{unit.size}"
    left = "left: share of all maps"
    caption = f"{counted(len(shown), 'concept')}{more}; maps at {side}, nearest to the centre first; {left}"
    return Gallery(unit.name, rows, caption)


def _pictures(unit: Unit, concept: int) -> Iterator[str]:
    for picture in unit.exemplars[(unit.owners == concept).to(unit.device)][:_MOST_MAPS]:
        yield _data_uri(picture)


def _data_uri(picture: Tensor) -> str:
    """A map (height, width) as a grey PNG inside an address."""
    from PIL import Image

    values = picture.float().cpu().numpy()
    least, most = float(values.min()), float(values.max())
    grey = np.zeros_like(values) if most <= least else (values - least) / (most - least)
    buffer = io.BytesIO()
    Image.fromarray((255 * grey).round().astype(np.uint8)).save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


_TRIED_STEPS = 10  # of a period, for an estimate


class AdaptRun(Run[AdaptJob]):
    """AdapNet's three phases: before, while and after the structure changes."""

    channels: Channels
    method: AdapNet
    periods: Periods
    phases: Phases

    def plan(self) -> None:
        """Give every group of channels that may change to AdapNet; what it cuts depends on the training."""
        job, subject, data, notes = self.job, self.subject, self.data, self.note
        refuse_routed(subject, "prune")
        self.phases = Phases.of(job.adapnet, job.training, trained=self._trained, fill=job.goals.fill)
        steps = data.steps(self.phases.training)
        check_period(job.adapnet, steps)
        self.tell(Stage("finding which channels belong together"))
        self.channels = channels = capture(subject.module, subject.example, keep=job.goals.keep, also=job.goals.also)
        notes(*channels.notes, *hints(job.adapnet, subject.module))
        self.method = AdapNet(job.adapnet, classes=len(data.classes), steps_per_epoch=steps, seed=job.training.seed)
        self.method.adopt(subject.module, channels)
        self.phases_steps, self.period_steps = steps, self.method.lsep
        self.method.check_units(channels)
        guard = Guard(job.goals.undo_drop, partial(measured_here, subject), data)
        self.periods = Periods(
            subject.module, channels, self.method, self._target(), guard, self.tell, job.goals.round_to
        )
        self.training = TrainingPhases(subject.module, data, self.periods, self.phases, job.distilling, self._trained)
        self.facts["frozen"] = {**channels.frozen, **self.method.locked}

    def _target(self) -> Target:
        """With times by the first process, which the others wait for."""
        goals, found = self.job.goals, list[Target]()
        if in_time(goals):
            self.tell(Stage("timing the network's layers"))

        def measured() -> dict[str, float]:
            goal = goal_in_ms(self.subject.module, self.subject.example, self.channels, goals)
            found.append(Target.of(goals, self.channels, goal))
            return found[0].measured()

        known = distributed.from_first(measured)
        if not found:
            measured()
        return found[0].as_measured(known)

    @property
    def _trained(self) -> bool:
        return self.job.model.model is not None

    def predicted(self) -> tuple[Measurements, Measurements]:
        """The costs before; those after are known when it has trained."""
        settings, units = self.job.adapnet, list(self.method.units.values())
        self.note(
            f"would train {self.phases.startup} epochs without changes, up to {settings.max_epochs} in which every "
            f"{self.method.lsep} steps the structure changes, and {settings.finetune_epochs} more",
            f"would judge {sum(unit.filters for unit in units)} filters in {len(units)} groups: "
            f"{', '.join(f'{unit.name} ({unit.filters})' for unit in units)}",
        )
        open_ends = dict.fromkeys(("macs", "macs_thop", "params"), "AdapNet decides while it trains")
        return self.size, Measurements(reasons={**UNMEASURED, **open_ends})

    def epochs(self) -> float:
        """Of all three phases, at most: a target may end the second one sooner."""
        settings = self.job.adapnet
        return self.phases.startup + settings.max_epochs + settings.finetune_epochs

    def within(self, epochs: int) -> AdaptJob:
        """A quarter of them, one at least, for fine-tuning, as a sweep has it."""
        fine = max(1, epochs // 4)
        adapnet = replace(self.job.adapnet, startup_epochs=0, max_epochs=max(1, epochs - fine), finetune_epochs=fine)
        return replace(self.job, adapnet=adapnet)

    def changes(self) -> float:
        """At most."""
        return self.job.adapnet.max_epochs * self.phases_steps / self.period_steps

    def shorten(self) -> None:
        """Into the second phase at once, with short periods."""
        self.training.phases = replace(self.phases, startup=0)
        self.method.lsep = min(self.method.lsep, _TRIED_STEPS)

    def train(self) -> None:
        """All three phases, on one optimizer."""
        self.periods.tell = self.record
        self.training.run(self.folder.path, self.record, resume=self.folder.resuming)
        self.rows, periods = self.training.rows, self.periods
        self.notes += self.training.notes
        edits = tuple(row for plan in periods.plans for row in plan)
        pictures = galleries(self.method.units.values())
        self.facts |= {
            "edits": edits,
            "frozen": {**periods.channels.frozen, **self.method.locked},
            "refused": dict(periods.refused),
            "sections": section(periods.rows, edits, pictures),
        }
        if periods.target.ms is not None:
            self.note(f"{in_words(periods.target.ms.price.whole(), 'ms')} are predicted for one image")
        missed = periods.target.shortfall(periods.channels)
        if missed is not None:
            self.tell(NoteEvent(missed))
            self.facts["refused"]["target"] = missed
