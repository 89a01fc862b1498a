"""Run the user's own FILE.py to get the function that builds a network; nothing else imports user code.

A checkpoint of such an architecture records the file's path and hash. Both come from whoever made the checkpoint, so
neither says that running the file is wanted: a folder from elsewhere may hold a checkpoint and a script that match.
What is wanted is what was once given as --arch on this machine: path, function and hash, kept in
$XDG_STATE_HOME/compressor/architectures.json (~/.local/state where that is not set).
"""

import contextlib
import hashlib
import inspect
import json
import traceback
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from compressor.errors import FileError, UsageError, first_line, shown
from compressor.files.paths import own_folder, write_whole
from compressor.loading import imports

_LARGEST_SOURCE = 10 << 20  # bytes of a file of code


@dataclass(frozen=True)
class Loaded:
    """A function out of a file, and the file's hash at the time."""

    call: Callable[..., nn.Module]
    accepts: frozenset[str] | None  # names of its arguments; None where it takes any
    sha256: str
    input_shape: tuple[int, ...] | None  # the file's INPUT_SHAPE, where it has one
    function: Callable[..., Any]  # as it stands in the file


def load(path: Path, function: str, *, expected: str | None, named: bool) -> Loaded:
    """Import the file and take `function` from it.

    `expected` is the hash that a checkpoint recorded, `named` whether the user gave this file in this very command.
    Raises UsageError where the file or the function is missing, was changed since (and is not named), or was never
    named on this machine; FileError where importing it fails.
    """
    if not named and not (expected and is_known(path, function, expected)):
        # And not even read: the path is the checkpoint's, and may be a device.
        name = shown(f"{path}:{function}")
        raise UsageError(
            f"the checkpoint's architecture file {name} is code that was never named on this machine: if you trust it, "
            f"give `arch` {name}"
        )
    try:
        source = _read(path)
    except (OSError, ValueError) as error:
        told = error.strerror if isinstance(error, OSError) else error
        reason = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read: {told}"
        raise UsageError(f"the architecture file {path} {reason}: give `arch` FILE.py:{function}") from error
    sha256 = hashlib.sha256(source).hexdigest()
    if named:
        remember(path, function, sha256)
    elif sha256 != expected:
        raise UsageError(
            f"the architecture file {path} has changed since the checkpoint was written: if it still fits, give "
            f"`arch` {path}:{function}"
        )
    return _loaded(path, function, source)


def load_own(path: Path, function: str) -> Loaded:
    """Take a function from a file that came with the package."""
    try:
        return _loaded(path, function, _read(path))
    except OSError as error:
        raise UsageError(f"the sample model {path} is not installed ({error.strerror})") from error


def _loaded(path: Path, function: str, source: bytes) -> Loaded:
    place, sha256 = imports.Place.of(path, source), hashlib.sha256(source).hexdigest()
    try:
        module = imports.module_of(place, source, sha256)
    except (Exception, SystemExit) as error:
        raise FileError(f"{path} cannot be imported: {told(error, path)}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise UsageError(f"{path} has no function {function!r}; {_defines(source)}")
    call = _checked(found, f"{path}:{function}", place)
    return Loaded(call, _argument_names(found), sha256, _input_shape(module, path), found)


def was_named(path: Path, function: str) -> bool:
    """Whether this function of the file as it is now was asked for by name on this machine."""
    try:
        return path.is_file() and is_known(path, function, hashlib.sha256(_read(path)).hexdigest())
    except (OSError, ValueError):
        return False


def remember(path: Path, function: str, sha256: str) -> None:
    """Note that `function` of the file `path`, with this content, was asked for by name.

    Where nothing can be written (no home folder) nothing is kept: --arch is then needed each time.
    """
    entries, entry = _entries(), [str(path.resolve()), function, sha256]
    if entry not in entries:
        with contextlib.suppress(FileError, RuntimeError):
            write_whole(_store(), json.dumps([*entries, entry], indent=1))


def is_known(path: Path, function: str, sha256: str) -> bool:
    """Whether `function` of the file `path` with this content was given as --arch before."""
    try:
        return [str(path.resolve()), function, sha256] in _entries()
    except (OSError, RuntimeError, ValueError):  # a name that no file can have, a link to itself
        return False


def state_folder() -> Path:
    """Where this machine's list is kept; it may not exist yet."""
    return own_folder("XDG_STATE_HOME", ".local/state")


def _store() -> Path:
    return state_folder() / "architectures.json"


def _entries() -> list[list[str]]:
    try:
        entries = json.loads(_store().read_text())
    except (OSError, RuntimeError, ValueError):
        return []
    return entries if isinstance(entries, list) else []


def choices(path: Path) -> str | None:
    """What a file defines, in words; None where it cannot be read."""
    try:
        return _defines(_read(path))
    except (OSError, ValueError):
        return None


def _defines(source: bytes) -> str:
    return f"it defines: {', '.join(imports.defined(source)) or 'none'}"


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
            raise UsageError(f"{name} called with ({given}) failed: {told(error, place.path)}") from error
        if not isinstance(built, nn.Module):
            raise UsageError(f"{name} returned a {type(built).__name__}, not an nn.Module")
        return built

    return call


def _argument_names(function: Callable[..., Any]) -> frozenset[str] | None:
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # some classes written in C tell nothing
        return None
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    return None if takes_any else frozenset(parameters)


def _input_shape(module: types.ModuleType, path: Path) -> tuple[int, ...] | None:
    shape = getattr(module, "INPUT_SHAPE", None)
    if shape is None:
        return None
    if not isinstance(shape, (tuple, list)) or not all(isinstance(each, int) and each > 0 for each in shape):
        raise FileError(f"INPUT_SHAPE of {path} is {shape!r}: it has to be (channels, height, width)")
    return tuple(shape)


def told(error: BaseException, path: Path) -> str:
    """The error and the last line of the user's file that led to it."""
    own = str(path.resolve())
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == own]
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {first_line(error)}{where}"
