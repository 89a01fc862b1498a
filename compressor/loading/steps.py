"""Networks that were made of another network, made again from the plain data that each step left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from compressor.errors import FileError
from compressor.loading.damage import one_line
from compressor.loading.proportion import Proportion
from compressor.surgery.structure import apply_

STRUCTURE = "structure"  # the kind of a step in which only sizes changed, by surgery

# Kind of any other step -> what gives the network after it, of the network before and the step; rooms above bring them.
Rebuilders = Mapping[str, Callable[[nn.Module, Mapping[str, Any]], nn.Module]]
NONE: Rebuilders = {}


def apply_steps(
    module: nn.Module,
    steps: Iterable[Mapping[str, Any]],
    path: Path,
    rebuilders: Rebuilders,
    allowed: Proportion | None = None,
) -> nn.Module:
    """The network that the steps made of a fresh build, in their order; its weights are still to be loaded.

    Raises FileError for a step that is damaged, unknown, does not fit or gets out of proportion.
    """
    for step in steps:
        kind = step.get("kind")
        with (
            one_line(f"{path} is a damaged checkpoint (its step {kind!r}: "),
            nullcontext() if allowed is None else allowed.watching(),
        ):
            if kind == STRUCTURE:
                apply_(module, step)
            elif isinstance(kind, str) and kind in rebuilders:
                module = rebuilders[kind](module, step)
            else:
                raise FileError(f"{path} is a damaged checkpoint, or a newer one: it has a step of the kind {kind!r}")
        if allowed is not None:
            allowed.check(module)
    return module
