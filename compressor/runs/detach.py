"""Cut sub-models out of a network and train all on one set of weights: `compressor detach`."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.errors import UsageError
from compressor.exits.cutting import Detaching, added_bytes, cut, model_costs
from compressor.exits.learning import recalibrated, training_of
from compressor.exits.points import legal_points
from compressor.exporting.latency import profile
from compressor.report import units
from compressor.report.measurements import Measurements
from compressor.report.report import Report
from compressor.runs.exits import Row, exits_section, hardly_smaller, measured_rows, variants
from compressor.runs.folder import RunFolder
from compressor.runs.jobs import DetachJob, flat
from compressor.runs.measuring import filters, in_words, layer_sizes, measure
from compressor.runs.models import transformed
from compressor.runs.results import report_of, write_results
from compressor.runs.stages import Stage, Tell, note_all, silent
from compressor.runs.subject import Subject, open_subject, refuse_routed
from compressor.training import distributed
from compressor.training.evaluate import evaluate
from compressor.training.events import NoteEvent
from compressor.training.loop import fit
from compressor.training.randomness import seed_everything_
from compressor.training.state import Saving


@dataclass(frozen=True)
class Detached:
    """What a run did: its report, and a row for the base and each sub-model."""

    report: Report
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """The report with `base` and `exits` beside what every report has."""
        return {**self.report.to_json(), **self.models()}

    def models(self) -> dict[str, Any]:
        """The rows: `base`, and `exits` from the largest sub-model on."""
        base, *exits = (row.to_json() for row in self.rows)
        return {"base": base, "exits": exits}


def detach(job: DetachJob, tell: Tell = silent, *, resume: bool = False) -> Detached:
    """Open, cut, train all models together, measure each, write; returns the report that was written.

    With `resume` the training goes on from the folder's last checkpoint.

    Raises:
        CompressorError: anything the user can mend.
    """
    folder = RunFolder(job.output, model=job.model.model, resume=resume)
    subject = _open(job, tell)
    data = subject.data
    if data is None:
        raise UsageError("detach trains the sub-models, which needs --data; without data there is --dry-run and --list")
    model, notes = _cut(job, subject, tell)
    step, optimizer = training_of(model, job.choice, job.training)
    tell(Stage("measuring the model as it came"))
    before, widths = measure(subject, latency=job.output.latency), filters(subject.module)
    tell(NoteEvent(in_words(before)))
    subject = replace(subject, opened=transformed(subject.opened, model, model.step()))
    alone = [copy.deepcopy(each) for each in model.learners()] if job.choice.baseline else []
    folder.begin(flat(job))

    tell(Stage(f"training the base and {units.counted(model.exits, 'sub-model')} together"))
    saving = Saving(folder.path, phase="detach", resume=resume)
    history = fit(
        model, data, job.training, step=step, optimizer=optimizer, on_event=folder.recording(tell), saving=saving
    )
    if job.choice.recalibrate:
        tell(Stage("recalibrating the batch norm of every model"))
        model = recalibrated(model, data, job.loading.seed)
        steps = (*subject.opened.steps[:-1], model.step())
        subject = replace(subject, opened=replace(subject.opened, module=model, steps=steps))
    model.eval()
    references = [_trained_alone(job, subject, module, exit, tell) for exit, module in enumerate(alone)]

    tell(Stage("measuring every model"))
    rows = tuple(measured_rows(subject, model, references, latency=job.output.latency))
    hardly = hardly_smaller(rows)
    note_all(hardly, tell)
    after = _with_thop_of(rows[0], measure(subject, latency=job.output.latency))
    report = replace(
        _report(job, subject, before, after, [*notes, *history.notes, *hardly]),
        layers=layer_sizes(widths, filters(model.detach(0))),
        rows=tuple(history.rows),
        sections=(exits_section(rows),),
        variants=variants(rows),
    )
    return Detached(write_results(subject, report, folder, job.output, tell), rows)


def dry_run(job: DetachJob, tell: Tell = silent) -> Detached:
    """The report of what `detach` would make, with what each model costs; nothing is trained and written."""
    subject = _open(job, tell)
    widths = filters(subject.module)
    missing = dict.fromkeys(("file_bytes", "latency_ms", "top1"), "not measured in a dry run")
    model, notes = _cut(job, subject, tell)
    rows = tuple(Row(cost) for cost in model_costs(model, subject.example, partial(profile, layers=False)))
    base = rows[0].cost
    hardly = hardly_smaller(rows)
    note_all(hardly, tell)
    size = Measurements(base.macs, base.macs_thop, base.params, reasons={**base.reasons, **missing})
    report = replace(_report(job, subject, size, size, [*notes, *hardly]), layers=layer_sizes(widths, widths))
    return Detached(replace(report, sections=(exits_section(rows),)), rows)


def list_points(job: DetachJob, tell: Tell = silent) -> dict[str, Any]:
    """The base's cost, and for every legal cut point what a sub-model from there costs; nothing is changed."""
    subject = _open(job, tell)
    tell(Stage("finding where the network may be cut"))
    found = legal_points(subject.module, subject.example)
    params = sum(parameter.numel() for parameter in subject.module.parameters())
    points = [point.to_json() for point in found.points]
    return {"base": {"macs": found.macs, "params": params}, "points": points}


