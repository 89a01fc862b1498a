"""What the shell offers behind a flag: methods, data sets, architectures; nothing is imported until it is needed."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from compressor.pruning.settings import METHODS
from compressor.training.settings import SPECS

SETS = tuple(spec.removesuffix("DIR") for spec in SPECS)
_HOMES = ("torchvision:", "timm:")


def method(incomplete: str) -> list[str]:
    """Methods of `compressor prune`."""
    return _beginning(METHODS, incomplete)


def methods(incomplete: str) -> list[str]:
    """The last of several methods with commas between them, each of them once."""
    before, comma, last = incomplete.rpartition(",")
    given = before.split(",")
    return [f"{before}{comma}{name}" for name in _beginning(METHODS, last) if name not in given]


def data(incomplete: str) -> list[str]:
    """Data sets; behind the colon, folders."""
    name, colon, place = incomplete.partition(":")
    if not colon:
        return _beginning(SETS, incomplete)
    return [f"{name}:{path}/" for path in _paths(place) if path.is_dir()]


def arch(incomplete: str) -> list[str]:
    """Where architectures are, Python files and the functions in them; behind the colon torchvision's or timm's."""
    home, colon, name = incomplete.partition(":")
    if colon and home == "torchvision":
        from compressor.vision import door as vision

        return [f"{home}:{each}" for each in _beginning(vision.classifiers(), name)]
    if colon and home == "timm":
        try:
            import timm
        except ImportError:
            return []
        return [f"{home}:{each}" for each in _beginning(timm.list_models(), name)]
    if colon:
        return [f"{home}:{each}" for each in _beginning(_functions(Path(home)), name)]
    files = [str(path) + ("/" if path.is_dir() else ":") for path in _paths(home) if path.is_dir() or _is_code(path)]
    return [*_beginning(_HOMES, incomplete), *files]


COMPLETERS: dict[str, Callable[[str], list[str]]] = {
    "method": method, "methods": methods, "arch": arch, "data": data,
}  # fmt: skip


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _is_code(path: Path) -> bool:
    return path.suffix == ".py"


def _paths(incomplete: str) -> list[Path]:
    """What lies in the folder that was begun, with names as they begin; hidden ones only where asked for."""
    begun = Path(incomplete)
    folder, last = (begun, "") if incomplete.endswith("/") or not incomplete else (begun.parent, begun.name)
    try:
        names = sorted(path.name for path in folder.expanduser().iterdir())
    except OSError:
        return []
    return [folder / name for name in _beginning(names, last) if last or not name.startswith(".")]


def _functions(file: Path) -> list[str]:
    """Public functions at the top of a file, which is read and not run."""
    try:
        text = file.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    return re.findall(r"^def ([a-z]\w*)\(", text, flags=re.MULTILINE)
