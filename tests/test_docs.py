"""The page on models of one's own: its Python runs, its network is pruned, its commands' flags exist."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md")}
OWN = PAGES["bring-your-own-model.md"]


def commands(text):
    joined = re.sub(r" \\\n +", " ", text)
    found = re.findall(r"^ {4}(compressor .*)$", joined, flags=re.MULTILINE)
    return [line.partition("  #")[0].strip() for line in found]


LINES = [(name, line) for name, text in PAGES.items() for line in commands(text)]


@pytest.mark.parametrize(("page", "line"), LINES, ids=[f"{name}: {line[:60]}" for name, line in LINES])
def test_every_flag_of_every_command_exists(page, line):
    """Running all of them takes minutes of training; that a flag was renamed shows here already."""
    from typer.main import get_command

    from compressor.cli.app import app

    verb, *words = shlex.split(line)[1:]
    command = get_command(app).commands[verb]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= known | {"--help", "--help-all"}


def test_commands_without_data_of_the_readers_run(monkeypatch, capsys):
    from compressor.cli import main

    monkeypatch.chdir(ROOT)
    ready = [line for line in commands(OWN) if "DIR" not in line and "runs/" not in line]
    assert len(ready) >= 3
    for line in ready:
        with pytest.raises(SystemExit) as left:
            main(shlex.split(line)[1:])
        assert left.value.code == 0, f"{line}: {capsys.readouterr().err}"
        capsys.readouterr()


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
        ["prune", str(ROOT / "sample_models/digits_cnn.pt"), "--config", "run.toml", "--dry-run"],
    ):
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 0, capsys.readouterr().err
