"""Which way imports go, read from the source: errors <- graph <- surgery.edits <- methods; nothing imports the cli."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "compressor"
HEAVY = {"torch", "torchvision", "onnx", "onnxruntime", "onnxscript", "sklearn", "matplotlib", "thop", "numpy", "timm"}

OUTER = ("cli", "api", "__main__")

# Room -> rooms of ours that it may not import. A room is a file or a folder directly under compressor/.
FORBIDDEN = {
    "errors": {"*"},
    "text": {"*"},
    "vision": {"graph", "surgery", "methods", "training", "profiling", "exporting", "reporting", "loading"},
    "graph": {"surgery", "methods", "training", "profiling", "exporting", "reporting", "loading"},
    "surgery": {"methods", "training", "profiling", "exporting", "reporting", "loading"},
    "training": {"methods", "surgery", "subnets", "routing", "primenet"},
    "reporting": {"methods", "surgery", "training"},
    "profiling": {"methods", "surgery", "training"},
    "loading": {"methods", "training", "profiling", "exporting", "reporting", "subnets", "routing", "primenet"},
}


def imports(path: Path) -> list[tuple[str, bool]]:
    """What a file imports, and whether it does so on import (and not in a function's body or for the types only)."""
    tree = ast.parse(path.read_text())
    inside = {
        node
        for outer in ast.walk(tree)
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef)) or _is_for_types(outer)
        for node in ast.walk(outer)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node not in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            found += [(f"{node.module}.{alias.name}", node not in inside) for alias in node.names]
    return found


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def ours(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "compressor" and len(parts) > 1 else None


@pytest.mark.parametrize("path", FILES.values(), ids=FILES)
def test_imports_go_one_way(path):
    if room(path) == "__init__":
        return
    for name, _ in imports(path):
        other = ours(name)
        if other is None or other == room(path):
            continue
        forbidden = FORBIDDEN.get(room(path), set())
        assert other not in forbidden and "*" not in forbidden, f"{path.name} imports {name}"
        assert other != "cli" or room(path) == "__main__", f"{path.name} imports the cli: {name}"
        assert other != "pipeline" or room(path) in OUTER, f"{path.name} imports the pipeline: {name}"
        if room(path) == "methods" and other == "surgery":
            assert name.startswith("compressor.surgery.edits"), f"a method decides and does not operate: {name}"


@pytest.mark.parametrize("path", FILES.values(), ids=FILES)
def test_only_one_file_imports_torchvision(path):
    if path.name == "vision.py" and path.parent == PACKAGE:
        return
    assert not [name for name, _ in imports(path) if name.split(".")[0] == "torchvision"]


@pytest.mark.parametrize("path", FILES.values(), ids=FILES)
def test_commands_import_heavy_packages_only_when_they_run(path):
    if room(path) not in ("cli", "__init__", "__main__", "errors"):
        return
    assert not [name for name, at_once in imports(path) if at_once and name.split(".")[0] in HEAVY]
