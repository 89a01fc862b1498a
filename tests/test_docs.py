"""README and the pages in docs: their commands run, their Python runs, the network and the settings they show work."""

import argparse
import importlib
import inspect
import re
import shlex
import sys

import pytest

from tests.pages import PAGES, ROOT, commands, owned, run, shortened, stand_ins

OWN = PAGES["bring-your-own-model.md"]

LINES = [(name, line) for name, text in PAGES.items() for line in commands(text)]


@pytest.mark.parametrize(("page", "line"), LINES, ids=[f"{name}: {line[:60]}" for name, line in LINES])
def test_every_flag_of_every_command_exists(page, line):
    """Running all of them takes minutes of training; that a flag was renamed shows here already."""
    from typer.main import get_command

    from compressor.cli.app import app

    verb, *words = shlex.split(line)[1:]
    command = get_command(app).get_command(None, verb)
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= known | {"--help", "--help-all"}


def test_commands_that_train_nothing_run(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    ready = [line for line in commands(OWN) if "DIR" not in line and "runs/" not in line]
    assert len(ready) >= 3
    for line in ready:
        run(shlex.split(line)[1:], capsys)


@pytest.mark.slow
@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if commands(text) and name != "commands.md"])
def test_all_commands_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch, capsys):
    """With one epoch, on stand-ins for the reader's model and data; those of commands.md run in test_readme.py."""
    stand_ins(tmp_path)
    monkeypatch.chdir(tmp_path)
    for line in owned(commands(PAGES[page])):
        run(shortened(line), capsys)


FILES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if target.startswith(("http:", "https:")):
            continue
        name, _, anchor = target.partition("#")
        there = path.parent / name if name else path
        assert there.exists(), target
        headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), flags=re.MULTILINE) if anchor else ()
        anchors = {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}
        assert not anchor or anchor in anchors, target


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_figure_of_a_block_is_that_of_its_result_file(path):
    from benchmarks.readme import filled

    text = path.read_text(encoding="utf-8")
    assert filled(text) == text, "run python -m benchmarks.readme"
    assert "(not measured yet: " not in text


MEASURED = ("README.md", "results.md", "comparison.md", "deploying.md", "adapnet.md", "your-own-loop.md")


@pytest.mark.parametrize("path", [path for path in FILES if path.name in MEASURED], ids=lambda path: path.name)
def test_no_table_has_figures_that_were_typed(path):
    """Nobody can say how they came about, or measure them again."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"<!-- begin (\w+) -->.*?<!-- end \1 -->", "", text, flags=re.DOTALL)
    cells = [cell.strip() for line in text.splitlines() if line.startswith("|") for cell in line.split("|")]
    assert not [cell for cell in cells if re.fullmatch(r"[^a-z]*\d(\.\d+|[^a-z]*(%|ms|MB|e-\d+))[^a-z]*", cell)]


class _ParsedError(Exception):
    """Raised in place of what a benchmark does with its arguments."""


BENCHMARKS = sorted(
    {
        command
        for text in PAGES.values()
        for command in re.findall(r"(?:^ {4}|`)(python -m benchmarks[^`\n#]*)", text, flags=re.MULTILINE)
    }
)


@pytest.mark.parametrize("command", BENCHMARKS)
def test_every_benchmark_takes_the_arguments_it_is_shown_with(command, monkeypatch):
    """They run for minutes to days; that a flag was renamed or is missing shows here already."""
    _, _, module, *words = shlex.split(command)
    parse = argparse.ArgumentParser.parse_args

    def parsed(parser, args=None, namespace=None):
        parse(parser, args, namespace)
        raise _ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    monkeypatch.setattr(sys, "argv", [module, *words])
    benchmark = importlib.import_module(module)
    if "parse_args" in inspect.getsource(benchmark):  # else it takes none
        with pytest.raises(_ParsedError):
            benchmark.main()


def test_python_runs(capsys):
    [block] = re.findall(r"^```python\n(.*?)^```", OWN, flags=re.MULTILINE | re.DOTALL)
    exec(compile(block, "bring-your-own-model.md", "exec"), {})
    before, after = map(int, capsys.readouterr().out.split())
    assert after < before


def test_the_network_of_the_page_and_the_settings_file_work(tmp_path, monkeypatch, capsys):
    from compressor.cli import main

    net = re.search(r"^ {4}# net\.py\n(.*?)\n\nAny forward", OWN, flags=re.MULTILINE | re.DOTALL).group(1)
    toml = re.search(r"^ {4}# run\.toml\n(.*?)\n\n`", OWN, flags=re.MULTILINE | re.DOTALL).group(1)
    (tmp_path / "net.py").write_text(re.sub(r"^ {4}", "", net, flags=re.MULTILINE))
    (tmp_path / "run.toml").write_text(re.sub(r"^ {4}", "", toml, flags=re.MULTILINE))
    monkeypatch.chdir(tmp_path)
    for words in (
        ["prune", "--arch", "net.py:build", "--dry-run"],
        ["prune", str(ROOT / "sample_models/digits_cnn.safetensors"), "--config", "run.toml", "--dry-run"],
    ):
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 0, capsys.readouterr().err
