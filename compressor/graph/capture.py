"""Capture a model: follow its channels through one run in evaluation mode and one in training mode, and try the map."""

import gc
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from compressor.errors import ModelError
from compressor.graph import resolve
from compressor.graph.channels import KEPT, Channels
from compressor.graph.editable import check_example, check_model
from compressor.graph.held import tensors_in, with_tensors
from compressor.graph.names import groups_named, matching, names_of
from compressor.graph.neutral import bare, neutrally
from compressor.graph.refine import Refinement
from compressor.graph.skeleton import Replica
from compressor.graph.trace import Trace, Way, cause, refusal, run


@neutrally
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
    model = bare(model)
    patterns, names = (keep,) if isinstance(keep, str) else tuple(keep), names_of(model)
    kept = frozenset(name for pattern in patterns for name in matching(pattern, names, "keep"))
    collecting = gc.isenabled()
    gc.disable()  # nothing here is worth collecting, and one full collection takes as long as the whole capture
    try:
        first = _first_runs(model, example)
        runs, notes = [(first.evaluated, first.evaluating)], []
        if first.trained.error is None:
            runs.append((first.trained, first.training))
        else:
            notes.append(f"not captured in training mode, in which it fails: {cause(first.trained.error)}")
        refinement = Refinement(model, first.replica, runs)
        refinement.refine(kept)
        batch = next((tensor.shape[0] for tensor in tensors_in(example) if tensor.ndim), 1)
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
    """A replica of the model and how it ran in both modes."""

    replica: Replica
    evaluating: Way
    evaluated: Trace
    training: Way
    trained: Trace


def _first_runs(model: nn.Module, example: Any) -> _FirstRuns:
    """Run a replica in both modes: on shapes alone if it can, else on a copy with data.

    Raises:
        ModelError: it does not run in evaluation mode.
    """
    best = None
    evaluating, training = Way(example), Way(with_tensors(example, _at_least_two), training=True)
    for real in (False, True):
        replica = Replica(model, real=real)
        evaluated = run(replica, evaluating)
        if evaluated.error is not None:
            continue
        found = _FirstRuns(replica, evaluating, evaluated, training, run(replica, training))
        if found.trained.error is None:
            return found
        best = best or found
    if best is None:
        assert evaluated.error is not None
        raise ModelError(refusal(example, evaluated.error)) from evaluated.error
    return best


def _at_least_two(tensor: Tensor) -> Tensor:
    """Batch norm in training mode wants more than one value per channel."""
    if tensor.ndim > 1 and tensor.shape[0] == 1:
        return tensor.expand(2, *tensor.shape[1:])
    return tensor
