"""Flags that several commands share and that belong to no settings."""

import shlex
from typing import Annotated

import typer

from compressor.cli import completion
from compressor.cli.config import CHOSEN, on_command_line
from compressor.errors import UsageError
from compressor.runs.settings import ModelSettings

# Parameters of commands that are no settings of a run.
NO_SETTINGS = frozenset(
    ("ctx", "config", "json", "dry_run", "help_all", "list_points", "list_units", "quiet", "verbose")
)

Quiet = Annotated[bool, typer.Option("--quiet", "-q", rich_help_panel="Other", help="Print results and errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", rich_help_panel="Other", help="Print more of what happens.")]
Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        show_default=False,
        rich_help_panel="Other",
        help="Settings from a TOML file, or a run's settings.json. Flags win.",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object to stdout, all else to stderr.", rich_help_panel="Output")
]
Exit = Annotated[
    int | None,
    typer.Option(
        "--exit", metavar="N", help="Only this exit of a model or package that has several.", show_default=False
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Say what would be done and its cost; write nothing.", rich_help_panel="Output"),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        show_default=False,
        rich_help_panel="Data",
        autocompletion=completion.data,
        help="digits, mnist:DIR, fashion-mnist:DIR, cifar10:DIR, cifar100:DIR, svhn:DIR or folder:DIR.",
    ),
]


def typed(ctx: typer.Context) -> str:
    """The command as it was typed."""
    return str(ctx.obj or f"compressor {ctx.command.name}")


def was_given(ctx: typer.Context, name: str) -> bool:
    """Whether a person chose a value, by a flag or in the file of --config, and it is not just the default."""
    return on_command_line(ctx, name) or name in ctx.meta.get(CHOSEN, ())


def chosen(ctx: typer.Context) -> tuple[str, ...]:
    """The names of all settings that a person chose."""
    names = (parameter.name for parameter in ctx.command.params if parameter.name not in NO_SETTINGS)
    return tuple(name for name in names if name is not None and was_given(ctx, name))


def check_model(model: ModelSettings) -> None:
    """Raise UsageError where there is neither a file nor an architecture."""
    if model.model is None and model.arch is None:
        raise UsageError("no model: give a file, or --arch for an architecture with random weights")


def named(model: ModelSettings) -> str:
    """The model as one would type it again."""
    words = [] if model.model is None else [model.model]
    words += [] if model.arch is None else ["--arch", model.arch]
    for name, value in model.arch_arg:
        words += ["--arch-arg", f"{name}={value}"]
    words += [] if model.input is None else ["--input", "x".join(map(str, model.input))]
    return shlex.join(words)


def is_onnx(model: ModelSettings) -> bool:
    """Whether a file is called what .onnx files are called, for the choice of the next command only."""
    return (model.model or "").endswith(".onnx")


def needed(data: str | None) -> str:
    """The data, which this command cannot do without.

    Raises:
        UsageError: there are none.
    """
    if data is None:
        raise UsageError("--data is missing: give digits (built in), folder:DIR, cifar10:DIR or another data set")
    return data
