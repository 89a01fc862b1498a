"""Open a model from a file or from the name of an architecture, without running anybody's code unasked."""

import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from compressor.errors import FileError, UsageError, first_line, one_line, shown
from compressor.files.limits import LARGEST_GIB
from compressor.graph.program import trainable
from compressor.graph.tensors import saved_tensors, transient_buffers
from compressor.loading.arch import Arch, find, parse_arch
from compressor.loading.checkpoint import KIND, Checkpoint, Origin, read, read_checkpoint
from compressor.loading.content import Content, recognise
from compressor.loading.networks import blank
from compressor.loading.pickles import read_pickle, rebuilt, skeleton
from compressor.loading.proportion import Proportion
from compressor.loading.stand_ins import StandIn
from compressor.loading.weights import find_weights, fit, put
from compressor.surgery.structure import apply_
from compressor.vision.preparation import Preparation

STRUCTURE = "structure"  # the kind of a step in which only sizes changed, by surgery

# Kind of any other step -> what gives the network after it, of the network before and the step; rooms above bring them.
Rebuilders = Mapping[str, Callable[[nn.Module, Mapping[str, Any]], nn.Module]]
NONE: Rebuilders = {}


def apply_steps(
    module: nn.Module,
    steps: Iterable[Mapping[str, Any]],
    path: Path,
    rebuilders: Rebuilders,
    allowed: Proportion | None = None,
) -> nn.Module:
    """The network that the steps made of a fresh build, in their order; its weights are still to be loaded.

    Raises FileError for a step that is damaged, unknown, does not fit or gets out of proportion.
    """
    for step in steps:
        kind = step.get("kind")
        with (
            one_line(f"{path} is a damaged checkpoint (its step {kind!r}: "),
            nullcontext() if allowed is None else allowed.watching(),
        ):
            if kind == STRUCTURE:
                apply_(module, step)
            elif isinstance(kind, str) and kind in rebuilders:
                module = rebuilders[kind](module, step)
            else:
                raise FileError(f"{path} is a damaged checkpoint, or a newer one: it has a step of the kind {kind!r}")
        if allowed is not None:
            allowed.check(module)
    return module


EXTRA = "compressor.json"  # our own file in the archive: classes, normalisation, history


