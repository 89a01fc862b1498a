"""Capture a model: follow its channels through one run in evaluation mode and one in training mode, and try the map."""

import gc
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from compressor.errors import ModelError
from compressor.graph import resolve
from compressor.graph.channels import KEPT, Channels
from compressor.graph.editable import check_example, check_model
from compressor.graph.names import groups_named, matching, names_of
from compressor.graph.refine import Refinement
from compressor.graph.skeleton import skeleton
from compressor.graph.trace import Trace, cause, refusal, run


def capture(model: nn.Module, example: Any, *, keep: Iterable[str] = ()) -> Channels:
    """Find which channels of which parameters belong together, without changing the model.

    `example` is an input as the model takes it, (batch, channels, height, width) for an image network; a tuple or
    dict for several inputs. Layers that `keep` names ("layer4", "layer?.0.conv1") are frozen. The map holds in both
    modes: what only the training graph has (auxiliary heads) is followed too. Its limits: see `Channels.frozen`.

    Raises:
        UsageError: `keep` names no layer of the model, or the model or the example is none.
        ModelError: the model does not run on the example, or is of a kind that cannot be edited.
    """
    check_model(model)
    check_example(example)
    patterns, names = (keep,) if isinstance(keep, str) else tuple(keep), names_of(model)
    kept = frozenset(name for pattern in patterns for name in matching(pattern, names, "keep"))
    collecting = gc.isenabled()
    gc.disable()  # nothing here is worth collecting, and one full collection takes as long as the whole capture
    try:
        first = _first_runs(model, example)
        runs, notes = [(first.evaluated, first.example, False)], []
        if first.trained.error is None:
            runs.append((first.trained, first.doubled, True))
        else:
            notes.append(f"not captured in training mode, in which it fails: {cause(first.trained.error)}")
        refinement = Refinement(model, first.skeleton, runs, first.real)
        refinement.refine(kept)
        batch = next((leaf.shape[0] for leaf in tree_leaves(first.example) if isinstance(leaf, Tensor)), 1)
        return _with_kept(replace(_channels(refinement, batch, [*notes, *refinement.notes]), names=names), patterns)
    finally:
        if collecting:
            gc.enable()


def _with_kept(channels: Channels, patterns: Iterable[str]) -> Channels:
    """The map with the groups frozen that `keep` names in another way than by their own layers."""
    named = {pattern: groups_named(pattern, channels, "keep") for pattern in patterns}
    kept = {group.name for groups in named.values() for group in groups}
    groups = tuple(replace(g, frozen=g.frozen or KEPT) if g.name in kept else g for g in channels.groups)
    idle = tuple(f"keep: {pattern!r} has no channels that could go" for pattern, groups in named.items() if not groups)
    return replace(channels, groups=groups, notes=(*channels.notes, *idle))


def _channels(refined: Refinement, batch: int, notes: Iterable[str]) -> Channels:
    walk = refined.walks[0][0]
    grouped = np.zeros(len(refined.roots), dtype=bool)
    for group in refined.groups:
        grouped[group.ids] = True
    return Channels(
        identities={key: ids for key, ids in refined.identities.items() if grouped[ids].any()},
        groups=refined.groups,
        sites_by_module=resolve.sites(walk, refined.numbered),
        sizes=refined.sizes,
        costs=resolve.costs(walk, refined.numbered, batch),
        shapes={name: tuple(tensor.shape) for name, tensor in refined.tensors.items()},
        counted=frozenset(name for name, tensor in refined.tensors.items() if isinstance(tensor, nn.Parameter)),
        absorbers=resolve.absorbers(walk),
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _FirstRuns:
    """The model's skeleton and how it ran in both modes."""

    skeleton: nn.Module
    real: bool
    example: Any
    evaluated: Trace
    doubled: Any
    trained: Trace


def _first_runs(model: nn.Module, example: Any) -> _FirstRuns:
    """Run a skeleton in both modes: on shapes alone if it can, else on a copy with data.

    Raises:
        ModelError: it does not run in evaluation mode.
    """
    best = None
    for real in (False, True):
        copied = skeleton(model, real=real)
        given = example if real else tree_map(_shape_only, example)
        evaluated = run(copied, given)
        if evaluated.error is not None:
            continue
        doubled = tree_map(_at_least_two, given)
        found = _FirstRuns(copied, real, given, evaluated, doubled, run(copied, doubled, training=True))
        if found.trained.error is None:
            return found
        best = best or found
    if best is None:
        assert evaluated.error is not None
        raise ModelError(refusal(example, evaluated.error)) from evaluated.error
    return best


def _shape_only(leaf: Any) -> Any:
    return torch.empty_like(leaf, device="meta") if isinstance(leaf, Tensor) else leaf


def _at_least_two(leaf: Any) -> Any:
    """Batch norm in training mode wants more than one value per channel."""
    if isinstance(leaf, Tensor) and leaf.ndim > 1 and leaf.shape[0] == 1:
        return leaf.expand(2, *leaf.shape[1:])
    return leaf
