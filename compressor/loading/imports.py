"""Import the user's own files as they would be where they lie: in their package, beside their neighbours.

What one project's files import stays theirs: another project's module of the same name is another module.
"""

import ast
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

# Where code lies that is Python's or ours; what was installed lies in folders of these names.
_NOBODYS = (Path(os.__file__).resolve().parent, Path(__file__).resolve().parents[1])
_INSTALLED = {"site-packages", "dist-packages"}


@dataclass(frozen=True)
class Place:
    """Where a file is among packages."""

    path: Path
    root: Path  # the folder that holds the outermost package, or the file itself
    package: str  # dotted, of the file's folder; empty outside packages

    @classmethod
    def of(cls, path: Path, source: bytes) -> "Place":
        """A folder with `__init__.py` is a package; so is one without, as far as the file imports relative to it."""
        path = path.resolve()
        folders = [path.parent, *path.parent.parents]
        depth = next(count for count, folder in enumerate(folders) if not (folder / "__init__.py").is_file())
        tree = _parsed(source)
        levels = max((node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)), default=0)
        if levels and depth == 0 and path.is_relative_to(Path.cwd()):
            levels = max(levels, len(path.relative_to(Path.cwd()).parts) - 1)
        depth = min(max(depth, levels), len(folders) - 1)
        package = ".".join(folder.name for folder in reversed(folders[:depth]))
        return cls(path, folders[depth], package)

    def module(self, sha256: str) -> str:
        """The name of the file as a module: its own in a package, else one that no other file has."""
        if self.path.stem == "__init__":
            return self.package
        if self.package:
            return f"{self.package}.{self.path.stem}"
        return f"compressor_architecture_{hashlib.sha256(str(self.path).encode()).hexdigest()[:8]}_{sha256[:16]}"


# The modules of each project that were imported, by the project's folder, each with the time at which it was written.
_PROJECTS: dict[Path, dict[str, tuple[ModuleType, int]]] = {}


def module_of(place: Place, source: bytes, sha256: str) -> ModuleType:
    """The file as a module. What is run is `source`; the same content is the same module, as are its neighbours.

    Raises whatever the code raises.
    """
    if any(_written(module) != time for module, time in _PROJECTS.get(place.root, {}).values()):
        for name, (module, _) in _PROJECTS.pop(place.root).items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
    with importing(place):
        names = place.package.split(".") if place.package else []
        for depth in range(1, len(names) + 1):
            file = place.root.joinpath(*names[:depth], "__init__.py")
            held = sys.modules.get(".".join(names[:depth]))
            if not any(Path(each).resolve() == file.parent for each in getattr(held, "__path__", ())):
                _run(".".join(names[:depth]), file, file.read_bytes() if file.is_file() else b"", is_package=True)
        name = place.module(sha256)
        held = sys.modules.get(name)
        return held if held and _files(held) == [place.path] else _run(name, place.path, source, is_package=False)


def _run(name: str, path: Path, source: bytes, *, is_package: bool) -> ModuleType:
    """Make a module of source code, whatever else is called so; where the code fails, none is left."""
    module, parent = ModuleType(name), name.rpartition(".")[0]
    module.__file__, module.__package__ = str(path), name if is_package else parent
    module.__spec__ = ModuleSpec(name, None, origin=str(path), is_package=is_package)
    if is_package:
        module.__path__ = module.__spec__.submodule_search_locations = [str(path.parent)]
    sys.modules[name] = module  # dataclasses look their module up while it runs
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    if parent:
        setattr(sys.modules[parent], name.rpartition(".")[2], module)
    return module


@contextmanager
def importing(place: Place) -> Iterator[None]:
    """Let code of a project find its own modules: those of its folder, of the file's and of the current one."""
    before, path = dict(sys.modules), list(sys.path)
    mine = {entry.stem for entry in place.root.iterdir() if entry.suffix == ".py" or entry.is_dir()}
    for name, module in before.items():
        if name.partition(".")[0] in mine and _is_users(module) and not _is_below(module, place.root):
            del sys.modules[name]
    sys.modules.update({name: module for name, (module, _) in _PROJECTS.get(place.root, {}).items()})
    sys.path[:] = [str(place.root), *path, str(place.path.parent), str(Path.cwd())]
    try:
        yield
    finally:
        sys.path[:] = path
        known = _PROJECTS.setdefault(place.root, {})
        for name, module in list(sys.modules.items()):
            if before.get(name) is not module and _is_users(module) and _is_below(module, place.root, Path.cwd()):
                known[name] = module, _written(module)
        sys.modules.update(before)


def find_file(dotted: str) -> Path | None:
    """The file of a module by its dotted name: from the current folder, its `src`, or where Python looks."""
    for folder in (Path.cwd(), Path.cwd() / "src", *map(Path, sys.path)):
        place = folder.joinpath(*dotted.split("."))
        for path in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
            if path.is_file():
                return path
    return None


def defined(source: bytes) -> list[str]:
    """The public functions and classes that a file defines; none where it is not Python."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [each.name for each in _parsed(source).body if isinstance(each, kinds) and not each.name.startswith("_")]


def _parsed(source: bytes) -> ast.Module:
    """The syntax tree, which is empty where running the source will say what is wrong with it."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module([], [])


def _files(module: ModuleType) -> list[Path]:
    """The file of a module, or the folders of a package without one."""
    named = getattr(module, "__file__", None)
    held = [named] if isinstance(named, str) else [each for each in getattr(module, "__path__", ()) if each]
    return [Path(each).resolve() for each in held]


def _is_below(module: ModuleType, *folders: Path) -> bool:
    return any(file.is_relative_to(folder) for file in _files(module) for folder in folders)


def _is_users(module: ModuleType) -> bool:
    """Whether a module is somebody's own code, and neither Python's, installed nor ours."""
    files = _files(module)
    return bool(files) and not _is_below(module, *_NOBODYS) and not any(_INSTALLED & {*file.parts} for file in files)


def _written(module: ModuleType) -> int:
    try:
        return max((file.stat().st_mtime_ns for file in _files(module) if file.is_file()), default=0)
    except OSError:
        return -1
