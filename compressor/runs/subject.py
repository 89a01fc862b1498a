"""What a run works on: a model and the data that fit it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from compressor.errors import DataError, UsageError, cause
from compressor.exporting.forms import form_of
from compressor.loading.arch import data_arguments, find, parse_arch
from compressor.loading.opening import OpenedModel
from compressor.pruning.reconstruction import enough_images, inputs_of
from compressor.report.card import Card
from compressor.report.manifest import chosen
from compressor.routing.network import Routed
from compressor.runs.models import open_model
from compressor.runs.own import task_of
from compressor.runs.settings import Input, ModelSettings
from compressor.training import distributed
from compressor.training.batching import with_normalisation
from compressor.training.classes import count_outputs, fit_to_model, read_class_numbers
from compressor.training.data import Data, open_data, with_input_shape
from compressor.training.evaluate import evaluating
from compressor.training.numerics import choose_device, seed_everything_
from compressor.training.own_task import OPTIONAL, OwnTask
from compressor.training.settings import DataSettings
from compressor.training.task import Pair, Task, called, examples_in, shapes
from compressor.vision.preparation import Preparation

_CHECKED_IMAGES = 8


@dataclass(frozen=True)
class Subject:
    """A model on its device, and the data as the model takes them."""

    opened: OpenedModel
    data: Task | None
    device: torch.device
    sample: Any = None  # an example of the task's own, where its inputs are no images

    @property
    def module(self) -> nn.Module:
        return self.opened.module

    @property
    def example(self) -> Any:
        """One random image (1, channels, height, width), always the same; of a user's task one example of its data."""
        if self.sample is not None:
            return self.sample
        assert self.opened.input_shape is not None
        source = torch.Generator().manual_seed(0)
        return torch.randn(1, *self.opened.input_shape, generator=source).to(self.device)

    @property
    def notes(self) -> list[str]:
        """What the user should know about how model and data were opened."""
        return [*self.opened.notes, *(self.data.notes if self.data else ())]

    def way(self, exit: int | None) -> nn.Module:
        """The model, or one exit of it. Raises UsageError where there is no such exit."""
        return self.module if exit is None else chosen(form_of(self.module, self.example).exits, exit).module

    @property
    def real_images(self) -> Any:
        """Some examples of the validation set as the model takes them; None without data."""
        return None if self.data is None else self.data.examples(self.data.validation, _CHECKED_IMAGES)


def open_subject(
    model: ModelSettings, data: str | None, loading: DataSettings, device: str, like: Subject | None = None
) -> Subject:
    """Open a model, and data for it; an architecture without a file gets random weights and the data's classes.

    Of `like`, opened by the same settings before, the images are taken instead of read again; the model may have
    changed.

    Raises:
        UsageError: flags that contradict each other or what is there, or no input shape.
        FileError, DataError, ModelError: what was given cannot be opened or does not fit together.
    """
    place = choose_device(device)
    own = None if data is None else task_of(data)
    seed_everything_(loading.seed)
    if model.inputs:
        if data is not None:
            raise UsageError("`input` of several, or with a name or type, is for models without data: leave it out")
        return Subject(_opened(model, place), None, place, _made(model.inputs, place))
    if own is not None:
        return _with_task(model, own, loading, place)
    if data is None:
        opened = _opened(model, place)
        if opened.input_shape is None:
            raise UsageError("the model does not say what images it takes: give `input`, such as `input` 3x224x224")
        if loading.mean or loading.std:
            usual = opened.preparation or Preparation.usual(*_images(opened.input_shape)[1:])
            opened = replace(opened, preparation=with_normalisation(usual, loading, opened.input_shape[0]))
        return Subject(opened, None, place)
    if like is not None and isinstance(like.data, Data):
        again = _opened(model, place, _fitting(model, like.data) if model.model is None else {})
        return replace(like, opened=replace(like.opened, module=again.module))
    if model.model is not None:
        opened = _opened(model, place)
        found = _open_data(data, loading, opened.input_shape, opened.preparation)
        found.notes.extend(unsaid(model.model, opened.preparation, data, loading))
    else:
        found = _open_data(data, loading, _declared_shape(model) if data.startswith("folder:") else None)
        opened = _opened(model, place, _fitting(model, found))
        found = found if opened.input_shape is None else with_input_shape(found, _images(opened.input_shape))
    opened = replace(opened, input_shape=found.input_shape)
    outputs = count_outputs(opened.module, found)
    found = fit_to_model(found, outputs, classes=opened.classes, numbers=class_numbers(loading))
    classes = found.classes if loading.classes else opened.classes or found.classes
    return Subject(replace(opened, classes=classes, preparation=found.preparation), found, place)


def _with_task(model: ModelSettings, task: OwnTask, loading: DataSettings, place: torch.device) -> Subject:
    """A model, opened as it is, which has to run on what the task gives it."""
    for name in ("classes", "mean", "std"):
        if getattr(loading, name) is not None:
            raise UsageError(f"`{name}` is for labelled images, and {task.name} makes its own batches: leave it out")
    opened = _opened(model, place)
    sample = task.examples(task.validation, 1, place)
    if not examples_in(sample):
        raise DataError(f"{task.name}: inputs gave a batch without examples, {shapes(sample)}")
    with evaluating(opened.module), torch.no_grad():
        try:
            called(opened.module, sample)
        except Exception as error:
            hint = " (a list that data gives is one of batches)" if task.validation.is_list else ""
            raise DataError(
                f"the model does not take what inputs of {task.name} gives, {shapes(sample)}: {cause(error)}{hint}"
            ) from error
    shape = tuple(sample.shape[1:]) if isinstance(sample, Tensor) else None
    return Subject(replace(opened, input_shape=shape), task, place, sample)


