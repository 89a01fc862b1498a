"""Measure the accuracy of a model or of an .onnx file: `compressor evaluate`."""

from dataclasses import dataclass
from pathlib import Path

from compressor.errors import UsageError
from compressor.exporting.runtime import OnnxModel, onnx_at
from compressor.report.manifest import card_inside, fed, manifest_inside, packaged
from compressor.runs.looking import EvaluateJob
from compressor.runs.stages import Callback, Stage, note_all, silent
from compressor.runs.subject import class_numbers, open_subject, unsaid
from compressor.training.data import AnySet, Data, fit_to_model, open_data
from compressor.training.evaluate import evaluate as evaluate_on


@dataclass(frozen=True)
class Evaluated:
    """How well a model does on one split of a data set."""

    model: str
    data: str
    split: str
    top1: float  # fraction in 0..1
    loss: float  # mean cross-entropy in nats
    count: int  # images
    notes: tuple[str, ...] = ()
    history: tuple[str, ...] = ()  # the commands that made the model, the last one last


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
    tell(Stage(f"evaluating on {len(_images(job, subject.data)):,} images"))
    result = evaluate_on(subject.way(job.exit), _images(job, subject.data), subject.data)
    name = job.model.model or str(job.model.arch)
    figures = (result.top1, result.loss, result.count)
    history = tuple(subject.opened.history)
    return Evaluated(name, job.data, job.split, *figures, tuple(subject.notes), history)


def _evaluate_onnx(job: EvaluateJob, path: Path, tell: Callback) -> Evaluated:
    """A package's graph says what its classes and normalisation are; of any other file the data's own are taken."""
    if job.model.arch is not None:
        raise UsageError(f"{path} is an ONNX model and brings its architecture: leave --arch out")
    model = OnnxModel(path, most_gib=job.model.max_size)
    manifest = manifest_inside(model.metadata, str(path))
    if job.exit is not None:
        model.feeds = fed(packaged(manifest, job.exit, path).feeds)
    shape = job.model.input or tuple(size for size in model.input_shape if size is not None)
    whole = (shape[0], shape[1], shape[2]) if len(shape) == 3 else None
    card = card_inside(model.metadata, str(path))
    data = open_data(job.data, job.loading, input_shape=whole, preparation=card.preparation)
    data.notes.extend(unsaid(str(path), card.preparation, job.data, job.loading))
    numbers = class_numbers(job.loading)
    outputs = len(card.classes or data.classes) if card.classes or numbers is None else 1 + max(numbers.values())
    data = fit_to_model(data, outputs, classes=card.classes, numbers=numbers)
    note_all(data.notes, tell)
    tell(Stage(f"evaluating on {len(_images(job, data)):,} images with ONNX Runtime"))
    result = evaluate_on(model, _images(job, data), data)
    return Evaluated(str(path), job.data, job.split, result.top1, result.loss, result.count, tuple(data.notes))


def _images(job: EvaluateJob, data: Data) -> AnySet:
    return {"test": data.test, "validation": data.validation, "train": data.train}[job.split]
