"""Run the user's own FILE.py to get the function that builds a network; nothing else imports user code."""

from __future__ import annotations

import hashlib
import inspect
import traceback
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from compressor.errors import FileError, UsageError
from compressor.loading import imports, known
from compressor.text import first_line, shown

_LARGEST_SOURCE = 10 << 20  # bytes of a file of code


@dataclass(frozen=True)
class Loaded:
    """A function out of a file, and the file's hash at the time."""

    call: Callable[..., nn.Module]
    accepts: frozenset[str] | None  # names of its arguments; None where it takes any
    sha256: str
    input_shape: tuple[int, ...] | None  # the file's INPUT_SHAPE, where it has one


def load(path: Path, function: str, *, expected: str | None, named: bool) -> Loaded:
    """Import the file and take `function` from it.

    `expected` is the hash that a checkpoint recorded, `named` whether the user gave this file in this very command.
    Raises UsageError where the file or the function is missing, was changed since (and is not named), or was never
    named on this machine; FileError where importing it fails.
    """
    name = f"{path}:{function}"
    if not named and not (expected and known.is_known(path, function, expected)):
        raise _never_named(path, function)  # and not even read: the path is the checkpoint's, and may be a device
    try:
        source = _read(path)
    except (OSError, ValueError) as error:
        told = error.strerror if isinstance(error, OSError) else error
        reason = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read: {told}"
        raise UsageError(f"the architecture file {path} {reason}: give --arch FILE.py:{function}") from error
    sha256 = hashlib.sha256(source).hexdigest()
    if named:
        known.remember(path, function, sha256)
    elif sha256 != expected:
        raise UsageError(
            f"the architecture file {path} has changed since the checkpoint was written: if it still fits, give "
            f"--arch {name}"
        )
    elif not known.is_known(path, function, sha256):
        raise _never_named(path, function)
    return _loaded(path, function, source, sha256)


def load_own(path: Path, function: str) -> Loaded:
    """Take a function from a file that came with the package."""
    try:
        source = _read(path)
    except OSError as error:
        raise UsageError(f"the sample model {path} is not installed ({error.strerror})") from error
    return _loaded(path, function, source, hashlib.sha256(source).hexdigest())


def _loaded(path: Path, function: str, source: bytes, sha256: str) -> Loaded:
    place = imports.Place.of(path, source)
    try:
        module = imports.module_of(place, source, sha256)
    except (Exception, SystemExit) as error:
        raise FileError(f"{path} cannot be imported: {_told(error, path)}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise UsageError(f"{path} has no function {function!r}; {_defines(source)}")
    call = _checked(found, f"{path}:{function}", place)
    return Loaded(call, _argument_names(found), sha256, _input_shape(module, path))


def was_named(path: Path, function: str) -> bool:
    """Whether this function of the file as it is now was asked for by name on this machine."""
    try:
        return path.is_file() and known.is_known(path, function, hashlib.sha256(_read(path)).hexdigest())
    except (OSError, ValueError):
        return False


def choices(path: Path) -> str | None:
    """What a file defines, in words; None where it cannot be read."""
    try:
        return _defines(_read(path))
    except (OSError, ValueError):
        return None


def _defines(source: bytes) -> str:
    return f"it defines: {', '.join(imports.defined(source)) or 'none'}"


def _never_named(path: Path, function: str) -> UsageError:
    name = shown(f"{path}:{function}")
    return UsageError(
        f"the checkpoint's architecture file {name} is code that was never named on this machine: if you trust it, "
        f"give --arch {name}"
    )


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        source = file.read(_LARGEST_SOURCE + 1)
    if len(source) > _LARGEST_SOURCE:
        raise ValueError(f"it has more than {_LARGEST_SOURCE:,} bytes")
    return source


def _checked(function: Callable[..., Any], name: str, place: imports.Place) -> Callable[..., nn.Module]:
    def call(**arguments: Any) -> nn.Module:
        try:
            with imports.importing(place):  # some import only when they are called
                built = function(**arguments)
        except Exception as error:
            given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
            raise UsageError(f"{name} called with ({given}) failed: {_told(error, place.path)}") from error
        if not isinstance(built, nn.Module):
            raise UsageError(f"{name} returned a {type(built).__name__}, not an nn.Module")
        return built

    return call


def _argument_names(function: Callable[..., Any]) -> frozenset[str] | None:
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # some classes written in C tell nothing
        return None
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return None
    return frozenset(parameters)


def _input_shape(module: types.ModuleType, path: Path) -> tuple[int, ...] | None:
    shape = getattr(module, "INPUT_SHAPE", None)
    if shape is None:
        return None
    if not isinstance(shape, (tuple, list)) or not all(isinstance(each, int) and each > 0 for each in shape):
        raise FileError(f"INPUT_SHAPE of {path} is {shape!r}: it has to be (channels, height, width)")
    return tuple(shape)


def _told(error: BaseException, path: Path) -> str:
    """The error and the last line of the user's file that led to it."""
    own = str(path.resolve())
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == own]
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {first_line(error)}{where}"
