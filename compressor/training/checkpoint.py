"""Checkpoints that survive being killed at any moment: checksummed, written beside, renamed, the last two kept.

A file is one header line, `compressor checkpoint 1 SHA256`, and after it what torch.save writes; the checksum is of
the latter.
"""

import hashlib
import io
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import FileError
from compressor.limits import check_size
from compressor.loading.pickles import read_plain
from compressor.training import distributed

NAME, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
_MAGIC = b"compressor checkpoint 1 "
_HEADER_BYTES = len(_MAGIC) + 64 + 1  # the checksum in hexadecimal, a line end

_PLAIN = (Tensor, str, bytes, int, float, bool, type(None), torch.dtype, torch.Size)


def write_checkpoint(folder: Path, content: dict[str, Any]) -> Path:
    """Write the newest checkpoint of a folder; the one before it stays as `checkpoint.previous.pt`.

    `content` holds tensors and plain types, nested in dicts, lists and tuples. At every moment one of the two names is
    a whole checkpoint. Raises FileError when the folder cannot be written or the disk is full; both files are then as
    they were.
    """
    _check_plain(content, "checkpoint")
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getbuffer()
    path, temporary = folder / NAME, folder / f"{NAME}.tmp"
    try:
        with temporary.open("wb") as file:
            file.write(_MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n")
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            path.replace(folder / PREVIOUS)
        temporary.replace(path)
        _sync_folder(folder)
    except OSError as error:
        raise FileError(
            f"the checkpoint {path} cannot be written ({error.strerror}): make room or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of one checkpoint file.

    Raises FileError when it is missing, damaged or of another version; nothing in it is ever executed.
    """
    try:
        check_size(f"the checkpoint {path} has", path.stat().st_size)
        with path.open("rb") as file:
            header, payload = file.read(_HEADER_BYTES), file.read()
    except OSError as error:
        raise FileError(f"the checkpoint {path} cannot be read ({error.strerror})") from error
    if not header.startswith(_MAGIC):
        raise FileError(f"{path} is no checkpoint of this version: give the run folder that holds checkpoint.pt")
    if hashlib.sha256(payload).hexdigest().encode() != header[len(_MAGIC) : -1]:
        raise FileError(f"the checkpoint {path} is damaged (its checksum is wrong)")
    foreign = f"the checkpoint {path} does not hold plain data: it was not written by this program"
    try:
        content = read_plain(io.BytesIO(payload), path)
    except FileError as error:
        raise FileError(foreign) from error
    if not isinstance(content, dict):
        raise FileError(foreign)
    return content


def latest_checkpoint(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The newest whole checkpoint of a folder, and a line for every newer one that had to be passed over.

    Raises FileError when there is none.
    """
    return distributed.from_first(lambda: _latest(folder))


def _latest(folder: Path) -> tuple[dict[str, Any], list[str]]:
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


def has_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a checkpoint, whole or not."""
    return distributed.from_first(lambda: (folder / NAME).exists() or (folder / PREVIOUS).exists())


def model_state(model: nn.Module) -> dict[str, Any]:
    """The state dict on the CPU; strides are kept, since kernels may sum in another order for others."""
    return {name: compact(value) for name, value in model.state_dict().items()}


def compact(value: Any) -> Any:
    """A tensor on the CPU that owns no more memory than it shows; a view would be saved with all that is behind it."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu()
    return value.clone() if value.untyped_storage().nbytes() > value.numel() * value.element_size() else value


def restore_model_(model: nn.Module, state: dict[str, Any]) -> None:
    """Put saved tensors into a model of the same structure, which keeps its parameter objects.

    Raises FileError when names or shapes differ.
    """
    own = model.state_dict(keep_vars=True)
    odd = own.keys() ^ state.keys()
    odd |= {n for n in own.keys() & state.keys() if isinstance(own[n], Tensor) and own[n].shape != state[n].shape}
    if odd:
        raise FileError(f"the checkpoint does not fit the model, such as at {sorted(odd)[0]}: was it another run's?")
    for name, tensor in own.items():
        if isinstance(tensor, Tensor):
            # Not copied into the old memory: with its strides the tensor brings the order in which kernels sum.
            tensor.data = state[name].to(tensor.device, copy=True)


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """An optimizer's state by parameter names, so that it survives parameters that come and go."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        settings = {key: value for key, value in group.items() if key != "params"}
        groups.append({**settings, "params": [names[id(parameter)] for parameter in group["params"]]})
    state = {
        names[id(parameter)]: {key: compact(value) for key, value in values.items()}
        for parameter, values in optimizer.state.items()
    }
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


def _sync_folder(folder: Path) -> None:
    """Make the renames last through a power cut, where the system lets a folder be synchronised."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_plain(value: Any, place: str) -> None:
    """Refuse at once what could not be read back without executing code."""
    if type(value) in (dict, OrderedDict):
        for key, each in value.items():
            assert type(key) in (str, int), f"{place} has the key {key!r}"
            _check_plain(each, f"{place}.{key}")
    elif type(value) in (list, tuple):
        for number, each in enumerate(value):
            _check_plain(each, f"{place}[{number}]")
    else:
        assert type(value) in _PLAIN, f"{place} is a {type(value).__name__}, which cannot be in a checkpoint"
