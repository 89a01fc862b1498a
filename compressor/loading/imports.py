"""Import the user's own files as they would be where they lie: in their package, beside their neighbours.

What one project's files import stays theirs: another project's module of the same name is another module.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType


@dataclass(frozen=True)
class Place:
    """Where a file is among packages."""

    path: Path
    root: Path  # the folder that holds the outermost package, or the file itself
    package: str  # dotted, of the file's folder; empty outside packages

    @classmethod
    def of(cls, path: Path, source: bytes) -> Place:
        """A folder with `__init__.py` is a package; so is one without, as far as the file imports relative to it."""
        path = path.resolve()
        folders = [path.parent, *path.parent.parents]
        depth = next(count for count, folder in enumerate(folders) if not (folder / "__init__.py").is_file())
        levels = max(_relative_levels(source), default=0)
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
    own = _PROJECTS.get(place.root, {})
    if any(_written(module) != time for module, time in own.values()):
        for name, (module, _) in _PROJECTS.pop(place.root).items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
    name = place.module(sha256)
    with importing(place):
        folders = [place.path.parent, *place.path.parent.parents]
        names = place.package.split(".") if place.package else []
        for depth in range(1, len(names) + 1):
            _ensure_package(".".join(names[:depth]), folders[len(names) - depth])
        held = sys.modules.get(name)
        if held is not None and Path(held.__file__ or "").resolve() == place.path:
            return held
        module = ModuleType(name)
        module.__file__, module.__package__ = str(place.path), place.package
        module.__spec__ = ModuleSpec(name, None, origin=str(place.path))
        sys.modules[name] = module  # dataclasses look their module up while it runs
        try:
            exec(compile(source, str(place.path), "exec"), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
        if names:
            setattr(sys.modules[place.package], place.path.stem, module)
        return module


@contextmanager
def importing(place: Place) -> Iterator[None]:
    """Let code of a project find its own modules: those of its folder, of the file's and of the current one."""
    before, path = dict(sys.modules), list(sys.path)
    mine = {entry.stem for entry in place.root.iterdir() if entry.suffix == ".py" or entry.is_dir()}
    for name, module in before.items():
        if name.partition(".")[0] in mine and _is_anothers(name, module, place.root):
            del sys.modules[name]
    sys.modules.update({name: module for name, (module, _) in _PROJECTS.get(place.root, {}).items()})
    sys.path[:] = [str(place.root), *path, str(place.path.parent), str(Path.cwd())]
    try:
        yield
    finally:
        sys.path[:] = path
        known = _PROJECTS.setdefault(place.root, {})
        for name, module in _new(sys.modules, before).items():
            if _is_below(module, (place.root, Path.cwd())) and not _is_importable(name, module, path):
                known[name] = module, _written(module)
        sys.modules.update(before)


def find_file(dotted: str) -> Path | None:
    """The file of a module by its dotted name: from the current folder, its `src`, or where Python looks."""
    parts = dotted.split(".")
    for folder in (Path.cwd(), Path.cwd() / "src", *map(Path, sys.path)):
        place = folder.joinpath(*parts)
        for path in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
            if path.is_file():
                return path
    return None


def defined(source: bytes) -> list[str]:
    """The public functions and classes that a file defines; none where it is not Python."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [each.name for each in body if isinstance(each, kinds) and not each.name.startswith("_")]


def _relative_levels(source: bytes) -> list[int]:
    try:
        return [node.level for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # running it says what is wrong
        return []


def _ensure_package(name: str, folder: Path) -> None:
    """Let a folder be the package of that name, whatever else is called so, and whether or not it has a file."""
    held = sys.modules.get(name)
    if held is not None and any(Path(each).resolve() == folder for each in getattr(held, "__path__", ())):
        return
    file = folder / "__init__.py"
    spec = ModuleSpec(name, None, is_package=True)
    if file.is_file():
        spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[str(folder)]) or spec
    else:
        spec.submodule_search_locations = [str(folder)]
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    if spec.loader is not None:
        try:
            spec.loader.exec_module(package)
        except BaseException:
            del sys.modules[name]
            raise
    parent, _, leaf = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], leaf, package)


def _new(now: Mapping[str, ModuleType], before: Mapping[str, ModuleType]) -> dict[str, ModuleType]:
    return {name: module for name, module in list(now.items()) if before.get(name) is not module}


def _files(module: ModuleType) -> list[Path]:
    """The file of a module, or the folders of a package without one."""
    named = getattr(module, "__file__", None)
    held = [named] if isinstance(named, str) else [each for each in getattr(module, "__path__", ()) if each]
    return [Path(each).resolve() for each in held]


def _is_below(module: ModuleType, folders: tuple[Path, ...]) -> bool:
    return any(file.is_relative_to(folder) for file in _files(module) for folder in folders)


def _is_importable(name: str, module: ModuleType, path: list[str]) -> bool:
    """Whether Python would find this very module without our help."""
    files = _files(module)
    for entry in path:
        place = Path(entry).resolve().joinpath(*name.split("."))
        if any(each in files for each in (place.with_name(f"{place.name}.py"), place / "__init__.py", place)):
            return True
    return False


def _is_anothers(name: str, module: ModuleType, root: Path) -> bool:
    """Whether a module is somebody's own code from another folder, and neither Python's, installed nor ours."""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top == __name__.partition(".")[0]:
        return False
    files = _files(module)
    installed = any(part in ("site-packages", "dist-packages") for file in files for part in file.parts)
    return bool(files) and not installed and not _is_below(module, (root,))


def _written(module: ModuleType) -> int:
    try:
        return max((file.stat().st_mtime_ns for file in _files(module) if file.is_file()), default=0)
    except OSError:
        return -1
