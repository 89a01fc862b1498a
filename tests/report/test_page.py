"""The HTML page: complete, self-contained, safe, and readable in a real browser where there is one."""

import dataclasses
import json
import re
import shutil
import subprocess
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from compressor.report.comparison import answers
from compressor.report.measurements import Certificate, LayerSize
from compressor.report.plots import filters_plots
from compressor.report.report import Report, page, write_page
from compressor.report.run_comparison import comparison_page
from compressor.report.runs import compare_runs
from compressor.report.sections import Section, Table
from tests.report.reports import LONG, bare_report, full_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "link", "br", "hr", "img"}


class Balance(HTMLParser):
    """Checks that every element that opens closes in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("report", [full_report(), bare_report()], ids=["full", "bare"])
def test_the_document_is_well_formed_and_asks_for_nothing(report: Report) -> None:
    html = page(report)
    parser = Balance()
    parser.feed(html)
    assert not parser.open
    assert html.startswith("<!doctype html>") and "prefers-color-scheme: dark" in html
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', html)
    assert "url(http" not in html and "@import" not in html and "<script" not in html


def test_everything_of_the_report_is_on_the_page() -> None:
    report = full_report()
    text = unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page(report))))
    for word in report.command.split():
        assert word in text
    wanted = [
        "313.2 MMAC",
        "-0.40 pp",
        "batch 16",
        "seed 3",
        LONG,
        "aten::fft has no rule",
        report.device,
        *report.notes,
    ]
    wanted += ["thop failed: no such hook", "smallest L1 norm", "its channels are also concatenated", "3.1e-07"]
    wanted += ["prune: 40 channels in 1 group; merge: 1 channel in 1 group", "2 edits", "(40 in all)", "not installed"]
    wanted += [
        "Exits",
        "Accuracy of every exit.",
        "each exit alone",
        "2000000",
        "30, 60",
        "2.13.0",
        "7 of 8 layers changed",
    ]
    for part in wanted:
        assert part in text, part
    assert page(report).count("<svg") == 4


def test_the_answers_stand_above_the_command_with_the_promise_among_them() -> None:
    report = full_report()
    certificate = Certificate(0.008, 0.95, 5000, 0.002, True, 0.01, None, "cat", 0.01, 500, 0.98)
    report = dataclasses.replace(report, after=dataclasses.replace(report.after, certificate=certificate))
    top = unescape(page(report).partition("<pre>")[0].partition("<main>")[2])
    said = answers(report.before, report.after, report.settings.get("round_to"))
    assert certificate.words() == said[-1][0] and len(said) >= 3
    assert all(words in top for words, _ in said)


def test_only_a_network_that_came_trained_has_a_line_of_the_original() -> None:
    report = full_report()
    trained = dataclasses.replace(report, settings={"model": "big.safetensors"})
    assert ["original, on test data at 93.21" in page(each) for each in (report, trained)] == [False, True]


def test_pictures_stand_in_the_page_and_are_fetched_from_nowhere() -> None:
    html = page(full_report())
    assert html.count("<img") == 7 and "example.org" not in html and "two concepts" in html


def test_what_the_user_named_cannot_break_the_page() -> None:
    evil = "<script>alert(1)</script>&\"'"
    report = dataclasses.replace(full_report(), command=evil, frozen={evil: evil}, notes=(evil,), settings={evil: evil})
    assert "<script" not in page(report) and page(report).count("&lt;script&gt;") >= 5


def test_settings_in_backquotes_are_code_and_nothing_else_is_markup() -> None:
    note = "loosen `target_macs`, not <b>"
    html = page(dataclasses.replace(full_report(), notes=(note,), refused={"target": note}))
    assert html.count("loosen <code>target_macs</code>, not &lt;b&gt;") == 2 and "`" not in html


def test_only_the_settings_that_somebody_gave_are_open() -> None:
    settings = {"method": "l1", "ratio": 0.5, "momentum": 0.9, "chosen": ["ratio"]}
    html = page(dataclasses.replace(full_report(), settings=settings))
    shown, _, folded = html.partition("Settings and versions")[2].partition("<details>")
    assert '<th scope="row">ratio</th>' in shown and "momentum" not in shown
    assert '<th scope="row">momentum</th>' in folded and '<th scope="row">ratio</th>' not in folded


def test_what_got_worse_is_marked_in_the_table() -> None:
    report = full_report()
    html = page(dataclasses.replace(report, after=dataclasses.replace(report.after, params=2 * report.before.params)))
    assert re.findall(r'<tr class="worse"><th scope="row">([^<]*)', html) == ["parameters"]


def test_many_layers_are_drawn_in_parts_with_one_scale_and_stand_in_a_table() -> None:
    layers = tuple(LayerSize(f"layer{number}", 8 * (1 + number), 8) for number in range(56))
    report = dataclasses.replace(full_report(), layers=layers)
    html = page(report)
    parts = re.findall(r'<h3>(Filters, . of 3)</h3><svg role="img" aria-label="([^"]*)" .*?</svg>', html, re.DOTALL)
    assert [title for title, _ in parts] == ["Filters, 1 of 3", "Filters, 2 of 3", "Filters, 3 of 3"]
    assert parts[0][1] == "Filters, 1 of 3 (filters): before, 19 bars; after, 19 bars"
    assert len({plot.longest for plot in filters_plots(layers)}) == 1
    assert unescape(html).count('<th scope="row">layer55</th><td class="number">448</td><td class="number">8</td>') == 1


def test_what_can_be_scrolled_has_a_name_and_no_picture_lacks_words() -> None:
    for html in (page(full_report()), comparison_page(compare_runs({"runs/a": full_report()}))):
        focused = re.findall(r"<div[^>]*tabindex[^>]*>", html)
        assert focused and all('role="group" aria-label="' in each and 'aria-label=""' not in each for each in focused)
        assert all(len(each) > 20 for each in re.findall(r'<svg role="img" aria-label="([^"]*)"', html))
        assert all(re.findall(r'<img [^>]*alt="[^"]+"', each) for each in re.findall(r"<img[^>]*>", html))


def test_the_page_of_a_large_network_takes_at_most_a_megabyte() -> None:
    report = full_report()
    layers = tuple(LayerSize(f"features.denseblock3.denselayer{number}.conv2", 320, 150) for number in range(200))
    edits = tuple({**report.edits[0], "group": layer.name, "channels": list(range(24))} for layer in layers) * 10
    frozen = {layer.name: "its channels are the model's output, and a view has their number" for layer in layers}
    rows = tuple({**report.rows[number % 12], "epoch": number} for number in range(200))
    large = dataclasses.replace(report, layers=layers, edits=edits, frozen=frozen, rows=rows)
    assert len(page(large).encode()) < 1_000_000


def test_more_edits_than_one_can_read_are_counted() -> None:
    edit = full_report().edits[1]
    html = page(dataclasses.replace(full_report(), edits=(edit,) * 1203))
    assert html.count("distance 0.02") == 1000
    assert "1203 edits" in html and "203 more edits stand in report.json" in html


def test_the_page_is_written_beside_the_report(tmp_path: Path) -> None:
    path = write_page(full_report(), tmp_path / "run")
    assert path == tmp_path / "run" / "report.html" and path.read_text(encoding="utf-8") == page(full_report())


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("shown_page", ["report", "comparison"])
def test_a_browser_shows_it_without_errors_or_sideways_scrolling(shown_page: str, width: int, tmp_path: Path) -> None:
    html = page(full_report())
    plots, pictures = 4, 7
    if shown_page == "comparison":
        html, plots, pictures = comparison_page(compare_runs({"runs/a": full_report()})), 3, 0
    # A window has a least width, a frame has none; what the browser measured in it comes back as the title.
    probe = """<script>addEventListener("load", () => { const page = document.querySelector("iframe").contentDocument;
        const sizes = selector => [...page.querySelectorAll(selector)].map(one => one.getBoundingClientRect());
        document.title = JSON.stringify({ view: page.defaultView.innerWidth, wide: page.documentElement.scrollWidth,
        pictures: [...page.querySelectorAll("img")].filter(one => one.naturalWidth).length,
        plots: sizes("svg").map(size => size.width), letter: Math.min(...sizes("svg text").map(size => size.height)) })
        })</script>"""
    frame = f'<iframe style="border: 0; width: {width}px; height: 2000px" srcdoc="{escape(html)}"></iframe>'
    host = tmp_path / "host.html"
    host.write_text(f"<!doctype html><html><head><title></title>{probe}</head><body>{frame}</body></html>", "utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=1400,2000"]
    command = [str(BROWSER), *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", host.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(unescape(re.findall(r"<title>(.*?)</title>", shown.stdout, re.DOTALL)[0]))
    assert "CONSOLE" not in shown.stderr
    assert found["wide"] <= found["view"] == width
    assert len(found["plots"]) == plots and all(300 <= plot <= min(560, width) for plot in found["plots"])
    assert found["pictures"] == pictures
    assert found["letter"] >= 8, "the smallest letter in a plot is readable"


def test_columns_of_quantities_are_flush_right_and_names_of_digits_are_not() -> None:
    rows = (("base", None, "1.789 MMAC", "18.91 k", "99.72 %"), ("exit 1", "7", "594.6 kMAC", "384", None))
    table = Table(("model", "starts at", "MACs", "own", "top-1"), rows)
    html = page(dataclasses.replace(bare_report(), sections=(Section("S", tables=(table,)),)))
    assert re.findall(r'<td class="(\w*)">(7|594.6 kMAC|384|99.72 %)</td>', html) == [
        ("number", "99.72 %"), ("", "7"), ("number", "594.6 kMAC"), ("number", "384"),
    ]  # fmt: skip
