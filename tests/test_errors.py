"""Names out of files reach the terminal, the page and the files of a run as text that controls nothing."""

import dataclasses
import unicodedata

import pytest
from rich.table import Table
from rich.text import Text

from compressor.cli import main
from compressor.cli.terminal import Terminal
from compressor.errors import printable
from compressor.report.html import draw
from compressor.report.manifest import Manifest
from compressor.report.report import page
from compressor.report.sections import Curve, Plot
from tests.report.reports import full_report

# ESC, a C1 introducer, a turned direction, half of a character, BEL, DEL, a line and a paragraph separator.
NAME = "a\x1b[31mb\x9b2Jc\u202ed\ud800e\x07f\x7fg\u2028h\u2029i"


def controls(text: str) -> set[str]:
    """Characters that control something, line breaks aside."""
    return {each for each in text if unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp") and each != "\n"}


@pytest.mark.parametrize("text", ["plain", "Größe 図 ✓", "two\nlines", "[bold]x[/bold]"])
def test_what_can_be_read_stays(text):
    assert printable(text) == text


def test_what_controls_something_is_shown_as_its_escape():
    assert printable(NAME) == r"a\x1b[31mb\x9b2Jc\u202ed\ud800e\x07f\x7fg\u2028h\u2029i"


def test_nothing_printed_controls_the_terminal(capsys):
    terminal = Terminal()
    table = Table(title=Text(NAME))
    table.add_column(Text(NAME))
    table.add_row(Text(NAME), "[red]x")
    terminal.show(table, Text(NAME))
    terminal.say(NAME)
    terminal.made({NAME: NAME}, NAME)
    with terminal.progress() as tell:
        assert callable(tell)
    Terminal(as_json=True).print_json({NAME: [NAME]})
    out, err = capsys.readouterr()
    assert not controls(out + err)
    assert r"\x1b[31m" in out and r"\u202e" in err


def test_no_file_name_controls_the_terminal(capsys, tmp_path):
    name = NAME.replace("\ud800", "")
    for arguments in (
        ["profile", f"{tmp_path}/{name}"],
        ["profile", "x", "--arch", name],
        [name],
        ["profile", f"--{name}"],
    ):
        with pytest.raises(SystemExit):
            main(arguments)
    out, err = capsys.readouterr()
    assert not controls(out + err)
    assert all(line.startswith(("error: ", "opening ")) for line in err.splitlines())


def test_no_name_controls_the_page_or_its_pictures():
    report = full_report()
    section = dataclasses.replace(report.sections[0], title=NAME, text=NAME) if report.sections else None
    named = dataclasses.replace(
        report,
        command=f"compressor prune {NAME}",
        frozen={NAME: NAME},
        notes=[NAME],
        settings={NAME: NAME},
        sections=[section] if section else [],
    )
    assert not controls(page(named))
    plot = Plot(title=NAME, x_label=NAME, y_label=NAME, curves=(Curve(NAME, (NAME, "b"), (1.0, 2.0)),), kind="bars")
    assert not controls(draw(plot))


def test_no_name_controls_what_is_written(tmp_path):
    report = dataclasses.replace(full_report(), frozen={NAME: NAME}, command=NAME)
    path = report.save(tmp_path)
    assert not controls(path.read_text())
    manifest = Manifest("package", {}, (), (), classes=(NAME,), history=(NAME,))
    assert not controls(manifest.text())
