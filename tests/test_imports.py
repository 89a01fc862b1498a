"""Which way imports go, read from the source: a room imports itself and what stands on lower floors."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "compressor"
HEAVY = {"torch", "torchvision", "onnx", "onnxruntime", "onnxscript", "sklearn", "matplotlib", "thop", "numpy", "timm"}

# The floors, lowest first; a room is a file or a folder directly under compressor/. Rooms on one floor do not meet.
FLOORS = (
    "errors", "files vision settings", "report", "graph", "surgery", "loading profiling", "training", "pruning certify",
    "exits routing primenet", "exporting", "runs", "cli",
)  # fmt: skip
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}
FREE = ("__init__", "__main__")  # the public names, and the program's start


@cache
def trees() -> dict[Path, ast.AST]:
    """Every file of the package, as Python reads it."""
    return {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def imports(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """The modules that a file imports, in functions and for types only too, and those that its texts name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            module = re.fullmatch(r"(compressor(?:\.\w+)+)(?::\w+)?", node.value)
            if module and module[1].split(".")[1] in FLOOR:
                yield module[1], node


def climbs(room: str, tree: ast.AST) -> list[str]:
    """What a file of that room may not import."""
    ours = (name for name, _ in imports(tree) if name.split(".")[0] == "compressor")
    others = ((name, name.split(".")[1]) for name in ours)
    return [name for name, other in others if other != room and FLOOR.get(other, len(FLOORS)) >= FLOOR[room]]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_imports_go_down():
    rooms = {room_of(path) for path in trees()}
    assert rooms <= {*FREE, *FLOOR}, "a room has no floor"
    inside = {path: tree for path, tree in trees().items() if room_of(path) not in FREE}
    assert not {path: found for path, tree in inside.items() if (found := climbs(room_of(path), tree))}


@pytest.mark.parametrize(
    "planted",
    [
        "from compressor.cli.app import main",
        "from compressor.loading import opening",
        "import compressor.runs.prune",
        "def later():\n    from compressor.exporting.onnx import export_onnx",
        "if TYPE_CHECKING:\n    from compressor.pruning.obs import Obs",
        "import_module('compressor.runs.resume')",
        "HOMES = {'prune_': 'compressor.runs.oneshot:prune_'}",
    ],
)
def test_an_import_that_climbs_is_seen(planted):
    assert climbs("profiling", ast.parse(planted))
    assert not climbs("cli", ast.parse(planted))


def test_methods_decide_and_do_not_operate():
    pruning = {path: tree for path, tree in trees().items() if room_of(path) == "pruning"}
    operating = [
        (path, name)
        for path, tree in pruning.items()
        for name, _ in imports(tree)
        if name.startswith("compressor.surgery.")
    ]
    assert [each for each in operating if not each[1].startswith("compressor.surgery.edits")] == []
    assert operating


def test_only_one_file_imports_torchvision():
    found = {path for path, tree in trees().items() for name, _ in imports(tree) if name.split(".")[0] == "torchvision"}
    assert found == {PACKAGE / "vision" / "door.py"}


def test_commands_import_heavy_packages_only_when_they_run():
    light = {path: tree for path, tree in trees().items() if room_of(path) in ("cli", "errors", *FREE)}
    assert [(path, name) for path, tree in light.items() for name in at_once(tree) if name.split(".")[0] in HEAVY] == []


def at_once(tree: ast.AST) -> list[str]:
    """What a file imports when it is imported, and not in a function's body or for the types only."""
    later = {
        node
        for outer in ast.walk(tree)
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef)) or _is_for_types(outer)
        for node in ast.walk(outer)
    }
    return [name for name, node in imports(tree) if node not in later]


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
