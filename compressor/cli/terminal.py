"""Everything that is printed: results to stdout, progress and remarks to stderr; or one JSON object to stdout.

A run is followed by live bars on a terminal, by plain lines in a file or a pipe, and by a line that stays per epoch.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.segment import Segment
from rich.text import Text

from compressor.cli.help import WIDTH
from compressor.cli.options import as_typed
from compressor.errors import printable
from compressor.report import units
from compressor.report.measurements import TOP1, validated
from compressor.report.progress import listening
from compressor.runs.stages import Callback, PartEvent, PeriodEvent, PeriodStep, RunEvent, Stage, silent
from compressor.training.events import BatchEvent, EpochEvent, NoteEvent

SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_PICTURES = 0.1


class Lines:
    """Progress as lines: every stage, note and epoch, and within an epoch one every ten seconds."""

    def __init__(self, console: Console, *, verbose: bool = False) -> None:
        self._console = console
        self._verbose = verbose  # every event within an epoch, and a line for each layer that a period judged
        self._last = time.monotonic()
        self._epochs = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to clean up."""

    def tell(self, event: RunEvent) -> None:
        """Print what is worth a line."""
        if isinstance(event, PeriodStep) or (isinstance(event, PartEvent) and not event.done):
            return
        early = time.monotonic() - self._last < SECONDS_BETWEEN_LINES and not self._verbose
        if early and isinstance(event, BatchEvent | PartEvent):
            return
        if isinstance(event, BatchEvent):
            self._epochs = event.epochs
            text = f"{_epoch(event.epoch, event.epochs)}  {event.batch}/{event.batches}  {_figures(event)}"
        else:
            self._epochs = event.epochs if isinstance(event, Stage) else self._epochs
            text = _line(event, self._epochs)
        self._last = time.monotonic()
        self._console.print(Text(text), soft_wrap=True)
        if self._verbose:
            _print_layers(self._console, event)


class Bars:
    """Progress as one line for the stage, or a bar for the epochs, one for the batches of the epoch, and one for the
    steps of a method's period with what the last one decided.

    Drawn at every event and not by a thread of its own, which would disturb what is being timed.
    """

    def __init__(self, console: Console, *, verbose: bool = False) -> None:
        self._console = console
        self._verbose = verbose
        self._bars, self._parts = _bars(console), _bars(console)
        self._counted = self._parts.add_task("", total=None, figures="")
        self._part, self._part_began, self._drawn, self._done = "", (0.0, 0), 0.0, 0
        self._epoch = self._bars.add_task("epoch", total=None, figures="")
        self._batch = self._bars.add_task("batch", total=None, figures="")
        self._period = self._bars.add_task("period", total=None, figures="", visible=False)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._epochs = 0

    def __enter__(self) -> Self:
        self._live.start()
        self.tell(Stage("starting"))  # torch takes seconds to import
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def tell(self, event: RunEvent) -> None:
        """Show where the run stands; epochs and notes leave a line."""
        if isinstance(event, Stage):
            self._epochs = event.epochs
            self._bars.update(self._period, visible=False)
            self._live.update(Text(f"{event.text} ...", style="dim"), refresh=True)
            return
        if isinstance(event, PartEvent):
            self._show_part(event)
            return
        if isinstance(event, PeriodStep):  # shown with the next batch event: a picture each step would take time
            self._bars.update(self._period, total=event.steps, completed=event.step, visible=True)
            return
        if isinstance(event, BatchEvent):
            self._epochs = event.epochs
            left = f"{units.duration(event.seconds_left)} left"
            self._bars.update(self._epoch, total=event.epochs, completed=event.epoch, figures=left)
            self._bars.update(self._batch, total=event.batches, completed=event.batch, figures=_short(event))
            self._live.update(self._bars, refresh=True)
            return
        if isinstance(event, EpochEvent):
            self._bars.update(self._epoch, completed=event.row["epoch"] + 1)
        if isinstance(event, PeriodEvent):
            self._bars.update(self._period, figures=_decided(event.row))
        self._console.print(Text(_line(event, self._epochs)), overflow="ignore", crop=False)
        if self._verbose:
            _print_layers(self._console, event)

    def _show_part(self, event: PartEvent) -> None:
        """A bar with rate and time left, drawn ten times a second at most: what is counted may be quick."""
        now = time.monotonic()
        if event.text != self._part or event.done < self._done:
            self._part, self._part_began, self._drawn = event.text, (now, event.done), 0.0
        self._done = event.done
        if now - self._drawn < _SECONDS_BETWEEN_PICTURES and event.done < event.total:
            return
        self._drawn = now
        began, first = self._part_began
        pace = ""
        if event.done > first and now - began > _SECONDS_BETWEEN_PICTURES:
            rate = (event.done - first) / (now - began)
            pace = f"{rate:,.3g}/s  {units.duration((event.total - event.done) / rate)} left"
        self._parts.update(self._counted, description=event.text, total=event.total, completed=event.done, figures=pace)
        self._live.update(self._parts, refresh=True)


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=14),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
    )


