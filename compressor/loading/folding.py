"""Fold what computes a weight from other tensors into the weight: pruning masks, weight norm and spectral norm."""

import contextlib
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

State = dict[str, Tensor]

# Ends of the names under torch.nn.utils.parametrizations, and of the same tensors under torch.nn.utils.
_PARAMETRIZED = {"original0": "_g", "original1": "_v", "original": "_orig", "0._u": "_u", "0._v": "_v"}
_PARAMETRIZED |= {f"{end}{more}": f"{old}{more}" for end, old in _PARAMETRIZED.items() for more in ("_orig", "_mask")}


def folded(state: State) -> tuple[State, dict[str, str]]:
    """The state dict with one tensor in place of those that it is computed from; and what each of these went into.

    Tensors that do not fit one another are left as they are.
    """
    gone: dict[str, str] = {}
    renamed = _renamed(state)
    found = {renamed.get(key, key): tensor for key, tensor in state.items()}
    for ends, fold in _FORMS:
        for key in [each for each in found if each.endswith(ends[0])]:
            weight = key.removesuffix(ends[0])
            parts = [weight + end for end in ends]
            if weight in found or not all(part in found for part in parts):
                continue
            with contextlib.suppress(IndexError, RuntimeError):
                if (made := fold(*(found[part] for part in parts))) is not None:
                    found[weight] = made
                    gone |= dict.fromkeys(parts, weight)
                    for part in parts:
                        del found[part]
    for part, weight in reversed(gone.items()):  # a mask may lie on what a norm is computed from
        gone[part] = gone.get(weight, weight)
    return found, {key: gone[renamed.get(key, key)] for key in state if renamed.get(key, key) in gone}


def _renamed(state: State) -> dict[str, str]:
    """New names of parametrized tensors: those of torch.nn.utils, where all of a weight's tensors have one."""
    ends = defaultdict(list)
    for key in state:
        path, found, end = key.rpartition("parametrizations.")
        name, _, end = end.partition(".")
        if found and (not path or path.endswith(".")):
            ends[path, name].append(end)
    return {
        f"{path}parametrizations.{name}.{end}": f"{path}{name}{_PARAMETRIZED[end]}"
        for (path, name), held in ends.items()
        if len(held) > 1 and all(end in _PARAMETRIZED for end in held)
        for end in held
    }


def _masked(original: Tensor, mask: Tensor) -> Tensor | None:
    """As torch.nn.utils.prune computes it."""
    return original * mask if original.shape == mask.shape else None


def _weight_normed(size: Tensor, direction: Tensor) -> Tensor | None:
    """As torch.nn.utils.weight_norm computes it, along the dim that `size` has or of the whole."""
    dims = [dim for dim in range(direction.ndim) if size.ndim != direction.ndim or size.shape[dim] == 1]
    norm = torch.linalg.vector_norm(direction, dim=dims, keepdim=True)
    return direction * (size / norm) if size.numel() == norm.numel() else None


def _spectral_normed(original: Tensor, left: Tensor, right: Tensor) -> Tensor | None:
    """As torch.nn.utils.spectral_norm computes it: divided by the largest singular value that was found in training.

    The vectors tell along which dim (transposed convolutions: 1) the weight was taken for a matrix: there they are
    singular vectors, or nearly.
    """
    matrices = [original.transpose(0, dim).flatten(1) for dim in range(min(2, original.ndim))]
    images = [matrix @ right for matrix in matrices if matrix.shape == (left.numel(), right.numel())]
    values = [torch.dot(left, image) / image.norm() for image in images]
    return original / torch.dot(left, images[values.index(max(values))]) if images else None


# In the order in which they lie upon one another: masks were put on the tensors that a norm is computed from.
_FORMS: tuple[tuple[tuple[str, ...], Callable[..., Tensor | None]], ...] = (
    (("_orig", "_mask"), _masked),
    (("_g", "_v"), _weight_normed),
    (("_orig", "_u", "_v"), _spectral_normed),
)
