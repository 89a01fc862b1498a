"""What can be captured at all, and why the rest cannot."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from compressor.errors import ModelError, UsageError
from compressor.graph.held import tensors_in


def check_model(model: nn.Module, modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Raise what a model, with these modules and tensors, is refused with before it is copied and run.

    Raises:
        ModelError: it has no parameters, or ones without shapes, or of a layout that cannot be cut; or it is prepared
            for quantization.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError("the code of a traced or scripted module is fixed: give the module that it was made from")
    kinds = {type(module): name for name, module in modules.items()}
    for kind, name in kinds.items():
        if not {"FakeQuantizeBase", "ObserverBase"}.isdisjoint(each.__name__ for each in kind.__mro__):
            raise ModelError(f"{name} prepares the model for quantization: prune first, then prepare what is left")
    lazy = [name for name, tensor in tensors.items() if is_lazy(tensor)]
    if lazy:
        raise ModelError(f"{lazy[0]} has no shape yet: run the model once on an input, which initialises lazy modules")
    odd = [name for name, tensor in tensors.items() if _layout(tensor) is not torch.strided]
    if odd:
        layout = str(_layout(tensors[odd[0]])).removeprefix("torch.")
        raise ModelError(f"{odd[0]} is {layout}; layers can be edited only where weights are dense")
    if next(model.parameters(), None) is None:
        packed = any(kind.__module__.startswith("torch.ao.nn.quantized") for kind in kinds)
        why = "its weights are quantized: prune first, then quantize" if packed else "nothing can be edited"
        raise ModelError(f"the model has no parameters: {why}")


def check_example(example: Any) -> None:
    """Raise UsageError for what is no input of a network."""
    leaves = [*tree_leaves(example), *tensors_in(example)]
    if any(isinstance(leaf, np.ndarray) for leaf in leaves):
        raise UsageError("the example is a numpy array: make it a tensor with torch.from_numpy")
    empty = next((leaf for leaf in leaves if isinstance(leaf, Tensor) and not leaf.numel()), None)
    if empty is not None:
        raise UsageError(f"the example is empty (shape {'x'.join(map(str, empty.shape))}): give a batch of one or more")


def _layout(tensor: Tensor) -> torch.layout | str:
    if tensor.is_quantized or tensor.is_nested:
        return "quantized" if tensor.is_quantized else "nested"
    return tensor.layout
