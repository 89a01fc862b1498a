"""Settings from a file: `--config run.toml`, or the settings.json of a run; flags win.

A file has the names of flags on one level, `target_macs = 0.5`. A settings.json gives the same run again, but for two
things that a person has to give again: --overwrite, and --trust.
"""

import json
import keyword
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from compressor.errors import CompressorError, FileError, UsageError
from compressor.settings import Job, known_to, stranger

CHOSEN = "compressor.chosen"  # in the context: what a file said that a person might have typed
# What of a run's settings.json is never taken over.
_ASKED_ANEW = ("overwrite", "trust")
_SAME_COMMAND = {"demo": "prune"}


def read_config(path: Path, ctx: typer.Context, kinds: Sequence[type[Job]]) -> dict[str, Any]:
    """The settings in a file by name; what counts as chosen is noted in `ctx`.

    Raises:
        FileError: the file cannot be read.
        UsageError: a name is unknown, or the file is of another command.
    """
    known = {name: each for kind in reversed(kinds) for name, each in known_to(kind).items()}
    content = _content(path)
    recorded = "command" in content and "typed" in content
    chosen = {str(name) for name in content.get("chosen", ())} if recorded else set()
    if recorded:
        _check_command(path, content, str(ctx.command.name))
        own = known_to(next(kind for kind in kinds if kind.takes(content)))
        content = {name: value for name, value in content.items() if name in own and name not in _ASKED_ANEW}
    found = {name.replace("-", "_"): value for name, value in content.items()}
    found = {f"{name}_" if keyword.iskeyword(name) else name: value for name, value in found.items()}
    for name, given in zip(found, content):
        if name not in known:
            odd = stranger(given, content[given], known)
            raise UsageError(f"{path}: {odd}; {ctx.command_path} knows {', '.join(known)}")
    if recorded:
        _check_code(path, found, ctx)
    ctx.meta[CHOSEN] = chosen if recorded else set(found)
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


def _check_code(path: Path, found: Mapping[str, Any], ctx: typer.Context) -> None:
    """A run's folder may come from anyone: code that it names runs only if it was named here before."""
    from compressor.loading.arch import parse_arch, was_named
    from compressor.runs.own import may_run

    allowed = {"arch": lambda text: was_named(parse_arch(text)), "method": may_run, "data": may_run, "task": may_run}
    for name, may in allowed.items():
        if not isinstance(found.get(name), str) or on_command_line(ctx, name):
            continue
        with suppress(CompressorError):  # opening it says what is wrong
            if not may(found[name]):
                break
    else:
        return
    raise UsageError(
        f"{path} names code in a file, {found[name][:200]}, that was never named on this machine or has changed since: "
        f"give it with --{name}"
    )