def _made(inputs: Sequence[Input], place: torch.device) -> Any:
    """An example of several inputs, always the same: noise, zeros where they are whole numbers or truths."""
    source = torch.Generator().manual_seed(0)
    made = []
    for each in inputs:
        kind, sizes = getattr(torch, each.kind or "float32"), (1, *each.sizes)
        noise = torch.randn(sizes, generator=source)
        made.append((noise if kind.is_floating_point else torch.zeros(sizes)).to(place, kind))
    if inputs[0].name is not None:
        return {each.name: tensor for each, tensor in zip(inputs, made, strict=True)}
    return made[0] if len(made) == 1 else tuple(made)


def check_tells(subject: Subject, verb: str, *methods: str) -> None:
    """Raise UsageError where a user's task lacks what a verb looks at: one of these methods, one tensor as input."""
    task = subject.data
    if not isinstance(task, OwnTask):
        return
    if not any(task.has(method) for method in methods):
        forms = " or ".join(f"`{OPTIONAL[method]}`" for method in methods)
        raise UsageError(f"{verb} looks at single examples: give {task.name} a method {forms}")
    if subject.opened.input_shape is None:
        raise UsageError(f"{verb} is for networks of one input, a tensor: inputs of {task.name} gives several")


def unsaid(model: str, preparation: Preparation | None, data: str, loading: DataSettings) -> list[str]:
    """A note where the normalisation of a model's images is not known."""
    if preparation is not None or loading.mean is not None:
        return []
    return [
        f"{model} does not say how its images are normalised: as the training set of {data} is; give `mean` and `std` "
        "if it was trained otherwise"
    ]


def class_numbers(loading: DataSettings) -> dict[str, int] | None:
    """The output of each class as the settings' file says; None without one."""
    return None if loading.classes is None else read_class_numbers(Path(loading.classes).expanduser())


def score_batches(subject: Subject, images: int, seed: int) -> Sequence[Pair]:
    """Random training images, not augmented, for methods that take gradients; none without data."""
    if subject.data is None:
        return ()
    return list(subject.data.drawn(subject.data.train, images, seed, subject.device, 32))


def calibration_inputs(subject: Subject, seed: int, most: int | None = None) -> list[Any]:
    """Random training images, not augmented, as many as a reconstruction looks at, or `most`; none without data."""
    if subject.data is None:
        return []
    shape = next(leaf for leaf in tree_leaves(subject.example) if isinstance(leaf, Tensor)).shape[1:]
    count = enough_images(shape) if most is None else min(most, enough_images(shape))
    batches = subject.data.drawn(subject.data.train, count, seed, subject.device)
    return inputs_of((x for x, _ in batches), subject.example, subject.module)


def _opened(model: ModelSettings, place: torch.device, more: Mapping[str, int] = MappingProxyType({})) -> OpenedModel:
    """On its device; `more` goes to the architecture, before what the settings say."""
    opened = open_model(
        model.model,
        arch=model.arch,
        arch_arguments={**more, **dict(model.arch_arg)},
        input_shape=model.shape,
        weights=model.weights,
        trust=model.trust,
        max_size=model.max_size,
    )
    return replace(opened, module=opened.module.to(place))


def _fitting(model: ModelSettings, data: Data) -> dict[str, int]:
    """The arguments with which the architecture has the data's classes and channels."""
    if model.arch is None:
        raise UsageError("no model: give a file, or `arch` for a network with random weights")
    arch = parse_arch(model.arch, dict(model.arch_arg))
    channels = model.shape[0] if model.shape else data.input_shape[0]
    return data_arguments(arch, num_classes=len(data.classes), channels=channels)


def card_of(subject: Subject) -> Card:
    """What a file for another runtime says of its model."""
    opened = subject.opened
    return Card(opened.classes, opened.preparation, opened.history, opened.measurements.get("certificate"))


def _declared_shape(model: ModelSettings) -> tuple[int, ...] | None:
    """The input shape of an architecture without a file, as far as it is known before the network is built."""
    if model.input is not None or model.arch is None:
        return model.shape
    return find(parse_arch(model.arch, dict(model.arch_arg)), named=True).shape()


def _open_data(
    spec: str, loading: DataSettings, shape: tuple[int, ...] | None, preparation: Preparation | None = None
) -> Data:
    if loading.download and distributed.size() > 1:  # one process on each machine fetches, the others wait
        if distributed.first_here():
            open_data(spec, replace(loading, mean=None, std=None))
        distributed.any_of(0)
    return open_data(spec, loading, input_shape=None if shape is None else _images(shape), preparation=preparation)


def _images(shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise UsageError(f"the model takes inputs of shape {shape}, data sets hold images (channels, height, width)")
    return shape[0], shape[1], shape[2]


def is_routed(module: nn.Module) -> bool:
    """Whether a network, or one inside it, leaves by early exits."""
    return any(isinstance(each, Routed) for each in module.modules())


def refuse_routed(subject: Subject, verb: str) -> None:
    """Raises UsageError for a routed network, whose early exits are fitted to its layers."""
    if is_routed(subject.module):
        raise UsageError(
            f"this network is routed, and its early exits and router are fitted to its layers: {verb} the network that "
            "it was made of, then route the result"
        )
