"""Keep a module whose parts share tensors true: each tensor once in its state dict, and shared for good."""

from typing import Any

from torch import Tensor, nn


def store_once_(module: nn.Module) -> None:
    """Let the state dict of a module hold a tensor under its first name only, however many of its parts use it.

    Loading gives the tensor to all of them. The names are taken as they are shared now.
    """
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in _tensors(module).items():
        if first.setdefault(id(tensor), name) != name:
            aliases[name] = first[id(tensor)]
    module._aliases = aliases  # type: ignore[assignment]
    module.register_state_dict_post_hook(_drop_aliases)
    module.register_load_state_dict_pre_hook(_add_aliases)


def tie_(module: nn.Module) -> None:
    """Let tensors be shared again after each of them was replaced by itself on another device."""
    aliases: dict[str, str] = module._aliases  # type: ignore[assignment]
    tensors = _tensors(module)
    for name, first in aliases.items():
        owner, _, leaf = name.rpartition(".")
        held = module.get_submodule(owner)
        own: dict[str, Any] = held._buffers if leaf in held._buffers else held._parameters
        own[leaf] = tensors[first]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    parameters = module.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(module.named_buffers(remove_duplicate=False))}


def _drop_aliases(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    aliases: dict[str, str] = module._aliases  # type: ignore[assignment]
    for name in aliases:
        state.pop(prefix + name, None)


def _add_aliases(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    aliases: dict[str, str] = module._aliases  # type: ignore[assignment]
    for name, first in aliases.items():
        if prefix + first in state:
            state.setdefault(prefix + name, state[prefix + first])