def _open(job: DetachJob, tell: Tell) -> Subject:
    tell(Stage("opening the model" if job.data is None else "opening the model and the data"))
    subject = open_subject(job.model, job.data, job.loading, job.training.device)
    refuse_routed(subject, "detach")
    if job.choice.method == "nsn" and job.model.model is None:
        subject = _with_plain_pixels(subject)
    note_all(subject.notes, tell)
    return subject


def _with_plain_pixels(subject: Subject) -> Subject:
    """Pixels in 0..1 and not standardised, as NSN's paper has them; for a network without a past."""
    if subject.data is None:
        return subject
    channels = subject.data.input_shape[0]
    mean, std = (0.0,) * channels, (1.0,) * channels
    data = replace(subject.data, preparation=replace(subject.data.preparation, mean=mean, std=std))
    opened = replace(subject.opened, preparation=data.preparation)
    return replace(subject, opened=opened, data=data)


def _cut(job: DetachJob, subject: Subject, tell: Tell) -> tuple[Detaching, list[str]]:
    tell(Stage("finding where the network may be cut"))
    seed_everything_(job.training.seed)  # of the step-downs' weights
    model, notes = cut(subject.module, subject.example, job.choice)
    notes += _stored(model)
    note_all(notes, tell)
    return model, notes


def _stored(model: Detaching) -> Iterator[str]:
    """What the sub-models share and what they have of their own."""
    own = {
        "stats": "statistics of its own, the base's scale and shift",
        "switchable": "statistics, scale and shift of its own",
        "shared": "the base's statistics, scale and shift",
    }
    steps, norms = added_bytes(model)
    if any(isinstance(layer, _BatchNorm) for layer in model.base.modules()):
        yield f"--bn {model.norms}: in batch norm every sub-model has {own[model.norms]}"
    yield f"stored beyond the base: {units.size(steps)} of step-downs, {units.size(norms)} of batch norm"


def _with_thop_of(base: Row, whole: Measurements) -> Measurements:
    """thop cannot count layers that stand in several models, so its figure is the base's, with what it lacks."""
    reasons = {name: why for name, why in whole.reasons.items() if name != "macs_thop"}
    if "macs_thop" in base.cost.reasons:
        reasons["macs_thop"] = base.cost.reasons["macs_thop"]
    return replace(whole, macs_thop=base.cost.macs_thop, reasons=reasons)


def _trained_alone(job: DetachJob, subject: Subject, module: nn.Module, exit: int, tell: Tell) -> float:
    """Test accuracy of one model that learns from the same start with the same budget, and shares nothing."""
    assert subject.data is not None
    tell(Stage(f"training {_name(exit)} alone, to compare"))
    fit(module, subject.data, job.training, on_event=tell)
    data = subject.data
    return distributed.from_first(lambda: evaluate(module, data.test, data).top1)


def _name(exit: int) -> str:
    return f"sub-model {exit}" if exit else "the base"


def _report(job: DetachJob, subject: Subject, before: Measurements, after: Measurements, notes: list[str]) -> Report:
    return report_of(
        job,
        subject,
        before,
        after,
        notes=(*subject.notes, *notes),
    )
