"""Flags that several commands share and that belong to no settings."""

import re
import shlex
from collections.abc import Mapping
from functools import cache
from itertools import chain, count
from pathlib import Path
from typing import Annotated

import typer

from compressor.report import units
from compressor.runs.jobs import VERBS
from compressor.runs.settings import ModelSettings
from compressor.settings import known_to
from compressor.training.settings import DataSettings


def flag(name: str) -> str:
    """How a setting is typed; the model is no flag."""
    return "MODEL" if name == "model" else f"--{name.strip('_').replace('_', '-')}"


def unset(name: str) -> str:
    """How a setting is typed that is to be off."""
    return f"--no-{flag(name).removeprefix('--')}"


def as_typed(text: str) -> str:
    """A text with every setting in backquotes as it is typed: `target_ms` as --target-ms, `onnx=False` as --no-onnx."""

    def spelled(found: re.Match[str]) -> str:
        if found[1] not in _settings():
            return found[0]
        return unset(found[1]) if found[2] else flag(found[1])

    return re.sub(r"`(\w+)(=False)?`", spelled, text)


def all_as_typed(texts: Mapping[str, str]) -> dict[str, str]:
    """The same of texts by what they are about."""
    return {name: as_typed(text) for name, text in texts.items()}


@cache
def _settings() -> frozenset[str]:
    """The names of all settings of all verbs."""
    return frozenset(name for kinds in VERBS.values() for kind in kinds for name in known_to(kind))


Quiet = Annotated[bool, typer.Option("--quiet", "-q", rich_help_panel="Other", help="Print results and errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", rich_help_panel="Other", help="Print more details.")]
Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        show_default=False,
        rich_help_panel="Other",
        help="Settings from a TOML file, or a run's settings.json; flags override them.",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object to stdout, all else to stderr.", rich_help_panel="Output")
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Predict costs, wall time and memory; write and change nothing.", rich_help_panel="Output"
    ),
]


def typed(ctx: typer.Context) -> str:
    """The command as it was typed."""
    return str(ctx.obj or f"compressor {ctx.command.name}")


def named(model: ModelSettings) -> str:
    """The model as one would type it again."""
    words = [] if model.model is None else [model.model]
    words += [] if model.arch is None else ["--arch", model.arch]
    for name, value in model.arch_arg:
        words += ["--arch-arg", f"{name}={value}"]
    given = [units.shape(model.shape)] if model.shape else model.input or ()
    for each in given:
        words += ["--input", str(each)]
    return shlex.join(words)


def unused(folder: str) -> str:
    """A folder for results that is not there yet, as one would type it: this one, or with a number behind it."""
    names = chain([folder], (f"{folder}-{number}" for number in count(2)))
    return shlex.quote(next(name for name in names if not Path(name).exists()))


def with_data(data: str, loading: DataSettings | None = None) -> str:
    """The data, or the user's task, as one would type it again, and how pixels are normalised where that was given."""
    from compressor.runs import own

    words = ["--data" if own.parts(data) is None else "--task", data]
    for name in ("mean", "std"):
        values = getattr(loading, name, None)
        words += [] if values is None else [f"--{name}", ",".join(map(str, values))]
    return shlex.join(words)


def is_onnx(model: ModelSettings) -> bool:
    """Whether a file is called what .onnx files are called, or is a package: to choose the next command only."""
    return (model.model or "").endswith(".onnx") or Path(model.model or "no file").is_dir()
