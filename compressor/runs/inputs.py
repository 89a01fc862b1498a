"""What a person may say of a network's inputs: each one's name, type and sizes; nothing heavy is imported."""

from collections.abc import Iterable
from dataclasses import dataclass

from compressor.errors import UsageError
from compressor.settings import shape, sizes


@dataclass(frozen=True)
class Input:
    """One input of a network, for one example."""

    name: str | None  # of the argument; None: by its place
    kind: str | None  # such as "int64"; None: float32
    sizes: tuple[int, ...]  # without the batch

    @classmethod
    def read(cls, text: str) -> "Input":
        """`3x224x224`, `mask=1x64x64`, `ids=int64:16`; a type alone, `step=int64`, is one number an example.

        Raises ValueError.
        """
        name, named, rest = text.rpartition("=")
        kind, typed, shown = rest.rpartition(":")
        if named and not name.isidentifier():
            raise ValueError(text)
        if not typed and rest.isidentifier():
            kind, shown = rest, ""
        if kind and kind not in INPUT_KINDS:
            raise ValueError(text)
        read = () if not shown and kind else sizes(shown) if named or kind else shape(shown)
        return cls(name or None, kind or None, read)


INPUT_KINDS = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")


def inputs(texts: Iterable[str]) -> tuple[Input, ...]:
    """What is said of each input of a network.

    Raises:
        UsageError: a text says nothing of an input, or some inputs have names of their own and others do not.
    """
    found = []
    for text in texts:
        try:
            found.append(Input.read(text))
        except ValueError as error:
            raise UsageError(
                f"`input` {text!r} is not of the form CxHxW, such as 3x224x224, or NAME=TYPE:SIZES, such as "
                "ids=int64:16"
            ) from error
    names = [each.name for each in found if each.name is not None]
    if names and len(set(names)) < len(found):
        raise UsageError("`input` is given several times: name each of them, or none")
    return tuple(found)
