"""The tensors of a model by their names in the state dict."""

from torch import Tensor, nn


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, then buffers (those that are not saved too), each under its first name; one walk over the modules."""
    parameters: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        dot = f"{path}." if path else ""
        for found, held in ((parameters, module._parameters), (buffers, module._buffers)):
            for name, tensor in held.items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    found[dot + name] = tensor
    return parameters | buffers
