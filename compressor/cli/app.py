"""The list of commands, and the one door through which errors leave."""

import atexit
import gc
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn, cast

import typer

from compressor.cli.flags import with_settings
from compressor.cli.help import HelpfulCommand, HelpfulGroup
from compressor.cli.options import as_typed
from compressor.cli.results import carry_out
from compressor.cli.terminal import Terminal
from compressor.errors import CompressorError, Elsewhere, UsageError, printable
from compressor.runs.job import RunJob
from compressor.runs.jobs import VERBS

INTERRUPTED, TERMINATED = 130, 143  # what a shell makes of SIGINT and SIGTERM


@dataclass
class Stopped:
    """With what exit code a command leaves that was stopped, and what had begun before it."""

    code: int = INTERRUPTED
    earlier: int = 0  # runs that this process began before the command

    def how_to_go_on(self) -> str:
        """The command that finishes what this one began, with a semicolon before it; nothing where it began no run."""
        done = ("report.json", "comparison.html")
        folders = [each for each in _begun()[self.earlier :] if not any((each / name).exists() for name in done)]
        return f"; to go on: compressor resume {folders[0]}" if folders else ""  # a sweep's comes before its runs'


@contextmanager
def stopping() -> Iterator[Stopped]:
    """Take SIGTERM like Ctrl-C, so that unfinished files are removed; a SIGTERM that is ignored stays ignored."""
    stopped = Stopped(earlier=len(_begun()))
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield stopped
        return

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        stopped.code = TERMINATED
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _begun() -> list[Path]:
    lock = sys.modules.get("compressor.runs.lock")  # not imported where no run got so far
    return [] if lock is None else list(lock.begun_folders())


# What Typer raises for a wrong command line, whether it brings Click along or imports it.
_WRONG_COMMAND: type[Exception] = typer.BadParameter.__mro__[2]


HELP = "Make a CNN cheaper to run, and measure what that costs in accuracy."
EXAMPLE = "compressor demo"


class Commands(HelpfulGroup):
    """The verbs, each in a file of its name; only the one that is asked for is imported and gets its options built."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = cast(Any, dict.fromkeys(VERBS))  # whose names are suggested for a mistyped one

    def list_commands(self, ctx: Any) -> list[str]:
        """As `--help` lists them."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name; None for an unknown one."""
        if cmd_name not in VERBS:
            return None
        module = _module(cmd_name)
        alone = typer.Typer(rich_markup_mode=None, add_completion=False)
        described = alone.command(cmd_name, cls=HelpfulCommand, help=module.HELP, epilog=module.EXAMPLE)
        command = getattr(module, _in_python(cmd_name), carry_out)  # what most verbs do, and no more
        described(with_settings(command, VERBS[cmd_name]))
        return typer.main.get_command(alone)

    def summary(self, name: str) -> str:
        """What a command does, in a sentence."""
        text: str = _module(name).HELP
        return text.split("\n\n")[0]


def _module(verb: str) -> Any:
    """The file of a verb."""
    return import_module(f"{__package__}.{_in_python(verb)}")


def _in_python(verb: str) -> str:
    return verb.replace("-", "_")


app = typer.Typer(
    name="compressor",
    help=HELP,
    epilog=EXAMPLE,
    cls=Commands,
    rich_markup_mode=None,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print versions and the device, and leave.")] = False,
) -> None:
    if show_version:
        _print_versions()
    elif ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def _print_versions() -> None:
    """Versions at once; the device by asking torch, which takes seconds, but for a build that knows the CPU only."""
    from compressor.report.environment import device_words, processor, versions

    found = versions()
    for name in ("compressor", "python", "torch", "torchvision", "onnxruntime"):
        typer.echo(f"{name:<12}{found[name] or 'not installed'}")
    if str(found["torch"]).endswith("+cpu"):
        typer.echo(f"{'device':<12}CPU: {processor()}")
        return
    import torch

    typer.echo(f"{'device':<12}{device_words('cuda' if torch.cuda.is_available() else 'cpu')}")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave: 0 done, 2 wrong use, 130 and 143 stopped by SIGINT and SIGTERM, 1 anything else.

    A bug keeps its traceback.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    typed = shlex.join(["compressor", *given])
    atexit.register(gc.freeze)  # else the interpreter looks through all of torch's objects for garbage, for seconds
    with stopping() as stopped:
        try:
            with _among_processes(given):
                code = app(args=given, prog_name="compressor", standalone_mode=False, obj=typed)
        except CompressorError as error:
            told = Terminal.mute() and (isinstance(error, Elsewhere) or error.exit_code != 1)  # by the first process
            _fail("" if told else str(error), error.exit_code)
        except _WRONG_COMMAND as error:
            why = error.format_message().replace("Value error, ", "").rstrip(".")  # type: ignore[attr-defined]
            _fail(f"{why}; see {_where(given)} --help", 2)
        except (KeyboardInterrupt, typer.Abort):
            code = INTERRUPTED
        if code == INTERRUPTED:  # also what Typer makes of Ctrl-C by itself
            _fail(f"stopped{stopped.how_to_go_on()}", stopped.code)
    sys.exit(code or 0)


@contextmanager
def _among_processes(given: Sequence[str]) -> Iterator[None]:
    """Join the other processes where torchrun started several; torch is imported for that only."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    together = [name for name, kinds in VERBS.items() if any(issubclass(kind, RunJob) and kind.RUN for kind in kinds)]
    if not given or given[0] not in (*together, "resume"):
        raise UsageError(f"only {', '.join(together)} and resume run in several processes: run it without torchrun")
    from compressor.training.distributed import joined

    with joined():
        yield


def _where(given: Sequence[str]) -> str:
    """The command whose help page helps."""
    return f"compressor {given[0]}" if given[0] in VERBS else "compressor"


def _fail(message: str, code: int) -> NoReturn:
    """One line on stderr, whatever the message was: file names may hold any character."""
    line = as_typed(printable(" ".join(message.split())))
    if line:
        sys.stderr.write(f"error: {line}\n")
    sys.exit(code)
