"""Measure the accuracy of a model or of an .onnx file: `compressor evaluate`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compressor.errors import FileError, listed
from compressor.exporting.runtime import OnnxModel, onnx_at
from compressor.report.manifest import card_inside, fed, manifest_inside, packaged
from compressor.report.measurements import TOP, Figure
from compressor.runs.job import EvaluateJob
from compressor.runs.models import refuse_definition
from compressor.runs.own import task_of
from compressor.runs.stages import Callback, Stage, note_all, silent
from compressor.runs.subject import class_numbers, open_subject, unsaid
from compressor.training.classes import fit_to_model
from compressor.training.data import open_data
from compressor.training.evaluate import Evaluation
from compressor.training.evaluate import evaluate as evaluate_on
from compressor.training.task import Task


@dataclass(frozen=True)
class Evaluated(Evaluation):
    """How well a model does on one split of a data set."""

    model: str = ""
    data: str = ""
    split: str = "test"
    notes: tuple[str, ...] = ()
    history: tuple[str, ...] = ()  # the commands that made the model, the last one last
    figure: Figure = TOP
    amount: str = ""  # the count with its unit

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model, "data": self.data, "split": self.split, **self.figures, "count": self.count,
            "notes": list(self.notes), "history": list(self.history),
        }  # fmt: skip


def evaluate(job: EvaluateJob, tell: Callback = silent) -> Evaluated:
    """Top-1 and loss on the chosen split of the data.

    Raises:
        CompressorError: the model or the data cannot be opened, or do not fit together.
    """
    tell(Stage("opening the model and the data"))
    file = onnx_at(job.model.model, job.model.max_size)
    if file is not None:
        return _evaluate_onnx(job, file, tell)
    subject = open_subject(job.model, job.data, job.loading, job.device)
    assert subject.data is not None
    note_all(subject.notes, tell)
    result = _evaluated(job, subject.way(job.exit), subject.data, tell)
    return replace(
        result,
        model=job.model.model or str(job.model.arch),
        notes=tuple(subject.notes),
        history=tuple(subject.opened.history),
    )


def _evaluate_onnx(job: EvaluateJob, path: Path, tell: Callback) -> Evaluated:
    """A package's graph says what its classes and normalisation are; of any other file the data's own are taken."""
    refuse_definition(path, job.model.arch)
    own = task_of(job.data)
    model = OnnxModel(path, most_gib=job.model.max_size, several=own is not None)
    manifest = manifest_inside(model.metadata, str(path))
    if job.exit is not None:
        model.feeds = fed(packaged(manifest, job.exit, path).feeds)
    if own is not None:
        given = [output.name for output in model.session.get_outputs() if output.name != "exit"]
        if len(given) > 1 and model.gives is None:
            raise FileError(
                f"{path} gives {len(given)} outputs ({listed(given)}), and {own.name} would see the first alone: "
                "evaluate the model that it was exported from"
            )
        note_all(own.notes, tell)
        return replace(_evaluated(job, model, own, tell, " with ONNX Runtime"), model=str(path), notes=tuple(own.notes))
    shape = job.model.shape or tuple(size for size in model.input_shape if size is not None)
    whole = (shape[0], shape[1], shape[2]) if len(shape) == 3 else None
    card = card_inside(model.metadata, str(path))
    data = open_data(job.data, job.loading, input_shape=whole, preparation=card.preparation)
    data.notes.extend(unsaid(str(path), card.preparation, job.data, job.loading))
    numbers = class_numbers(job.loading)
    outputs = len(card.classes or data.classes) if card.classes or numbers is None else 1 + max(numbers.values())
    data = fit_to_model(data, outputs, classes=card.classes, numbers=numbers)
    note_all(data.notes, tell)
    return replace(_evaluated(job, model, data, tell, " with ONNX Runtime"), model=str(path), notes=tuple(data.notes))


def _evaluated(job: EvaluateJob, model: Any, task: Task, tell: Callback, how: str = "") -> Evaluated:
    part = {"test": task.test, "validation": task.validation, "train": task.train}[job.split]
    tell(Stage(f"evaluating on {task.amount(part)}{how}"))
    found = evaluate_on(model, part, task)
    return Evaluated(
        found.figures, found.count, data=job.data, split=job.split, figure=task.figure, amount=task.amount(part)
    )
