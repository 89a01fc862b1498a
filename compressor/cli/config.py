"""Settings from a file: `--config run.toml`, or the settings.json of a run; flags win.

A file has the names of flags on one level, `target_macs = 0.5`. A settings.json gives the same run again, but for two
things that a person has to say anew: --overwrite, and --trust.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from compressor.cli.texts import READERS
from compressor.errors import CompressorError, FileError, UsageError
from compressor.settings import fits, tuples, unknown, words

CHOSEN = "compressor.chosen"  # in the context: what a file said that a person might have typed
# What settings.json holds besides settings, and what of it is never taken over.
_RECORDED = ("command", "typed", "cwd", "model_sha256", "chosen", "first_epoch")
_ASKED_ANEW = ("overwrite", "trust")
_SAME_COMMAND = {"demo": "prune"}


@dataclass(frozen=True)
class Known:
    """A setting that a command takes."""

    hint: Any
    default: Any
    least: float | None = None
    most: float | None = None


def read_config(path: Path, ctx: typer.Context, known: Mapping[str, Known]) -> dict[str, Any]:
    """The settings in a file, checked, as the settings dataclasses hold them; what counts as chosen is noted in `ctx`.

    Raises:
        FileError: the file cannot be read.
        UsageError: a name is unknown, a value has another type or is out of range, or the file is of another command.
    """
    content = _content(path)
    recorded = "command" in content and "typed" in content
    chosen = {str(name) for name in content.get("chosen", ())} if recorded else set()
    if recorded:
        _check_command(path, content, str(ctx.command.name))
        content = {name: value for name, value in content.items() if name not in (*_RECORDED, *_ASKED_ANEW)}
    found = {}
    for given, value in content.items():
        name = given.replace("-", "_")
        if name not in known:
            raise UsageError(f"{path}: {_unknown(given, value, known)}; {ctx.command_path} knows {', '.join(known)}")
        found[name] = _value(path, name, value, known[name])
        _check_range(path, name, found[name], known[name])
    if recorded:
        _check_code(path, found, ctx)
        chosen |= {name for name, value in found.items() if value != known[name].default}
    else:
        chosen = set(found)
    ctx.meta[CHOSEN] = frozenset(chosen)
    return found


def on_command_line(ctx: typer.Context, name: str) -> bool:
    """Whether a flag was typed."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _content(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"--config {path} cannot be read ({getattr(error, 'strerror', error)})") from error
    as_json = text.lstrip().startswith("{")
    try:
        content = json.loads(text) if as_json else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no {'JSON' if as_json else 'TOML'}: {error}") from error
    assert isinstance(content, dict)
    return content


def _check_command(path: Path, content: Mapping[str, Any], command: str) -> None:
    made_by = str(content["command"])
    if _SAME_COMMAND.get(made_by, made_by) != command:
        raise UsageError(f"{path} is of a run of compressor {made_by}: give it to that command")


def _unknown(name: str, value: Any, known: Mapping[str, Known]) -> str:
    if isinstance(value, dict):
        return f"[{name}] is a table, and settings stand on one level, such as epochs = 10"
    return unknown(name, known)


def _value(path: Path, name: str, value: Any, setting: Known) -> Any:
    """As the dataclass holds it; a text where a flag takes a text is read as the flag would be."""
    if isinstance(value, dict) and name in READERS:  # arch_arg = { width = 0.5 }
        value = list(value.items())
    plain = tuples(value)
    if fits(plain, setting.hint):
        return plain
    reader = READERS.get(name)
    texts = plain if isinstance(plain, tuple) else (plain,)
    if reader is not None and all(isinstance(each, str) for each in texts) and (reader.many or plain == texts[0]):
        return reader.read(list(texts) if reader.many else plain)
    raise UsageError(f"{path}: {name} is {value!r}, and has to be {words(setting.hint)}")


def _check_range(path: Path, name: str, value: Any, setting: Known) -> None:
    """The limits that the flag has."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if setting.least is not None and value < setting.least:
        raise UsageError(f"{path}: {name} is {value:g}, and has to be {setting.least:g} or more")
    if setting.most is not None and value > setting.most:
        raise UsageError(f"{path}: {name} is {value:g}, and has to be {setting.most:g} or less")


def _check_code(path: Path, found: Mapping[str, Any], ctx: typer.Context) -> None:
    """A run's folder may come from anyone: its architecture's file runs only if it was named here before."""
    from compressor.loading.arch import parse_arch, was_named

    arch = found.get("arch")
    if arch is None or on_command_line(ctx, "arch"):
        return
    try:
        allowed = was_named(parse_arch(arch))
    except CompressorError:
        return  # whoever opens it says what is wrong
    if not allowed:
        raise UsageError(
            f"{path} names code in a file, {arch[:200]}, that was never named on this machine or has changed since: "
            "give it with --arch"
        )
