"""A network that no architecture names, as plain data: its layers' tree, and what tensors it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compressor.loading.tree import TreeError, build, describe, dtype_named


def blueprint(module: nn.Module) -> dict[str, Any]:
    """How to build the network again, without its weights. Raises TreeError where no file can say."""
    layers, tensors = describe(module)
    first: dict[int, str] = {}
    sizes = {
        name: first[id(tensor)]
        if first.setdefault(id(tensor), name) != name
        else [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        for name, tensor in tensors.items()
    }
    return {"layers": layers, "tensors": sizes}


def build_blank(held: Mapping[str, Any], most_bytes: float = float("inf")) -> nn.Module:
    """The network of a blueprint, with weights of zero.

    Raises TreeError for a blueprint that is damaged or asks for more than `most_bytes`.
    """
    tensors: dict[str, Tensor] = {}
    left = most_bytes
    try:
        for name, form in held["tensors"].items():
            if isinstance(form, str):
                tensors[name] = tensors[form]
                continue
            meta = torch.empty(form[1], dtype=dtype_named(form[0]), device="meta")
            left -= meta.nbytes
            if left < 0:
                raise TreeError("its layers are out of all proportion to its weights")
            tensors[name] = torch.zeros_like(meta, device="cpu")
        return build(held["layers"], tensors)
    except TreeError:
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise TreeError(f"its description is damaged: {type(error).__name__}") from error
