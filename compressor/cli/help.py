"""The help pages: what a command does, a worked example, and its flags in two columns under headings.

Flags that few people need are left out until `--help-all` asks for them.
"""

import io
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

import typer
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

WIDTH = 80
_COLUMN = 26  # of the flags; longer ones wrap
_OWN_PANEL = "Other"
_EVERYTHING = f"{__name__}.everything"  # whether a page is to show the rare flags too
# The headings of flags in their order; others follow.
_PANELS = (
    "Model", "Data", "Pruning", "AdapNet", "Sub-models", "PrimeNet", "Routing", "Grid", "Training", "Output",
    _OWN_PANEL,
)  # fmt: skip


class HelpfulCommand(TyperCommand):
    """A command with our help page."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page."""
        formatter.write(_rendered(_command_page(self, ctx)))


class HelpfulGroup(TyperGroup):
    """The list of commands with our help page."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page."""
        formatter.write(_rendered(_group_page(self, ctx)))


def show_all(ctx: typer.Context, value: bool) -> None:
    """What `--help-all` does: the help page with every flag."""
    if value:
        ctx.meta[_EVERYTHING] = True
        typer.echo(ctx.get_help())
        raise typer.Exit()


def _command_page(command: Any, ctx: Any) -> Iterator[RenderableType]:
    everything = ctx.meta.get(_EVERYTHING, False)
    shown = [each for each in (*command.params, command.get_help_option(ctx)) if everything or not each.hidden]
    arguments = [each for each in shown if each.param_type_name == "argument"]
    names = [each.metavar if each.required else f"[{each.metavar}]" for each in arguments]
    yield _usage(ctx, " ".join([*names, "[FLAGS]"]))
    yield from _paragraphs(command.help or "")
    yield from _example(command.epilog)
    panels: dict[str, list[Any]] = {title: [] for title in _PANELS}
    for parameter in shown:
        panels.setdefault(getattr(parameter, "rich_help_panel", None) or _OWN_PANEL, []).append(parameter)
    panels[_OWN_PANEL] = panels.pop(_OWN_PANEL)  # to the end
    for title, parameters in panels.items():
        if parameters:
            yield _heading(title)
            yield _columns((_names(parameter), _words(parameter)) for parameter in parameters)


def _group_page(group: Any, ctx: Any) -> Iterator[RenderableType]:
    yield _usage(ctx, "COMMAND [MODEL] [FLAGS]")
    yield from _paragraphs(group.help or "")
    yield from _example(group.epilog)
    yield _heading("Commands")
    yield _columns((name, group.summary(name)) for name in group.list_commands(ctx))
    yield _heading("Other")
    options = [parameter for parameter in (*group.params, group.get_help_option(ctx)) if not parameter.hidden]
    yield _columns((_names(parameter), _words(parameter)) for parameter in options)


def _usage(ctx: Any, rest: str) -> Text:
    return Text.assemble(("Usage: ", "bold"), f"{ctx.command_path} {rest}")


def _paragraphs(text: str) -> Iterator[RenderableType]:
    """Paragraphs are filled; a line that begins with a space stays as it is."""
    for paragraph in text.strip().split("\n\n"):
        yield Text()
        indented = paragraph.startswith(" ")
        yield Text(paragraph if indented else textwrap.fill(paragraph, WIDTH))


def _example(command: str | None) -> Iterator[RenderableType]:
    if command:
        yield _heading("Example")
        yield Text("\n".join(broken(command)))


def broken(command: str) -> Iterator[str]:
    """A command over several lines, broken before flags only, as one would type it."""
    line = "  "
    for piece in re.split(r" (?=--)", command):
        if len(line) + len(piece) > WIDTH - 3:
            yield f"{line} \\"
            line = "     "
        line += piece if line == "  " else f" {piece}"
    yield line


def _heading(title: str) -> RenderableType:
    return Group(Text(), Text(title, style="bold"))


def _names(parameter: Any) -> Text:
    if parameter.param_type_name == "argument":
        return Text(str(parameter.metavar), style="cyan")
    names = [*sorted(parameter.opts, key=len), *parameter.secondary_opts]
    value = f" {parameter.metavar}" if parameter.metavar and not parameter.is_flag else ""
    return Text.assemble((", ".join(names), "cyan"), value)


def _words(parameter: Any) -> str:
    text = parameter.help or ""
    empty = parameter.default is None or parameter.default is False or parameter.default == []
    if not getattr(parameter, "show_default", False) or (empty and parameter.show_default is True):
        return text
    default = parameter.show_default if isinstance(parameter.show_default, str) else parameter.default
    shown = ("on" if default else "off") if isinstance(default, bool) else default
    return f"{text} [{shown}]"


def _columns(rows: Iterable[tuple[Text | str, str]]) -> RenderableType:
    """Names on the left, what they mean on the right."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(min_width=_COLUMN, max_width=_COLUMN)
    table.add_column()
    for first, second in rows:
        table.add_row(first if isinstance(first, Text) else Text(first, style="cyan"), Text(second))
    return Padding(table, (0, 0, 0, 2))


def _rendered(parts: Iterable[RenderableType]) -> str:
    console = Console(
        file=io.StringIO(), width=WIDTH, highlight=False, force_terminal=sys.stdout.isatty(), color_system="auto"
    )
    console.print(Group(*parts))
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