def _decided(row: dict[str, Any]) -> str:
    """What the last period did, as short as a bar needs it."""
    done = {"pruned": row.get("prunes"), "merged": row.get("merges"), "inserted": row.get("inserts")}
    told = ", ".join(f"{count} {name}" for name, count in done.items() if count)
    return f"last: {told or 'no change'}"


def _print_layers(console: Console, event: RunEvent) -> None:
    """What a period found in each layer that it judged."""
    for each in event.row.get("groups", ()) if isinstance(event, PeriodEvent) else ():
        rest = "  ".join(f"{name} {value}" for name, value in each.items() if name != "group")
        console.print(Text(f"  {each['group']}: {rest}"), soft_wrap=True)


def _line(event: EpochEvent | NoteEvent | Stage | PartEvent | PeriodEvent, epochs: int) -> str:
    if isinstance(event, Stage):
        return f"{event.text} ..."
    if isinstance(event, PartEvent):
        return f"{event.text} {event.done}/{event.total}"
    if isinstance(event, NoteEvent):
        return f"note: {as_typed(event.text)}"
    if isinstance(event, PeriodEvent):
        return event.text
    row = event.row
    parts = [_epoch(row["epoch"], event.epochs or epochs), f"loss {row['train_loss']:.4f}"]
    parts.append(_top1("top-1", row["train_top1"]))
    found = validated(row)
    if found is not None and found[0].name != TOP1:
        parts.append("" if found[1] is None else f"validation {found[0].name} {found[0].write(found[1])}")
    elif found is not None:
        parts.append(_top1("validation", found[1]))
    parts.append(f"{row['images_per_second']:,.0f} images/s")
    return "  ".join(part for part in parts if part)


def _figures(event: BatchEvent) -> str:
    return f"{_short(event)}  {units.duration(event.seconds_left)} left"


def _short(event: BatchEvent) -> str:
    parts = (f"loss {event.loss:.4f}", _top1("top-1", event.top1), f"{event.images_per_second:,.0f} images/s")
    return "  ".join(part for part in parts if part)


def _top1(name: str, value: float | None) -> str:
    return "" if value is None else f"{name} {value:.1%}"


def _epoch(epoch: int, epochs: int) -> str:
    of = f"/{epochs}" if epochs else ""
    return f"epoch {epoch + 1:>{len(str(epochs))}}{of}"


# -1 with --quiet, 1 with --verbose; set for the command that runs.
VERBOSITY: ContextVar[int] = ContextVar("verbosity", default=0)


class Terminal:
    """The two streams of one command."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.verbosity = VERBOSITY.get()
        self.out = _console(stderr=False)
        self.err = _console(stderr=True)

    @staticmethod
    def mute() -> bool:
        """Whether torchrun started this process beside the one that speaks."""
        return int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0"

    def show(self, *results: RenderableType) -> None:
        """Results for people, with an empty line before each; nothing where JSON was asked for."""
        if not self.as_json:
            for result in results:
                self.out.print()
                self.out.print(result)

    def answer(self, path: str, lines: Iterable[tuple[str, bool]]) -> None:
        """What a run came to, before everything else: where it lies, and lines that are good or not."""
        if not self.as_json:
            self.out.print()
            self.out.print(Text(path, "bold"), soft_wrap=True)
            for line, good in lines:
                self.out.print(Padding(Text(line, "green" if good else "yellow"), (0, 0, 0, 2)))

    def say(self, *lines: str) -> None:
        """Remarks, one a line, never cut or wrapped in the middle of a path; with --quiet none."""
        for line in lines if self.verbosity >= 0 else ():
            self.err.print(Text(line), soft_wrap=True)

    def made(self, files: Mapping[str, str], following: str) -> None:
        """The last lines: what was made and where, and the next useful command."""
        width = max(map(len, files), default=0)
        lines = [f"{path:<{width}}  {what}" for path, what in files.items()]
        self.say("", *lines, f"next: {following}")

    def print_json(self, data: Mapping[str, Any]) -> None:
        """The one object, where it was asked for."""
        if self.as_json:
            self.out.file.write(json.dumps(data, indent=1) + "\n")

    @contextmanager
    def progress(self) -> Iterator[Callback]:
        """A callback for the events of a run: bars on a terminal, else lines; nothing with --quiet."""
        verbose = self.verbosity > 0
        if self.verbosity < 0:
            yield silent
            return
        with (
            Bars(self.err, verbose=verbose) if self.err.is_terminal else Lines(self.err, verbose=verbose) as listener,
            listening(lambda what, done, total: listener.tell(PartEvent(what, done, total))),
        ):
            yield listener.tell


class _Console(Console):
    """A console on which names out of files control nothing."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)


def _console(*, stderr: bool) -> Console:
    file = Path(os.devnull).open("w") if Terminal.mute() else None  # noqa: SIM115  as long as the process
    console = _Console(file=file, stderr=stderr, highlight=False)
    console.width = min(console.width, WIDTH)
    return console
