"""Messages name the setting, `target_ms`, which a person who calls Python knows; the command line spells the flag."""

import ast
import re
from collections.abc import Iterator

import pytest

from compressor.cli.options import as_typed
from compressor.runs.jobs import VERBS
from compressor.settings import known_to
from tests.test_imports import PACKAGE, room_of, trees

SETTINGS = {name.strip("_").replace("_", "-") for kinds in VERBS.values() for kind in kinds for name in known_to(kind)}
# Commands to type in a text: `compressor prune MODEL --out FOLDER` in backquotes, or "tune --kit" without.
COMMAND = re.compile(rf"`compressor [^`]*`|\b(?:{'|'.join(VERBS)}) --[a-z-]+|compressor prune MODEL .*")
# What reports and tables say: pages and terminals show it as it is.
REPORTED = (
    "no --data was given", "left out by --no-latency", "where --data is given", "cannot be written: give --out",
    "--arch timm:NAME", "a larger --validation share", "--fit stride makes the block", "a smaller --target-macs",
    "--round-to auto makes", "without it sums saturate: --chip", "take flat graphs only (--exits separate)",
)  # fmt: skip


def texts(tree: ast.AST) -> Iterator[str]:
    """What a file may say to a person: no docstrings, and no help of settings, which the command line shows alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setting":
            continue
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            for part in node.values:
                yield from texts(part) if isinstance(part, ast.FormattedValue) else ()
        elif isinstance(node, ast.Constant):
            yield from [node.value] if isinstance(node.value, str) else []
        else:
            yield from texts(node)


def flags(text: str) -> set[str]:
    """The settings that a text spells as flags."""
    return set(re.findall(r"--(?:no-)?([a-z][a-z-]*)", COMMAND.sub("", text))) & SETTINGS


def test_no_message_below_the_command_line_spells_a_flag():
    below = {path: tree for path, tree in trees().items() if room_of(path) != "cli"}
    spelled = {(path, text) for path, tree in below.items() for text in texts(tree) if flags(text)}
    reported = {each for each in REPORTED if any(each in text for _, text in spelled)}
    assert reported == set(REPORTED), "no longer said"
    left = [(path, text) for path, text in spelled if not any(each in text for each in REPORTED)]
    assert not [f"{path.relative_to(PACKAGE)}: {text}" for path, text in left]


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("give `target_ms` 2 or `for_`", "give --target-ms 2 or --for"),
        ("leave it out with `onnx=False`", "leave it out with --no-onnx"),
        ("`model` is a `Conv2d` with `bias=False`", "MODEL is a `Conv2d` with `bias=False`"),
    ],
)
def test_the_command_line_spells_the_flag(text, typed):
    assert as_typed(text) == typed
