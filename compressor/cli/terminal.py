"""Everything that is printed: results to stdout, progress and remarks to stderr; or one JSON object to stdout."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.segment import Segment
from rich.text import Text

from compressor.errors import printable

if TYPE_CHECKING:
    from compressor.runs.stages import Callback

WIDTH = 80
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
    def progress(self) -> Iterator["Callback"]:
        """A callback for the events of a run: bars on a terminal, else lines; nothing with --quiet."""
        from compressor.cli.progress import Bars, Lines
        from compressor.report.progress import listening
        from compressor.runs.stages import PartEvent, silent

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
