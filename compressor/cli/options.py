"""Flags that several commands share and that belong to no settings."""

from dataclasses import fields
from typing import Annotated, Any

import typer

from compressor.errors import UsageError
from compressor.pipeline.settings import ModelSettings

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object to stdout, all else to stderr.", rich_help_panel="Output")
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
        help="digits, mnist:DIR, fashion-mnist:DIR, cifar10:DIR, cifar100:DIR, svhn:DIR or folder:DIR.",
    ),
]


def typed(ctx: typer.Context) -> str:
    """The command as it was typed."""
    return str(ctx.obj or f"compressor {ctx.command.name}")


def was_given(ctx: typer.Context, name: str) -> bool:
    """Whether a flag stood on the command line, and is not just its default."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def chosen(ctx: typer.Context, settings: Any) -> dict[str, Any]:
    """Those fields of settings that stood on the command line, to be laid over other defaults."""
    return {field.name: getattr(settings, field.name) for field in fields(settings) if was_given(ctx, field.name)}


def check_model(model: ModelSettings) -> None:
    """Raise UsageError where there is neither a file nor an architecture."""
    if model.model is None and model.arch is None:
        raise UsageError("no model: give a file, or --arch for an architecture with random weights")


def named(model: ModelSettings) -> str:
    """The model as one would type it again."""
    return model.model or f"--arch {model.arch}"


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
