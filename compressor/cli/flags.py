"""Flags made from the settings of jobs, so that a setting stands in one place only.

A command takes what it is asked to do, a `job`. `with_settings` shows Typer one option for each setting of the kinds
that this can be instead, under its name and with its default, and gives the command the job.

`--config run.toml`, or the settings.json of a run, has the names of flags on one level, `target_macs = 0.5`; flags win.
A settings.json gives the same run again, but for two things that a person has to give again: --overwrite, and --trust.
"""

import inspect
import json
import keyword
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from compressor.cli.completion import COMPLETERS
from compressor.cli.help import show_all
from compressor.cli.options import Config, Quiet, Verbose, flag, typed, unset
from compressor.cli.terminal import VERBOSITY
from compressor.errors import CompressorError, FileError, UsageError
from compressor.settings import Job, Known, is_text, known_to, read, stranger

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


_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def with_settings(command: Callable[..., None], kinds: Sequence[type[Job]]) -> Callable[..., None]:
    """The command as Typer is to see it: its job, of one of these kinds, given in pieces, one option each."""
    parameters = inspect.signature(command, eval_str=True).parameters
    known: dict[str, Known] = {}
    for kind in kinds:
        known |= {name: each for name, each in known_to(kind).items() if name not in known}
    shown = {name: _option(name, each) for name, each in known.items() if name not in parameters}
    shown |= {name: parameter for name, parameter in parameters.items() if name != "job"}
    shown.setdefault("ctx", inspect.Parameter("ctx", _KEYWORD, annotation=typer.Context))

    def run(ctx: typer.Context, **given: Any) -> None:
        given["ctx"] = ctx
        VERBOSITY.set(-1 if given["quiet"] else int(given["verbose"]))
        if kinds:
            values = {name: given[name] for name in known if on_command_line(ctx, name) and name not in parameters}
            file = None if given.get("config") is None else Path(given["config"]).expanduser()
            read_there = {} if file is None else read_config(file, ctx, kinds)
            there = read_there.keys() - values.keys()
            values = {**read_there, **values}
            chosen = {name for name in values if on_command_line(ctx, name)} | ctx.meta.get(CHOSEN, set())
            given["job"] = read(
                kinds,
                values,
                verb=ctx.command_path,
                spell=lambda name: f"{file}: {name}" if name in there else flag(name),
                chosen=[n for n in known if n in chosen],
                inside={"command": typed(ctx)},
            )
        command(**{name: given[name] for name in parameters})

    for name, annotation in (("quiet", Quiet), ("verbose", Verbose)):
        shown[name] = inspect.Parameter(name, _KEYWORD, default=False, annotation=annotation)
    if "onnx" in known:  # a run that leaves its files in a folder
        shown["config"] = inspect.Parameter("config", _KEYWORD, default=None, annotation=Config)
    if any(each.about.rare for each in known.values()):
        everything = typer.Option("--help-all", is_eager=True, callback=show_all, help="Show all flags.")
        switch = inspect.Parameter("help_all", _KEYWORD, default=False, annotation=Annotated[bool, everything])
        shown["help_all"] = switch

    run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
    run.__signature__ = inspect.Signature([p.replace(kind=_KEYWORD) for p in shown.values()])  # type: ignore[attr-defined]
    return run


def _option(name: str, known: Known) -> inspect.Parameter:
    """The flag of one setting, or its argument."""
    about, kind, default = known.about, known.hint, None if known.default is MISSING else known.default
    switched_off = kind in (bool, bool | None) and default is not False
    names = f"{flag(name)}/{unset(name)}" if switched_off else flag(name)
    said = get_origin(kind) is not Literal or all(each in about.text for each in get_args(kind))
    choices = "" if said else f" One of {', '.join(get_args(kind))}."
    if is_text(known):
        kind, default = (list[str], []) if about.many else (str | None, None)
    elif known.default is MISSING:
        kind = kind | None
    if about.argument:
        argument = typer.Argument(
            help=about.text, metavar=about.metavar, rich_help_panel=known.panel, show_default=False
        )
        return inspect.Parameter(name, _KEYWORD, default=default, annotation=Annotated[kind, argument])
    option = typer.Option(
        names,
        help=about.text + choices,
        metavar=about.metavar,
        hidden=about.rare,
        autocompletion=None if get_origin(known.hint) is Literal else COMPLETERS.get(name),
        min=about.least,
        max=about.most,
        rich_help_panel=known.panel,
        show_default=default is not None and default is not False and default != [],
    )
    return inspect.Parameter(name, _KEYWORD, default=default, annotation=Annotated[kind, option])
