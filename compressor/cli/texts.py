"""Flags whose text means more than one number or word: `3x224x224`, `KEY=VALUE`, `PATTERN=RATIO`."""

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from compressor.errors import UsageError


@dataclass(frozen=True)
class Reader:
    """How a flag's text becomes a value; `many` for a flag that may be given several times."""

    read: Callable[[Any], Any]
    many: bool = False


def shape(text: str) -> tuple[int, ...]:
    """`3x224x224` -> (3, 224, 224); a number alone is the side of a colour image."""
    parts = text.lower().replace("×", "x").replace(",", "x").split("x")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts) or len(parts) == 2:
        raise UsageError(f"--input {text!r} is not a shape: write CHANNELSxHEIGHTxWIDTH, such as 3x224x224")
    sizes = tuple(int(part) for part in parts)
    return (3, *sizes, *sizes) if len(sizes) == 1 else sizes


def arguments(texts: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    """`["width=0.5"]` -> (("width", 0.5),): Python literals, anything else a string."""
    found = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip().isidentifier():
            raise UsageError(f"--arch-arg {text!r} is not of the form KEY=VALUE, such as num_classes=10")
        try:
            found.append((key.strip(), ast.literal_eval(value.strip())))
        except (ValueError, SyntaxError):
            found.append((key.strip(), value.strip()))
    return tuple(found)


def ratios(texts: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """`["layer1.*=0.2"]` -> (("layer1.*", 0.2),)."""
    found = []
    for text in texts:
        pattern, _, value = text.rpartition("=")
        try:
            found.append((pattern, float(value)))
        except ValueError:
            pattern = ""
        if not pattern:
            raise UsageError(f"--ratio-for {text!r} is not of the form LAYER=RATIO, such as 'layer1.*=0.2'")
    return tuple(found)


def epochs(text: str) -> tuple[int, ...]:
    """`30,60` -> (30, 60)."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"--milestones {text!r} is not a list of epochs: write them as 30,60")
    return tuple(int(part) for part in parts)


def units(text: str) -> tuple[int, ...]:
    """`0,2,5` -> (0, 2, 5)."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"--leave-after {text!r} is not a list of unit numbers: write them as 0,2,5 (see --list)")
    return tuple(int(part) for part in parts)


def names(text: str) -> tuple[str, ...]:
    """`features.7,features.24` -> ("features.7", "features.24")."""
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts):
        raise UsageError(f"--at {text!r} is not a list of modules: write them as features.7,features.24")
    return parts


def words(text: str) -> tuple[str, ...]:
    """`l1,taylor` -> ("l1", "taylor")."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(flag: str) -> Callable[[str], tuple[float, ...]]:
    """The reader of a flag that takes numbers: `0.5,0.25` -> (0.5, 0.25)."""

    def read(text: str) -> tuple[float, ...]:
        try:
            return tuple(float(part) for part in text.split(","))
        except ValueError as error:
            raise UsageError(f"{flag} {text!r} is not a list of numbers: write them as 0.5,0.25") from error

    return read


def scales(text: str) -> tuple[int, ...]:
    """`3,5,7` -> (3, 5, 7)."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"--scales {text!r} is not a list of kernel sizes: write them as 3,5,7")
    return tuple(int(part) for part in parts)


def multiple(text: str) -> int | str:
    """`8` -> 8, `auto` -> "auto"."""
    if text == "auto":
        return text
    if not text.lstrip("-").isdecimal():
        raise UsageError(f"--round-to {text!r} is no number: write 8, or auto for what this machine likes")
    return int(text)


READERS: dict[str, Reader] = {
    "input": Reader(shape),
    "arch_arg": Reader(arguments, many=True),
    "ratio_for": Reader(ratios, many=True),
    "keep": Reader(tuple, many=True),
    "also": Reader(tuple, many=True),
    "milestones": Reader(epochs),
    "round_to": Reader(multiple),
    "scales": Reader(scales),
    "at": Reader(names),
    "leave_after": Reader(units),
    "targets": Reader(numbers("--targets")),
    "mean": Reader(numbers("--mean")),
    "std": Reader(numbers("--std")),
    "loss_weights": Reader(numbers("--loss-weights")),
    "methods": Reader(words),
    "ratios": Reader(numbers("--ratios")),
}
