"""Make a PrimeNet of a fresh build again, as a checkpoint says."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from compressor.errors import FileError, ModelError, UsageError
from compressor.primenet.network import PrimeNetwork
from compressor.primenet.place import Early
from compressor.primenet.settings import PrimeNetSettings


def rebuild(module: nn.Module, step: Mapping[str, Any]) -> PrimeNetwork:
    """The network that `step()` described, around `module`: a new build of the user's, or a PrimeNet itself.

    The weights are random until they are loaded. Raises FileError for a step that does not fit the module.
    """
    try:
        scales, origin, learning = [int(scale) for scale in step["scales"]], step["origin"], bool(step["learning"])
        network = module if isinstance(module, PrimeNetwork) else _replaced(module, origin)
        if not set(scales) <= set(network.stage.block.scales):
            raise FileError(f"the checkpoint keeps scales {scales}, which its block does not have: it is damaged")
    except (ArithmeticError, LookupError, ModelError, RuntimeError, TypeError, UsageError, ValueError) as error:
        raise FileError(
            f"the checkpoint's block does not fit its network ({error}): it is damaged, or of another architecture"
        ) from error
    if not learning and network.stage.block.learning:
        network.stage.block.settle_(scales)
    return network


def _replaced(module: nn.Module, origin: Mapping[str, Any]) -> PrimeNetwork:
    scales, image = tuple(map(int, origin["scales"])), tuple(map(int, origin["image"]))
    settings = replace(PrimeNetSettings(), scales=scales, reduced=int(origin["reduced"]), fit=origin["fit"])
    early = Early(module, image, int(origin["classes"]), settings)
    shape = tuple(map(int, origin["shape"]))
    cuts = early.chain.cuts
    if origin["until"]:
        cut = early.find(str(origin["until"]))
    else:  # made by code outside any module: only its number says which
        cut = cuts[min(int(origin["cut"]), len(cuts) - 1)]
    if cut.shape != shape:
        raise FileError(f"the checkpoint's stage ends at {shape}, the architecture has {cut.shape} there: give its own")
    return early.replaced(cut)
