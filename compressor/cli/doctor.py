"""`compressor doctor`."""

from dataclasses import asdict, replace
from typing import Annotated

import typer

from compressor.cli import completion
from compressor.cli.options import Json, as_typed
from compressor.cli.terminal import Terminal

HELP = "Check what is installed, the device, folders and data; exit code 1 where something is missing."
EXAMPLE = "compressor doctor --data digits"


def doctor(
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            rich_help_panel="Data",
            show_default=False,
            autocompletion=completion.data,
            help="Also try this data set.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    terminal = Terminal(as_json=json)
    from compressor.report.tables import findings_table
    from compressor.runs.doctor import examine

    found = [replace(each, said=as_typed(each.said)) for each in examine(data)]
    terminal.print_json({"findings": [asdict(each) for each in found]})
    terminal.show(findings_table([(each.what, each.good, each.said) for each in found]))
    if any(each.good is False for each in found):
        terminal.say("", "something is missing: see the lines with a !")
        raise typer.Exit(1)
    terminal.say("", "everything that runs need is here", "next: compressor demo")
