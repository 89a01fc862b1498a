"""Cut sub-models out of a network and train all on one set of weights: `compressor detach`."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.errors import UsageError
from compressor.exits.cutting import added_bytes, cut, model_costs
from compressor.exits.detachable import Detaching
from compressor.exits.learning import recalibrated, training_of
from compressor.exits.points import legal_points
from compressor.exporting.latency import profile
from compressor.profiling.costs import params_of
from compressor.report import units
from compressor.report.measurements import Certificate, Measurements
from compressor.runs.exits import Row, hardly_smaller, measured_rows, outdone, parts_of
from compressor.runs.jobs import DetachJob
from compressor.runs.models import transformed
from compressor.runs.promise import Promise, differing
from compressor.runs.results import filters
from compressor.runs.run import Run
from compressor.runs.stages import Callback, Stage, silent
from compressor.runs.subject import Subject, refuse_routed
from compressor.training import distributed
from compressor.training.data import Data
from compressor.training.evaluate import evaluate
from compressor.training.loop import fit
from compressor.training.numerics import seed_everything_


class DetachRun(Run[DetachJob]):
    """A base and its sub-models, cut and trained together."""

    model: Detaching

    def open(self) -> None:
        """As every run does; NSN's paper has plain pixels, for a network without a past."""
        super().open()
        refuse_routed(self.subject, "detach")
        if self.job.choice.method == "nsn" and self.job.model.model is None:
            self.subject = _with_plain_pixels(self.subject)

    def plan(self) -> None:
        """Cut the sub-models out; the network itself stays as it is."""
        self.tell(Stage("finding where the network may be cut"))
        seed_everything_(self.job.training.seed)  # of the step-downs' weights
        self.model, said = cut(self.subject.module, self.subject.example, self.job.choice)
        self.note(*said, *_stored(self.model))
        if self.subject.data is not None:
            self.step, self.optimizer = training_of(self.model, self.job.choice, self.job.training, self.data)

    def predicted(self) -> tuple[Measurements, Measurements]:
        """What each model costs; the base stays as it is."""
        costs = model_costs(self.model, self.subject.example, partial(profile, layers=False))
        self._found(tuple(map(Row, costs)))
        return self.size, self.size

    def _found(self, rows: tuple[Row, ...]) -> None:
        self.note(*hardly_smaller(rows), *outdone(rows))
        self.facts |= parts_of(rows)

    def epochs(self) -> float:
        """Training every model alone takes about as long as all of them together."""
        return super().epochs() * (2 if self.job.choice.baseline else 1)

    def within(self, epochs: int) -> DetachJob:
        """Half of them where every model is trained alone as well."""
        return super().within(max(1, epochs // 2) if self.job.choice.baseline else epochs)

    def change(self) -> None:
        """The network with its sub-models takes the place of the network."""
        opened = transformed(self.subject.opened, self.model, self.model.step())
        self.subject = replace(self.subject, opened=opened)
        self.alone = [copy.deepcopy(each) for each in self.model.learners()] if self.job.choice.baseline else []

    def train(self) -> None:
        """All models together; then, where it is wished, each alone to compare."""
        job, data = self.job, self.data
        self.tell(Stage(f"training the base and {units.counted(self.model.exits, 'sub-model')} together"))
        self.learned(
            fit(
                self.model, data, job.training, step=self.step, optimizer=self.optimizer, on_event=self.record,
                saving=self.saving(phase="detach"),
            )
        )  # fmt: skip
        if job.choice.bn == "recalibrated":
            self.tell(Stage("recalibrating the batch norm of every model"))
            self.model = recalibrated(self.model, data, job.loading.seed)
            opened = self.subject.opened
            steps = (*opened.steps[:-1], self.model.step())
            self.subject = replace(self.subject, opened=replace(opened, module=self.model, steps=steps))
        self.model.eval()
        self.references = [self._trained_alone(exit, module) for exit, module in enumerate(self.alone)]

    def _trained_alone(self, exit: int, module: nn.Module) -> float:
        """Test accuracy of one model that learns from the same start with the same budget, and shares nothing."""
        self.tell(Stage(f"training {f'sub-model {exit}' if exit else 'the base'} alone, to compare"))
        fit(module, self.data, self.job.training, on_event=self.tell)
        return distributed.from_first(lambda: evaluate(module, self.data.test, self.data).main)

    def measured_after(self, before: Measurements) -> tuple[Measurements, Measurements]:
        """Every model; thop cannot count layers that stand in several, so its figure is the base's."""
        rows = measured_rows(self.subject, self.model, self.references, latency=self.job.output.latency)
        self._found(rows)
        before, after = super().measured_after(before)
        base = rows[0].cost
        reasons = {name: why for name, why in after.reasons.items() if name != "macs_thop"}
        if "macs_thop" in base.reasons:
            reasons["macs_thop"] = base.reasons["macs_thop"]
        return before, replace(after, macs_thop=base.macs_thop, reasons=reasons)

    def certified(self, promise: Promise) -> Certificate:
        """The smallest model that keeps it: the base first, then the sub-models, the largest first."""
        at, found = promise.kept([self.model.detach(number) for number in range(self.model.exits + 1)], self.data)
        self.facts["details"] |= {"promised_exit": at}
        if not at:
            return replace(found, subject="The base", exit=at)
        differed = None
        if isinstance(self.data, Data):
            differed = differing(self.model.detach(at), self.model.detach(0), promise.images, self.data)
        subject = f"Exit {at}, the smallest that can be promised,"
        return replace(found, subject=subject, exit=at, differed=differed)

    def widths(self) -> dict[str, int]:
        """Filters of the base."""
        module = self.subject.module
        return filters(module.detach(0) if isinstance(module, Detaching) else module)


def list_points(job: DetachJob, tell: Callback = silent) -> dict[str, Any]:
    """The base's cost, and for every legal cut point what a sub-model from there costs; nothing is changed.

    Raises:
        UsageError: the method cuts at no points.
    """
    if job.choice.method == "nsn":
        raise UsageError("--list is for cnsn: with nsn every hidden layer comes off, one by one")
    run = DetachRun(job, tell)
    run.open()
    tell(Stage("finding where the network may be cut"))
    module = run.subject.module
    found = legal_points(module, run.subject.example)
    points = [point.to_json() for point in found.points]
    return {"base": {"macs": found.macs, "params": params_of(module)}, "points": points}


def _with_plain_pixels(subject: Subject) -> Subject:
    """Pixels in 0..1 and not standardised, as NSN's paper has them; for a network without a past."""
    if not isinstance(subject.data, Data):
        return subject
    channels = subject.data.input_shape[0]
    mean, std = (0.0,) * channels, (1.0,) * channels
    data = replace(subject.data, preparation=replace(subject.data.preparation, mean=mean, std=std))
    opened = replace(subject.opened, preparation=data.preparation)
    return replace(subject, opened=opened, data=data)


def _stored(model: Detaching) -> Iterator[str]:
    """What the sub-models share and what they have of their own."""
    own = {
        "stats": "statistics of its own, the base's scale and shift",
        "switchable": "statistics, scale and shift of its own",
        "shared": "the base's statistics, scale and shift",
    }
    steps, norms = added_bytes(model)
    if any(isinstance(layer, _BatchNorm) for layer in model.base.modules()):
        yield f"batch norm: every sub-model has {own[model.norms]}"
    yield f"stored beyond the base: {units.size(steps)} of step-downs, {units.size(norms)} of batch norm"