def open_program(path: Path, content: Content, trust: bool) -> tuple[nn.Module, dict[str, Any]]:
    """The network that a program is, and what is known about it, by the fields of OpenedModel.

    A checkpoint cannot be saved of it without an architecture. Raises FileError without `trust`, since torch runs what
    the file holds.
    """
    if not trust:
        raise FileError(
            f"{path} holds code ({content.value}), and opening one runs what it holds: give `trust` if you know who "
            "made it, or a state dict with `arch`"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's about torch's own internals
            if content is Content.SCRIPT:
                return torch.jit.load(path, map_location="cpu"), {}
            extra = {EXTRA: ""}
            program = torch.export.load(path, extra_files=extra)
            return trainable(program), _about(program, json.loads(extra[EXTRA] or "{}"))
    except Exception as error:
        raise FileError(f"{path} cannot be opened ({type(error).__name__}: {first_line(error)})") from error


def _about(program: ExportedProgram, told: dict[str, Any]) -> dict[str, Any]:
    """What export wrote beside the program; of another's program the size of its images, where it is fixed."""
    shape = next(
        node.meta["val"].shape for node in program.graph.nodes if node.name in program.graph_signature.user_inputs
    )
    fixed = tuple(shape[1:]) if all(isinstance(size, int) for size in shape[1:]) else None
    fields = {key: told.get(key) for key in ("input_shape", "classes", "history")}
    found: dict[str, Any] = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
    if isinstance(told.get("preparation"), dict):
        found["preparation"] = Preparation.from_json(told["preparation"])
    return {"input_shape": fixed, **found}


@dataclass(frozen=True)
class OpenedModel(Origin):
    """A model ready for use, and all that is known about it."""

    module: nn.Module  # in eval mode, float32, on the CPU
    notes: tuple[str, ...] = ()  # what the user should be told about how it was opened


def open_model(
    path: str | Path | None,
    *,
    arch: str | None = None,
    arch_arguments: Mapping[str, Any] | None = None,
    input_shape: tuple[int, ...] | None = None,
    weights: str | None = None,
    trust: bool = False,
    max_size: float = LARGEST_GIB,
    rebuilders: Rebuilders = NONE,
) -> OpenedModel:
    """Open a model: compressor's checkpoint, a state dict with `arch`, a pickled module, or `arch` alone.

    `path` None builds `arch` with random weights. `arch_arguments` go to the architecture's function.
    `input_shape` (channels, height, width) is laid over what the file or the architecture say. `weights` are the keys,
    with dots between them, of one set of weights in a file of several. `trust` lets a pickle or a program run any
    code. A file of more than `max_size` GiB is refused. `rebuilders` make again what was made of a network. Raises
    FileError and UsageError; the message is one line.
    """
    named = None if arch is None else parse_arch(arch, arch_arguments)
    if path is None:
        if named is None:
            raise UsageError("no model: give a file, or `arch` for a network with random weights")
        opened = _random(named)
    else:
        opened = _from_file(Path(path), named, weights, trust, max_size, rebuilders)
    if input_shape is not None:
        if not input_shape or not all(isinstance(size, int) and size > 0 for size in input_shape):
            raise UsageError(f"the input shape {input_shape} is not (channels, height, width)")
        opened = replace(opened, input_shape=tuple(input_shape))
    return _ready(opened)


def _random(arch: Arch) -> OpenedModel:
    definition = find(arch, named=True)
    module = definition.build()
    note = f"{definition.arch} has random weights: no file was given"
    return OpenedModel(module, arch=definition.arch, input_shape=definition.shape(), notes=(note,))


def _from_file(
    path: Path, named: Arch | None, weights: str | None, trust: bool, max_size: float, rebuilders: Rebuilders
) -> OpenedModel:
    content, about = recognise(path, max_size), dict[str, Any]()
    if content is Content.ONNX:
        raise FileError(f"{path} is an ONNX model: compressor.load and the commands open it")
    if content is Content.SAFETENSORS:
        contents = read(path, max_size)
        if KIND in contents.metadata:
            if weights is not None:
                raise UsageError(f"{path} is compressor's own and has one set of weights: leave `weights` out")
            return _from_checkpoint(read_checkpoint(contents), path, named, trust, rebuilders)
        held: Any = contents.tensors
    elif content in (Content.PROGRAM, Content.SCRIPT):
        held, about = open_program(path, content, trust)
    else:
        held = read_pickle(path, trust=trust, most_gib=max_size)
    found, notes = find_weights(held, path, weights)
    if named is None and not isinstance(found, dict):
        module = rebuilt(found, path) if isinstance(found, StandIn) else found
        return OpenedModel(module, notes=tuple(notes), **about)
    found = skeleton(found, path) if isinstance(found, StandIn) else found
    state = found.state_dict() if isinstance(found, nn.Module) else found
    if named is None:
        first = next(iter(state))
        raise UsageError(
            f"{path} holds weights only ({len(state)} tensors, the first is {first!r}): say how the network is built "
            "with `arch` torchvision:NAME, timm:NAME or FILE.py:FUNCTION"
        )
    module, definition, more = fit(state, find(named, named=True), path)
    # How images are prepared is the publisher's word only where the classes are the published ones.
    classes = definition.arch.arguments.get("num_classes", definition.num_classes)
    preparation = definition.preparation if classes == definition.num_classes else None
    shape, arch = definition.shape(), definition.arch
    return OpenedModel(module, arch=arch, input_shape=shape, preparation=preparation, notes=(*notes, *more))


def _from_checkpoint(
    held: Checkpoint, path: Path, named: Arch | None, trust: bool, rebuilders: Rebuilders
) -> OpenedModel:
    notes: tuple[str, ...] = ()
    allowed = Proportion.to(held.state.values(), path)
    arch = held.arch
    if arch is None:
        if named is not None:
            raise UsageError(f"{path} holds its whole network: leave `arch` away")
        with one_line(f"{path} is a damaged checkpoint ("):
            module = blank(held.blueprint or {}, allowed.most_bytes)
    else:
        if named is not None:
            chosen = replace(named, arguments={**arch.arguments, **named.arguments})
            definition = find(chosen, named=True)
        else:
            definition = find(_located(arch, path), named=trust)
        if arch.sha256 not in (None, definition.arch.sha256):
            notes = (f"{definition.arch.name} is not the code that the checkpoint was written with",)
        arch = definition.arch
        module = allowed.build(definition)
    steps = (*held.steps, {**held.structure, "kind": STRUCTURE})
    module = apply_steps(module, steps, path, rebuilders, allowed)
    _fill_(module, held, path)
    known = {each.name: getattr(held, each.name) for each in fields(Origin)}
    return OpenedModel(module, notes=notes, **{**known, "arch": arch})


def _fill_(module: nn.Module, held: Checkpoint, path: Path) -> None:
    """Put the file's tensors into a network of the same structure, in the same memory format.

    Raises FileError where they do not fit.
    """
    state = dict(held.state)
    for name, buffer in transient_buffers(module).items():
        saved = state.pop(name, buffer)
        if not isinstance(saved, Tensor) or saved.shape != buffer.shape:
            raise FileError(f"{path} is a damaged checkpoint ({shown(name)} does not fit its network)")
        buffer.data = saved.to(buffer.dtype)
    put(state, module, held.built_from, path)
    for name, tensor in saved_tensors(module, keep_vars=True).items():
        if name in state and state[name].stride() != tensor.stride():
            tensor.data = state[name].to(tensor.dtype)


def _located(arch: Arch, checkpoint: Path) -> Arch:
    """The architecture with its FILE.py where it is: from the current folder, else from one that holds the checkpoint.

    Only a place to look: whether the file may run is decided by who named it.
    """
    path, _, function = arch.name.rpartition(":")
    places = [Path(path), *(folder / path for folder in checkpoint.resolve().parents)]
    try:
        found = next((place for place in places if place.is_file()), None)
    except OSError:  # a name that no file can have; the error follows when it is read
        found = None
    if arch.sha256 is None or found is None:
        return arch
    return replace(arch, name=f"{found}:{function}")


def _ready(opened: OpenedModel) -> OpenedModel:
    """In eval mode and float32, with a note where the file had another type."""
    module = opened.module.eval()
    types = {each.dtype for each in saved_tensors(module).values() if each.is_floating_point()}
    if types - {torch.float32}:
        module.float()
        stored = ", ".join(sorted(str(each).removeprefix("torch.") for each in types - {torch.float32}))
        return replace(opened, notes=(*opened.notes, f"the network is {stored}; it is opened as float32"))
    return opened
