"""Flags made from the fields of settings dataclasses, so that a default stands in one place only.

A command takes whole settings (`training: TrainSettings`). `with_settings` shows Typer one option for each of their
fields instead, under the field's name and with its default, and gives the command the settings back. A field that
several settings share (`seed`) is one option for all of them; where they have it from different defaults, each keeps
its own until the flag is typed, and `--help` shows the first.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from compressor.cli.adapnet_flags import ADAPNET
from compressor.cli.completion import COMPLETERS
from compressor.cli.config import Known, on_command_line, read_config
from compressor.cli.descriptions import DESCRIPTIONS, PANELS, Described
from compressor.cli.help import show_all
from compressor.cli.options import NO_SETTINGS, Config, Quiet, Verbose
from compressor.cli.terminal import VERBOSITY
from compressor.cli.texts import READERS
from compressor.runs.settings import OutputSettings

# Fields that are set by the program and not by a person.
INTERNAL = frozenset({"first_epoch"})
# Flags that one command takes only to say what to use instead.
UNFIT = {"train": frozenset({"model", "weights", "trust", "max_size"})}
_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """The command as Typer is to see it: settings given in pieces, one option each."""
    parameters = inspect.signature(command, eval_str=True).parameters
    rooms = {name: p for name, p in parameters.items() if is_dataclass(p.annotation)}
    shown = {name: p for name, p in parameters.items() if name not in rooms}
    for room in rooms.values():
        for parameter in _options(room, UNFIT.get(command.__name__, frozenset())):
            shown.setdefault(parameter.name, parameter)

    shown.setdefault("ctx", inspect.Parameter("ctx", _KEYWORD, annotation=typer.Context))

    configurable = any(room.annotation is OutputSettings for room in rooms.values())

    def run(ctx: typer.Context, **given: Any) -> None:
        given["ctx"] = ctx
        VERBOSITY.set(-1 if given["quiet"] else int(given["verbose"]))
        typed = {name: _read(name, value) for name, value in given.items() if on_command_line(ctx, name)}
        if given.get("config") is not None:
            known = _known(rooms.values(), shown.values())
            typed = {**read_config(Path(given["config"]).expanduser(), ctx, known), **typed}
            given.update((name, value) for name, value in typed.items() if name in parameters)
        whole = {name: _settings(room, typed) for name, room in rooms.items()}
        command(**{name: given[name] for name in parameters if name not in rooms}, **whole)

    for name, kind in (("quiet", Quiet), ("verbose", Verbose)):
        shown[name] = inspect.Parameter(name, _KEYWORD, default=False, annotation=kind)
    if configurable:
        shown["config"] = inspect.Parameter("config", _KEYWORD, default=None, annotation=Config)
    if any(DESCRIPTIONS[name].rare for name in shown if name in DESCRIPTIONS):
        everything = typer.Option("--help-all", is_eager=True, callback=show_all, help="Show every flag there is.")
        flag = inspect.Parameter("help_all", _KEYWORD, default=False, annotation=Annotated[bool, everything])
        shown["help_all"] = flag

    run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
    run.__signature__ = inspect.Signature([p.replace(kind=_KEYWORD) for p in shown.values()])  # type: ignore[attr-defined]
    return run


def _read(name: str, value: Any) -> Any:
    return READERS[name].read(value) if name in READERS else value


def _known(rooms: Iterable[inspect.Parameter], shown: Iterable[inspect.Parameter]) -> dict[str, Known]:
    """Every setting that a command takes: the fields of its settings, and flags that stand beside them."""
    found: dict[str, Known] = {}
    for room in rooms:
        types = get_type_hints(room.annotation)
        for field in fields(room.annotation):
            if field.name not in INTERNAL:
                about, default = _about(room.annotation.__name__, field.name), getattr(_default(room), field.name)
                found.setdefault(field.name, Known(types[field.name], default, about.least, about.most))
    for parameter in shown:
        if parameter.name not in NO_SETTINGS and get_origin(parameter.annotation) is Annotated:
            found.setdefault(parameter.name, Known(get_args(parameter.annotation)[0], parameter.default))
    return found


def _default(room: inspect.Parameter) -> Any:
    return room.annotation() if room.default is inspect.Parameter.empty else room.default


def _options(room: inspect.Parameter, unfit: frozenset[str]) -> list[inspect.Parameter]:
    defaults, types = _default(room), get_type_hints(room.annotation)
    return [
        _option(
            field.name,
            types[field.name],
            getattr(defaults, field.name),
            about=_about(room.annotation.__name__, field.name),
            panel=PANELS[room.annotation.__name__],
            hidden=_about(room.annotation.__name__, field.name).rare or field.name in unfit,
        )
        for field in fields(room.annotation)
        if field.name not in INTERNAL
    ]


def _about(room: str, name: str) -> Described:
    """What is said of a field: a text of this room's own where another room's field has the same name."""
    scoped = ADAPNET.get(f"{room}.{name}")
    return scoped or DESCRIPTIONS.get(name) or ADAPNET[name]


def _option(name: str, kind: Any, default: Any, *, about: Described, panel: str, hidden: bool) -> inspect.Parameter:
    """The flag, or for a field that is described as an argument the argument, of one field."""
    flag = f"--{name.replace('_', '-')}"
    switched_off = kind in (bool, bool | None) and default is not False
    names = f"{flag}/--no-{flag.removeprefix('--')}" if switched_off else flag
    choices = f" One of {', '.join(get_args(kind))}." if get_origin(kind) is Literal else ""
    if name in READERS:
        kind, default = (list[str], []) if READERS[name].many else (str | None, None)
    if about.argument:
        argument = typer.Argument(
            help=about.text, metavar=about.metavar, rich_help_panel=panel, hidden=hidden, show_default=False
        )
        return inspect.Parameter(name, _KEYWORD, default=default, annotation=Annotated[kind, argument])
    option = typer.Option(
        names,
        help=about.text + choices,
        metavar=about.metavar,
        hidden=hidden,
        autocompletion=None if choices else COMPLETERS.get(name),
        min=about.least,
        max=about.most,
        rich_help_panel=panel,
        show_default=default is not None and default is not False and default != [],
    )
    return inspect.Parameter(name, _KEYWORD, default=default, annotation=Annotated[kind, option])


def _settings(room: inspect.Parameter, typed: dict[str, Any]) -> Any:
    """The settings with what was typed; everything else as they have it, which may differ between settings."""
    chosen = {field.name: typed[field.name] for field in fields(room.annotation) if field.name in typed}
    return replace(_default(room), **chosen)
