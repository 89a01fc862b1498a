"""Give a tensor of a model other data in place, so that whatever holds the tensor goes on with it."""

import gc
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from compressor.errors import ModelError
from compressor.graph.tensors import named_tensors


def assign_(tensor: Tensor, data: Tensor) -> None:
    """Give a parameter or buffer data of any shape; the object, its hooks and its attributes stay.

    As long as an output of the model is alive, autograd keeps the accumulator of gradients in the shape that they had,
    which holds the tensor, and would use it again: the tensor gets a new one. To backpropagate such an output raises.
    """
    if tensor.is_inference():  # made in inference mode: it has no gradients, and stays as it is
        with torch.inference_mode():
            tensor.data = data.clone()
        return
    if tensor._use_count() > 1:  # type: ignore[attr-defined]  # perhaps an accumulator holds it
        if tensor.requires_grad and tensor.is_leaf:
            torch.autograd.graph.get_gradient_edge(tensor).node.register_prehook(_outdated)
        # `data` keeps the accumulator unless the type changes. torch.utils.swap_tensors would give a new one too, but
        # it drops hooks and attributes and refuses while an output, a view or a weak reference is alive.
        other = torch.float64 if tensor.dtype == torch.float32 else torch.float32
        tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.data = data
    torch.autograd.graph.increment_version(tensor)  # what was saved for a backward pass is known to be outdated


def take_weights_(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give parameters and buffers of a model the values of their namesakes, where there are any that differ."""
    for name, tensor in named_tensors(model).items():
        if name in weights and not torch.equal(tensor, weights[name]):
            assign_(tensor, weights[name].detach())


def _outdated(gradients: Any) -> None:
    raise ModelError(
        "this output was computed before the layers were edited: backpropagate it before that, or compute it again"
    )


def check_no_reducer(parameters: Iterable[Tensor]) -> None:
    """Raise ModelError where a DistributedDataParallel still holds the parameters: it would no longer add up gradients.

    Its reducer waits for the accumulators that `assign_` replaces, and has buckets of the old sizes.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    held = {id(each) for each in parameters if each._use_count() > 2}  # type: ignore[attr-defined]  # by C++ too
    if not held:
        return
    wrapper = torch.nn.parallel.DistributedDataParallel
    for each in gc.get_objects():
        if issubclass(type(each), wrapper) and any(id(parameter) in held for parameter in each.parameters()):
            raise ModelError(
                "DistributedDataParallel holds this model and keeps the old sizes: keep its .module, delete the "
                "wrapper, edit the model, then wrap it again"
            )
