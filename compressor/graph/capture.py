"""Capture a model: follow its channels through its runs in evaluation mode and, where it asks, in training mode."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from compressor.errors import ModelError, UsageError, cause
from compressor.graph import groups
from compressor.graph.channels import KEPT, Channels
from compressor.graph.held import in_one_memory, tensors_in, unregistered, with_tensors
from compressor.graph.known import Map
from compressor.graph.names import groups_named, matching, names_of
from compressor.graph.neutral import bare, neutrally, uncollected
from compressor.graph.refine import Refinement
from compressor.graph.skeleton import Replica
from compressor.graph.tensors import named_modules, named_tensors
from compressor.graph.trace import Trace, Way, refused, run
from compressor.graph.ways import MODELESS, Also, Run, entered, entries, further, same_wiring, unreached, unused
from compressor.report import units


@neutrally
def capture(model: nn.Module, example: Any, *, keep: Iterable[str] = (), also: Also = ()) -> Channels:
    """Find which channels of which parameters belong together, without changing the model.

    `example` is an input as the model takes it, (batch, channels, height, width) for an image network; a tuple or
    dict for several inputs. Layers that `keep` names ("layer4", "layer?.0.conv1") are frozen. The map holds in both
    modes: what only the training graph has (auxiliary heads) is followed too, and so are the methods that `also`
    names, called with the example (a dict gives each one its own). Its limits: see `Channels.frozen` and `notes`.

    Raises:
        UsageError: `keep` names no layer of the model, `also` no method, or the model or the example is none.
        ModelError: the model does not run on the example, or is of a kind that cannot be edited.
    """
    model = bare(model)
    modules = dict(named_modules(model))
    tensors = named_tensors(model, modules.items())
    _check_model(model, modules, tensors)
    _check_example(example)
    patterns, names = (keep,) if isinstance(keep, str) else tuple(keep), names_of(model)
    kept = frozenset(name for pattern in patterns for name in matching(pattern, names, "keep"))
    with uncollected():
        found, held = _captured(model, example, kept, also)
        found = _with_kept(replace(found, names=names), patterns)
        edited = {found.shapes[place.tensor] for group in found.free for place in group.places}
        values = ((f"{path}.{name}".removeprefix("."), vars(modules[path])[name]) for path, name in held)
        hidden = unregistered(values, tensors.values(), edited)
        return replace(found, notes=(*found.notes, *hidden, *in_one_memory(tensors)))


def _captured(
    model: nn.Module, example: Any, kept: frozenset[str], also: Also
) -> tuple[Channels, list[tuple[str, str]]]:
    """The map itself, and which attributes of which modules may hold tensors besides the model's own.

    The traces are gone when it returns, before garbage is collected again.
    """
    replica, first, notes = _first_runs(model, example, entries(model, also, example))
    usual = [(trace, replace(way, reads=tuple(trace.reads))) for trace, way in first]
    runs = [*usual, *further(replica, usual)]
    never = unused(replica.tensors, runs)
    missed = unused(replica.tensors, usual) if len(runs) > len(usual) else never
    notes = [*notes, *unreached(model, missed, never)]
    if len(runs) > 1 and same_wiring(runs[0][0], runs[1][0], replica.modules):
        del runs[1]
    refinement = Refinement(replica, runs, never)
    refined, more = refinement.refine(kept)
    paths = {id(module): path for path, module in replica.modules.items()}
    held = [(paths[id(module)], name) for module, name, _ in replica.state.held]
    return _channels(refinement, refined, groups.batch_of(runs[0][0]), [*notes, *more]), held


def _with_kept(channels: Channels, patterns: Iterable[str]) -> Channels:
    """The map with the groups frozen that `keep` names in another way than by their own layers."""
    named = {pattern: groups_named(pattern, channels, "keep") for pattern in patterns}
    kept = {group.name for groups in named.values() for group in groups}
    groups = tuple(replace(g, frozen=g.frozen or KEPT) if g.name in kept else g for g in channels.groups)
    idle = tuple(f"keep: {pattern!r} has no channels that could go" for pattern, groups in named.items() if not groups)
    return replace(channels, groups=groups, notes=(*channels.notes, *idle))


def _channels(refinement: Refinement, refined: Map, batch: int, notes: Iterable[str]) -> Channels:
    walk = refinement.walks[0][0]
    grouped = np.zeros(len(refined.roots), dtype=bool)
    for group in refined.groups:
        grouped[group.ids] = True
    held = {id(ids) for ids in {id(ids): ids for ids in refined.identities.values()}.values() if grouped[ids].any()}
    return Channels(
        identities={key: ids for key, ids in refined.identities.items() if id(ids) in held},
        groups=refined.groups,
        sites_by_module=groups.sites(walk, refined.numbered),
        sizes=refined.sizes,
        costs=groups.costs(walk, refined.numbered, batch),
        held=groups.held(walk, refined.numbered, batch),
        shapes={name: tuple(tensor.shape) for name, tensor in refinement.tensors.items()},
        counted=frozenset(name for name, tensor in refinement.tensors.items() if isinstance(tensor, nn.Parameter)),
        absorbers=groups.absorbers(walk),
        notes=tuple(notes),
    )


def _first_runs(model: nn.Module, example: Any, ways: list[Way]) -> tuple[Replica, list[Run], list[str]]:
    """Run a replica in every way that its code may tell apart, in evaluation mode first: on shapes alone if it can,
    else on a copy with data. What could not be followed is noted.

    Raises:
        ModelError: it does not run in evaluation mode, or not in one of the ways.
    """
    best, failure = None, None
    for real in (False, True):
        replica = Replica(model, real=real)
        evaluated, other = _evaluated(replica, example)
        if evaluated.error is not None:
            failure = evaluated.error
            continue
        try:
            runs = [(evaluated, Way(example)), *entered(replica, ways)]
        except ModelError as error:
            failure = error
            continue
        if other is None:
            return replica, runs, []
        trained = run(replica, other)
        if trained.error is None:
            return replica, [runs[0], (trained, other), *runs[1:]], []
        mode = "in training mode, in" if other.training else "on two inputs at once, on"
        best = best or (replica, runs, [f"not captured {mode} which it fails: {cause(trained.error)}"])
    if best is None:
        assert failure is not None
        raise refused(example, failure) from failure
    return best


def _evaluated(replica: Replica, example: Any) -> tuple[Trace, Way | None]:
    """A run in evaluation mode, and the way in which the code may run otherwise, if there is one.

    In training mode, if it asks for the mode. Else with more than one input, if something was not used: it may be for
    these.
    """
    several = with_tensors(example, _at_least_two)
    with replica.evaluating() as asked:
        trace = run(replica, Way(example))
    if asked is None or trace.error is not None or not asked <= MODELESS:
        trace = run(replica, Way(example)) if trace.error is not None and asked is not None else trace
        return trace, Way(several, training=True)
    unread = unused(replica.tensors, [(trace, Way(example))])
    left = any(isinstance(replica.tensors[name], nn.Parameter) for name in unread)
    return trace, Way(several) if left else None


def _at_least_two(tensor: Tensor) -> Tensor:
    """Batch norm in training mode wants more than one value per channel."""
    if tensor.ndim > 1 and tensor.shape[0] == 1:
        return tensor.expand(2, *tensor.shape[1:])
    return tensor


def _check_model(model: nn.Module, modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
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


def _check_example(example: Any) -> None:
    """Raise UsageError for what is no input of a network."""
    leaves = [*tree_leaves(example), *tensors_in(example)]
    if any(isinstance(leaf, np.ndarray) for leaf in leaves):
        raise UsageError("the example is a numpy array: make it a tensor with torch.from_numpy")
    empty = next((leaf for leaf in leaves if isinstance(leaf, Tensor) and not leaf.numel()), None)
    if empty is not None:
        raise UsageError(f"the example is empty (shape {units.shape(empty.shape)}): give a batch of one or more")


def _layout(tensor: Tensor) -> torch.layout | str:
    if tensor.is_quantized or tensor.is_nested:
        return "quantized" if tensor.is_quantized else "nested"
    return tensor.layout
