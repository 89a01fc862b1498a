"""The state of a run, from which it is resumed: written whole, with a checksum, and the last two kept.

A file is a safetensors file of its own kind (see loading.checkpoint): the tensors under names that say where they are,
and everything else as JSON, which is a tensor of bytes, since it grows with the run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressor.errors import CompressorError, FileError, one_line
from compressor.graph.tensors import saved_tensors, transient_buffers
from compressor.loading.checkpoint import extra_state, read, write
from compressor.loading.forms import Packer, from_json, to_json, unpack
from compressor.training import distributed


class Diverged(CompressorError):
    """A loss or a weight is no longer a finite number."""


@dataclass
class TrainState:
    """Where training stands; what `after_step` is given."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int  # counts as the settings' first_epoch does
    batches: int  # optimizer steps per epoch
    batch: int = 0  # of them done in this epoch
    step: int = 0  # done in this phase
    lr: float = 0.0  # of the last step


AfterStep = Callable[[TrainState], bool | None]


@dataclass(frozen=True)
class Saving:
    """Where a phase keeps its checkpoints, and what else its caller wants in them, as plain data and tensors."""

    folder: Path
    phase: str = "train"
    resume: bool = False  # go on from the folder's last checkpoint, if it has one
    every_seconds: float = 300.0  # within an epoch; besides one at every epoch's end
    structure: Callable[[], dict[str, Any]] = dict  # how the model was edited
    method: Callable[[], dict[str, Any]] = dict  # the state of whoever edits it
    # Given both back before the tensors return; where the structure can change, it must make the model fit in place.
    restore: Callable[[dict[str, Any], dict[str, Any]], None] | None = None


@dataclass
class History:
    """What a phase did."""

    rows: list[dict[str, Any]]  # one an epoch, plain data
    notes: list[str]  # lines to tell the user
    optimizer: torch.optim.Optimizer  # with its state, for a phase that follows
    ended_early: bool  # by `after_step`


NAME, PREVIOUS = "state.safetensors", "state.previous.safetensors"
_KIND, _VERSION = "compressor run", 1
_PLAIN = "json"  # the name of the tensor with all that is not a tensor


def write_checkpoint(folder: Path, content: dict[str, Any]) -> Path:
    """Write the newest checkpoint of a folder; the one before it stays as `state.previous.safetensors`.

    `content` holds tensors and plain types, nested in dicts, lists and tuples. At every moment one of the two names is
    a whole checkpoint. Raises FileError when the folder cannot be written or the disk is full; both files are then as
    they were.
    """
    packer = Packer()
    text = to_json(packer.pack(content, "state")).encode()
    packer.tensors[_PLAIN] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    path = folder / NAME
    try:
        write(path, _KIND, {"version": _VERSION}, packer.tensors, folder / PREVIOUS)
    except FileError as error:
        raise FileError(f"{error}: make room or choose another folder") from error
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of one checkpoint file.

    Raises FileError when it is missing, damaged or of another version; nothing in it is ever executed.
    """
    contents = read(path)
    if contents.plain(_KIND) != {"version": _VERSION}:
        raise FileError(f"{path} was written by another version of compressor: start the run again")
    with one_line(f"{path} is damaged (", ")"):
        text = bytes(contents.tensors.pop(_PLAIN).numpy()).decode()
        content = unpack(from_json(text), contents.tensors)
    if not isinstance(content, dict):
        raise FileError(f"{path} is damaged (it holds a {type(content).__name__})")
    return content


@distributed.by_first
def latest_checkpoint(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The newest whole checkpoint of a folder, and a line for every newer one that had to be passed over.

    Raises FileError when there is none.
    """
    passed_over: list[str] = []
    for path in (folder / NAME, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            return read_checkpoint(path), passed_over
        except FileError as error:
            passed_over.append(f"{error}: the one before it is used")
    reason = f" ({passed_over[0].removesuffix(': the one before it is used')})" if passed_over else ""
    raise FileError(f"there is no checkpoint to go on from in {folder}{reason}: start the run again")


@distributed.by_first
def has_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a checkpoint, whole or not."""
    return (folder / NAME).exists() or (folder / PREVIOUS).exists()


def reached(saving: Saving | None) -> dict[str, Any] | None:
    """The checkpoint that the run goes on from, if it does."""
    if saving is None or not saving.resume or not has_checkpoint(saving.folder):
        return None
    return latest_checkpoint(saving.folder)[0]


def model_state(model: nn.Module) -> dict[str, Any]:
    """The tensors of the state dict, the buffers outside it, and what else is in it, as far as a file can hold that."""
    extra, _ = extra_state(model)
    return {"tensors": saved_tensors(model), "buffers": transient_buffers(model), "extra": extra}


def restore_model_(model: nn.Module, state: dict[str, Any]) -> None:
    """Put saved tensors into a model of the same structure, which keeps its parameter objects.

    Raises FileError when names or shapes differ.
    """
    own, saved = saved_tensors(model, keep_vars=True), state["tensors"]
    buffers = {name: each for name, each in transient_buffers(model).items() if name in state["buffers"]}
    both = own.keys() & saved.keys()
    odd = (own.keys() ^ saved.keys()) | {name for name in both if own[name].shape != saved[name].shape}
    if odd:
        raise FileError(f"the checkpoint does not fit the model, such as at {min(odd)}: was it another run's?")
    for tensors, values in ((own, saved), (buffers, state["buffers"])):
        for name, tensor in tensors.items():
            # Not copied into the old memory: with its strides the tensor brings the order in which kernels sum.
            tensor.data = values[name].to(tensor.device, copy=True)
    model.load_state_dict(state["extra"], strict=False)


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """An optimizer's state by parameter names, so that it survives parameters that come and go."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        settings = {key: value for key, value in group.items() if key != "params"}
        groups.append({**settings, "params": [names[id(parameter)] for parameter in group["params"]]})
    state = {names[id(parameter)]: dict(values) for parameter, values in optimizer.state.items()}
    return {"groups": groups, "state": state}


def restore_optimizer_(optimizer: torch.optim.Optimizer, saved: dict[str, Any], model: nn.Module) -> None:
    """Put `optimizer_state` back, into an optimizer of the same kind over the same model."""
    parameters = dict(model.named_parameters())
    order = [name for group in saved["groups"] for name in group["params"]]
    for group, kept in zip(optimizer.param_groups, saved["groups"], strict=True):
        group["params"] = [parameters[name] for name in kept["params"]]
    numbers = {name: number for number, name in enumerate(order)}
    groups = [{**group, "params": [numbers[name] for name in group["params"]]} for group in saved["groups"]]
    optimizer.load_state_dict(
        {"state": {numbers[name]: values for name, values in saved["state"].items()}, "param_groups": groups}
    )
