"""Checkpoint files as somebody could have made them: a good one whose header or tensors were changed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compressor.loading import checkpoint
from compressor.loading.checkpoint import KIND

Edit = Callable[[dict[str, Any], dict[str, Any]], Any]


def header_of(path: Path) -> dict[str, Any]:
    """The header as JSON has it."""
    return json.loads(checkpoint.read(path).metadata[KIND])


def change(path: Path, edit: Edit, to: Path | None = None) -> Path:
    """Write the checkpoint again, with a right checksum, after `edit(header, tensors)`."""
    contents = checkpoint.read(path)
    header, tensors = json.loads(contents.metadata[KIND]), dict(contents.tensors)
    edit(header, tensors)
    checkpoint.write(to or path, KIND, header, tensors)
    return to or path
