"""Which output of a network stands for which class folder, where the network has more classes than the data."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.errors import FileError

_LARGEST = 16 << 20  # bytes; ImageNet's 21,841 names take one


def read_class_numbers(path: Path) -> dict[str, int]:
    """The output index of each class name.

    The file is JSON, `{"cat": 281}` or `{"281": "cat"}` or `{"281": ["n02123045", "cat"]}` (ImageNet's class index), or
    text with one name a line, the first line being output 0.

    Raises FileError for a file that is missing or of another form.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_LARGEST + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path} cannot be read as a list of classes ({error})") from error
    if len(text) > _LARGEST:
        raise FileError(f"{path} is larger than any list of classes")
    if not text.lstrip().startswith("{"):
        return {name.strip(): index for index, name in enumerate(text.splitlines()) if name.strip()}
    try:
        return _numbers(json.loads(text))
    except (TypeError, ValueError, RecursionError) as error:
        raise FileError(
            f'{path} does not say which output each class has: write {{"CLASS": INDEX, ...}}, or one name a line'
        ) from error


def _numbers(held: Mapping[str, Any]) -> dict[str, int]:
    if all(type(value) is int and value >= 0 for value in held.values()):
        return dict(held)
    names = {int(index): [value] if isinstance(value, str) else value for index, value in held.items()}
    if not all(isinstance(name, str) for each in names.values() for name in each) or min(names) < 0:
        raise ValueError("neither names nor numbers")
    return {name: index for index, each in names.items() for name in each}
