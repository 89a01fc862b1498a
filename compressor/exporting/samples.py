"""Inputs on which an exported file is compared with torch, what torch gives for them, and how far outputs are off."""

import inspect
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from compressor.errors import ModelError
from compressor.graph.skeleton import set_mode, skeleton
from compressor.graph.trace import call_arguments, refused
from compressor.report.manifest import Array
from compressor.training.task import called


def reference_of(module: nn.Module) -> nn.Module:
    """A copy of the module as it is exported: on the CPU, float32, in evaluation mode."""
    reference = skeleton(module, real=True).cpu().float()
    set_mode(reference, training=False)
    return reference


def portable(inputs: Any) -> Any:
    """The same inputs on the CPU, floats as float32."""

    def moved(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        plain = leaf.detach().cpu()
        return plain.float() if plain.is_floating_point() else plain

    return tree_map(moved, inputs)


def random_like(example: Any, count: int) -> Any:
    """Normal noise in place of the floats, `count` images, the same in every run; other types keep their values."""
    generator = torch.Generator().manual_seed(0)

    def drawn(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        return torch.randn((count, *leaf.shape[1:]), generator=generator)

    return tree_map(drawn, example)


def images(inputs: Any, count: int) -> Any:
    """The first `count` images of every tensor, repeated from the start where there are fewer."""

    def taken(leaf: Any) -> Any:
        return leaf[torch.arange(count) % len(leaf)] if isinstance(leaf, Tensor) and leaf.dim() else leaf

    return tree_map(taken, inputs)


def input_names(module: nn.Module, example: Any) -> tuple[str, ...]:
    """What each tensor that a module is called with is called in a graph: "input" where it is one alone.

    Raises ModelError where something else than tensors, each by itself, is given.
    """
    if isinstance(example, Tensor):
        return ("input",)
    arguments, keywords = call_arguments(example, module)
    names: list[str] = []
    signature = inspect.signature(module.forward)
    for name, value in signature.bind(*arguments, **keywords).arguments.items():
        several = [(name, value)]
        if isinstance(value, Mapping):
            several = list(value.items())
        elif signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            several = [(f"{name}_{number}", each) for number, each in enumerate(value)]
        for each, tensor in several:
            if not isinstance(tensor, Tensor) or not tensor.ndim:
                kind = "a number" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
                raise ModelError(f"a package takes tensors with the batch first, and {each} is {kind}")
            names.append(str(each))
    return tuple(names)


def in_order(inputs: Any, names: Sequence[str]) -> tuple[Tensor, ...]:
    """The tensors that a model is called with, as `input_names` names them."""
    return tuple(inputs[name] for name in names) if isinstance(inputs, Mapping) else tuple(tree_leaves(inputs))


def torch_answer(reference: nn.Module, inputs: Any) -> Any:
    """What the model returns. Raises ModelError where it does not run on the inputs."""
    try:
        with torch.inference_mode():
            return called(reference, inputs)
    except Exception as error:  # any code of the user's may fail in any way
        raise refused(inputs, error) from error


def arranged(answer: Any) -> Any:
    """How what a model returns holds its tensors, in lists and dicts: their numbers, as `torch_outputs` orders them."""
    numbers = itertools.count()

    def told(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {str(name): told(each) for name, each in part.items()}
        if isinstance(part, list | tuple):
            return [told(each) for each in part]
        return next(numbers) if isinstance(part, Tensor) else None

    return told(answer)


def torch_outputs(reference: nn.Module, inputs: Any) -> list[Array]:
    """Every tensor that the model gives.

    Raises:
        ModelError: it does not run on the inputs, or gives infinities or NaN.
    """
    outputs = torch_answer(reference, inputs)
    tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise ModelError("the model gives infinities or NaN, so no export can be checked; train it to finite weights")
    return [tensor.numpy() for tensor in tensors]


# Largest difference allowed, as a fraction of the largest output: float32 has 1e-7 an operation, and a wrong graph is
# off by far more than the 1e-6 to 1e-5 that re-ordered sums and folded batch norms add up to.
RELATIVE_LIMIT = 1e-4


def largest_difference(expected: Sequence[Array], got: Sequence[Array]) -> tuple[float, float]:
    """The largest difference of any output, absolute and as a fraction of that output's largest value.

    Where the expected output is zero everywhere the fraction is the absolute difference. Different shapes, a different
    number of outputs, and values that are not finite count as infinitely far apart.
    """
    if len(expected) != len(got) or any(e.shape != g.shape for e, g in zip(expected, got)):
        return float("inf"), float("inf")
    absolute = relative = 0.0
    for wanted, found in zip(expected, got):
        if not wanted.size:
            continue
        wide = wanted.astype(np.float64)
        difference = float(np.abs(found.astype(np.float64) - wide).max())
        if not np.isfinite(difference):
            return float("inf"), float("inf")
        scale = float(np.abs(wide).max())
        absolute = max(absolute, difference)
        relative = max(relative, difference / scale if scale else difference)
    return absolute, relative


_TIE = 1e-5  # share of the largest score within which two classes are equally good


def agreement(expected: Array, got: Array) -> float:
    """The share of images with the same largest score; 1 for what are no scores."""
    scores = expected.ndim == 2 and expected.shape == got.shape
    return float((expected.argmax(1) == got.argmax(1)).mean()) if scores else 1.0


def same_classes(expected: Array, got: Array) -> bool:
    """Whether the largest scores are at the same places, but for ties; true for what are no scores."""
    if expected.ndim != 2 or not expected.size:
        return True
    chosen = np.take_along_axis(expected, got.argmax(1)[:, None], 1)[:, 0]
    return bool((chosen >= expected.max(1) - _TIE * np.abs(expected).max()).all())
