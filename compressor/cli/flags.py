"""Flags made from the fields of settings dataclasses, so that a default stands in one place only.

A command takes whole settings (`training: TrainSettings`). `with_settings` shows Typer one option for each of their
fields instead, under the field's name and with its default, and gives the command the settings back. A field that
several settings share (`seed`) is one option for all of them.
"""

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer

from compressor.cli.descriptions import DESCRIPTIONS, PANELS
from compressor.cli.texts import READERS

# Fields that are set by the program and not by a person.
INTERNAL = frozenset({"first_epoch"})
_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """The command as Typer is to see it: settings given in pieces, one option each."""
    parameters = inspect.signature(command, eval_str=True).parameters
    rooms = {name: p for name, p in parameters.items() if is_dataclass(p.annotation)}
    shown = {name: p for name, p in parameters.items() if name not in rooms}
    for room in rooms.values():
        for parameter in _options(room):
            shown.setdefault(parameter.name, parameter)

    def run(**given: Any) -> None:
        whole = {name: _settings(room, given) for name, room in rooms.items()}
        command(**{name: given[name] for name in parameters if name not in rooms}, **whole)

    run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
    run.__signature__ = inspect.Signature([p.replace(kind=_KEYWORD) for p in shown.values()])  # type: ignore[attr-defined]
    return run


def _default(room: inspect.Parameter) -> Any:
    return room.annotation() if room.default is inspect.Parameter.empty else room.default


def _options(room: inspect.Parameter) -> list[inspect.Parameter]:
    defaults, types = _default(room), get_type_hints(room.annotation)
    return [
        _option(field.name, types[field.name], getattr(defaults, field.name), PANELS[room.annotation.__name__])
        for field in fields(room.annotation)
        if field.name not in INTERNAL
    ]


def _option(name: str, kind: Any, default: Any, panel: str) -> inspect.Parameter:
    about = DESCRIPTIONS[name]
    flag = f"--{name.replace('_', '-')}"
    switched_off = kind in (bool, bool | None) and default is not False
    names = f"{flag}/--no-{flag.removeprefix('--')}" if switched_off else flag
    if name in READERS:
        kind, default = (list[str], []) if READERS[name].many else (str | None, None)
    if about.argument:
        argument = typer.Argument(help=about.text, metavar=f"[{about.metavar}]", show_default=False)
        return inspect.Parameter(name, _KEYWORD, default=default, annotation=Annotated[kind, argument])
    option = typer.Option(
        names,
        help=about.text,
        metavar=about.metavar,
        min=about.least,
        max=about.most,
        rich_help_panel=panel,
        show_default=default not in (None, [], False),
    )
    return inspect.Parameter(name, _KEYWORD, default=default, annotation=Annotated[kind, option])


def _settings(room: inspect.Parameter, given: dict[str, Any]) -> Any:
    values = {}
    for field in fields(room.annotation):
        if field.name not in given:
            values[field.name] = getattr(_default(room), field.name)
        elif field.name in READERS:
            text = given[field.name]
            values[field.name] = READERS[field.name].read(text) if text else getattr(_default(room), field.name)
        else:
            values[field.name] = given[field.name]
    return room.annotation(**values)
