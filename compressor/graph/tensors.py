"""The tensors of a model by their names in the state dict, which may hold other values besides."""

import itertools

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, then buffers (those that are not saved too), each under its first name.

    As `named_parameters` and `named_buffers` give them, in one walk through the modules: captures ask again and again.
    """
    found: dict[str, Tensor] = {}
    modules = [(f"{path}." if path else "", module) for path, module in model.named_modules()]
    for kind in ("_parameters", "_buffers"):
        met: set[int] = set()
        for path, module in modules:
            for name, tensor in getattr(module, kind).items():
                if tensor is not None and id(tensor) not in met:
                    met.add(id(tensor))
                    found[path + name] = tensor
    return found


def saved_tensors(model: nn.Module, *, keep_vars: bool = False) -> dict[str, Tensor]:
    """The tensors in the state dict; what layers keep there besides (`get_extra_state`) is left out.

    With `keep_vars` they are the parameters and buffers themselves.
    """
    state = model.state_dict(keep_vars=keep_vars)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def transient_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that are not in the state dict."""
    return {
        f"{path}.{name}".lstrip("."): buffer
        for path, module in model.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and name in module._non_persistent_buffers_set
    }


def has_data(tensor: Tensor) -> bool:
    """Whether a tensor is more than its shape."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; the CPU for a model with neither."""
    held = itertools.chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in held), torch.device("cpu"))
