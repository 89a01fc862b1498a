"""The tensors of a model by their names in the state dict, which may hold other values besides."""

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, then buffers (those that are not saved too), each under its first name; one walk over the modules."""
    parameters: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        for found, held in ((parameters, module._parameters), (buffers, module._buffers)):
            for name, tensor in held.items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    found[f"{path}.{name}" if path else name] = tensor
    return parameters | buffers


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
