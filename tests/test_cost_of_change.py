"""The diffs of docs/architecture.md for a change: those that came in stand in the code, the others work today."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pages import PAGES, ROOT

PAGE = PAGES["architecture.md"]
# A diff: the lines of one indented block that begins with a file's old name.
DIFFS = [
    re.sub(r"^ {4}", "", block, flags=re.MULTILINE)
    for block in re.findall(r"^ {4}--- .*\n(?:(?: {4}.*)?\n(?= {4}|\n {4}))*(?: {4}.*\n)?", PAGE, flags=re.MULTILINE)
]
CAME_IN = {"_trilinear": "Bilinear", "label_smoothing": "a setting", "read_svhn": "a data set", "l2": "a criterion"}
TRIED = {"torchscript": "a runtime", "recalibrate": "a verb"}


def one(word: str) -> str:
    [found] = [diff for diff in DIFFS if word in diff]
    return found


def files(diff: str) -> Iterator[tuple[str, list[list[str]]]]:
    """Each file's name and its hunks, as lines with their marks."""
    for name, body in re.findall(r"^\+\+\+ b/(.*)\n((?:(?!--- ).*\n?)*)", diff, flags=re.MULTILINE):
        yield name, [hunk.strip("\n").splitlines() for hunk in body.split("@@\n") if hunk.strip()]


def apply(diff: str, root: Path) -> None:
    """A hunk goes where its context or the line that it takes away stands; one of additions alone before the statement
    that the file's next hunk is in."""
    for name, hunks in files(diff):
        path = root / name
        if not path.exists():
            [hunk] = hunks
            path.write_text("".join(f"{line[1:]}\n" for line in hunk))
            continue
        lines = path.read_text().splitlines()
        for number, hunk in enumerate(hunks):
            added = [line[1:] for line in hunk if line.startswith("+")]
            known = [
                line[1:] for line in (*hunk, *(hunks[number + 1] if number + 1 < len(hunks) else ())) if line[0] in " -"
            ]
            assert lines.count(known[0]) == 1, (name, known[0])
            at = lines.index(known[0])
            if all(line.startswith("+") for line in hunk):
                while not re.match(r"\w", lines[at]):
                    at -= 1
                lines[at:at] = [*added, "", ""]
            else:
                lines[at : at + 1] = [*(line[1:] for line in hunk if line[0] != "-")]
        path.write_text("\n".join(lines) + "\n")


def test_every_diff_is_looked_at() -> None:
    assert len(DIFFS) == len(CAME_IN) + len(TRIED)
    assert {one(word) for word in (*CAME_IN, *TRIED)} == set(DIFFS)


@pytest.mark.parametrize("word", CAME_IN, ids=CAME_IN.values())
def test_a_change_that_came_in_stands_in_the_code(word: str) -> None:
    for name, hunks in files(one(word)):
        lines = (ROOT / name).read_text().splitlines()
        shown = [line[1:] for hunk in hunks for line in hunk if line[0] in "+ " and line[1:]]
        assert shown and not set(shown) - set(lines), name


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with all other diffs applied."""
    place = tmp_path_factory.mktemp("changed")
    shutil.copytree(ROOT / "compressor", place / "compressor", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "sample_models").symlink_to(ROOT / "sample_models")
    for word in TRIED:
        apply(one(word), place)
    return place


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "export MODEL --to torchscript --data digits --out deploy",
        "verify deploy",
        "recalibrate MODEL --data digits --out runs/recalibrated --no-latency",
    ],
)
def test_a_change_of_the_page_does_what_it_says(command: str, changed: Path) -> None:
    words = command.replace("MODEL", str(ROOT / "sample_models" / "digits_cnn.safetensors")).split()
    ran = subprocess.run(
        [sys.executable, "-m", "compressor", *words],
        cwd=changed, env=os.environ | {"PYTHONPATH": str(changed)}, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert words[0] != "recalibrate" or (changed / "runs" / "recalibrated" / "model.safetensors").exists()
