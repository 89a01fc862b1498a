"""Networks that were made of another network: which room makes each kind again, from the plain data it left behind."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from compressor.errors import FileError
from compressor.loading.damage import one_line
from compressor.loading.proportion import Proportion
from compressor.surgery.structure import apply_

# Kind of a step -> the module whose `rebuild(network, step)` gives the network after it.
REBUILDERS = {
    "detach": "compressor.subnets.detachable",
    "nsn": "compressor.subnets.nested",
    "primenet": "compressor.primenet.rebuild",
    "route": "compressor.routing.rebuild",
}
STRUCTURE = "structure"  # the kind of a step in which only sizes changed, by surgery


def apply_steps(
    module: nn.Module, steps: Iterable[Mapping[str, Any]], path: Path, allowed: Proportion | None = None
) -> nn.Module:
    """The network that the steps made of a fresh build, in their order; its weights are still to be loaded.

    Raises FileError for a step that is damaged, unknown, does not fit or gets out of proportion.
    """
    for step in steps:
        kind = step.get("kind")
        if kind == STRUCTURE:
            restructure_(module, step, path)
        elif isinstance(kind, str) and kind in REBUILDERS:
            with (
                one_line(f"{path} is a damaged checkpoint (its step {kind!r}: "),
                nullcontext() if allowed is None else allowed.watching(),
            ):
                module = importlib.import_module(REBUILDERS[kind]).rebuild(module, step)
        else:
            raise FileError(f"{path} is a damaged checkpoint, or a newer one: it has a step of the kind {kind!r}")
        if allowed is not None:
            allowed.check(module)
    return module


def restructure_(module: nn.Module, structure: Mapping[str, Any], path: Path) -> None:
    """Give a freshly built network the sizes of the edited one, in place.

    Raises FileError for a structure that is damaged or does not fit.
    """
    with one_line(f"{path} is a damaged checkpoint (its structure: "):
        apply_(module, structure)
