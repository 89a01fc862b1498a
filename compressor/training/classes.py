"""Which output of a model each class of the data has: in their order, by the model's names, or by a file's numbers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressor.errors import DataError, FileError, ModelError
from compressor.graph.tensors import device_of
from compressor.report import units
from compressor.training.data import Data
from compressor.training.evaluate import evaluating
from compressor.training.task import Task, first_output

_LARGEST = 16 << 20  # bytes; ImageNet's 21,841 names take one


def fit_to_model(
    data: Data, outputs: int, *, classes: Sequence[str] | None = None, numbers: Mapping[str, int] | None = None
) -> Data:
    """The data as a model with so many outputs takes them: labels by `numbers` (the output of each class name), if any,
    else by the model's class names.

    Where the model knows all of the data's classes and more, labels are renumbered by name. Where it shares no name
    with the data but their number agrees, they are taken in order, with a note.

    Raises DataError when the classes do not fit: names that the model lacks, or another number of them.
    """
    if numbers is not None:
        return _numbered(data, outputs, classes, numbers)
    if classes is not None and tuple(classes) != data.classes and set(classes) & set(data.classes):
        lacking = [name for name in data.classes if name not in classes]
        if lacking:
            raise DataError(
                f"the model lacks {len(lacking)} of the data's classes: {', '.join(lacking[:5])}: remove them"
            )
        data.notes.append(f"the data have {len(data.classes)} of the model's {len(classes)} classes, matched by name")
        return _relabelled(data, [list(classes).index(name) for name in data.classes], classes)
    if len(data.classes) != outputs:
        raise DataError(
            f"{data.name} has {len(data.classes)} classes, the model has {outputs} outputs: give data of {outputs} "
            f"classes or a model with {len(data.classes)} outputs, or say with `classes` which output each class has"
        )
    if classes is not None and tuple(classes) != data.classes:
        data.notes.append("the model's class names are others than the data's: labels are taken in their order")
    return data


def count_outputs(model: nn.Module, data: Task) -> int:
    """How many scores the model gives for an image of the data; the example is one of the validation set's.

    Raises DataError when the model cannot take images of this shape, ModelError when it gives no scores for them.
    """
    with evaluating(model), torch.no_grad():
        x = data.examples(data.validation, 2, device_of(model))
        try:
            scores = first_output(model(x))
        except (RuntimeError, ValueError, AssertionError) as error:
            shape = units.shape(x.shape[1:])
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"the model cannot take {shape} images ({reason}): give its own shape with `input`"
            ) from error
    if scores.ndim != 2 or len(scores) != len(x):
        raise ModelError(f"the model gives {tuple(scores.shape)} for {len(x)} images, not scores (batch, classes)")
    return int(scores.shape[1])


def _numbered(data: Data, outputs: int, classes: Sequence[str] | None, numbers: Mapping[str, int]) -> Data:
    lacking = [name for name in data.classes if name not in numbers]
    beyond = [name for name in data.classes if numbers.get(name, 0) >= outputs]
    if lacking or beyond:
        reason = f"has no number for {lacking[0]!r}" if lacking else f"gives {beyond[0]!r} an output beyond the last"
        raise DataError(
            f"the file of `classes` {reason}: the data have {', '.join(data.classes[:5])}; {outputs} outputs"
        )
    names = list(classes) if classes is not None and len(classes) == outputs else [str(i) for i in range(outputs)]
    for name in data.classes:
        names[numbers[name]] = name
    data.notes.append(f"the data have {len(data.classes)} of the model's {outputs} classes, numbered by `classes`")
    return _relabelled(data, [numbers[name] for name in data.classes], names)


def _relabelled(data: Data, numbers: list[int], classes: Sequence[str]) -> Data:
    number = torch.tensor(numbers)
    sets = {name: getattr(data, name) for name in ("train", "validation", "test")}
    return replace(data, classes=tuple(classes), **{n: s.with_labels(number[s.labels]) for n, s in sets.items()})


def read_class_numbers(path: Path) -> dict[str, int]:
    """The output index of each class name.

    The file is JSON, `{"cat": 281}` or `{"281": "cat"}` or `{"281": ["n02123045", "cat"]}` (ImageNet's class index), or
    text with one name a line, the first line being output 0.

    Raises FileError for a file that is missing or of another form.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_LARGEST + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path} cannot be read as a list of classes ({error})") from error
    if len(text) > _LARGEST:
        raise FileError(f"{path} is larger than any list of classes")
    if not text.lstrip().startswith("{"):
        return {name.strip(): index for index, name in enumerate(text.splitlines()) if name.strip()}
    try:
        return _numbers(json.loads(text))
    except (TypeError, ValueError, RecursionError) as error:
        raise FileError(
            f'{path} does not say which output each class has: write {{"CLASS": INDEX, ...}}, or one name a line'
        ) from error


def _numbers(held: Mapping[str, Any]) -> dict[str, int]:
    if all(type(value) is int and value >= 0 for value in held.values()):
        return dict(held)
    names = {int(index): [value] if isinstance(value, str) else value for index, value in held.items()}
    if not all(isinstance(name, str) for each in names.values() for name in each) or min(names) < 0:
        raise ValueError("neither names nor numbers")
    return {name: index for index, each in names.items() for name in each}
