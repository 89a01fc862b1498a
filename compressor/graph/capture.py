"""Capture a model: follow its channels through one run in evaluation mode and one in training mode, and try the map."""

import gc
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from compressor.errors import ModelError
from compressor.graph import probe, resolve
from compressor.graph.channels import Channels, Group, Ids
from compressor.graph.rules import RULES, elementwise
from compressor.graph.trace import Trace, refusal, run, skeleton
from compressor.graph.walk import RawSize, Ties, Walk

_MOST_TRIALS = 200


def capture(model: nn.Module, example: Any, *, keep: Iterable[str] = ()) -> Channels:
    """Find which channels of which parameters belong together, without changing the model.

    `example` is an input as the model takes it, (batch, channels, height, width) for an image network; a tuple or
    dict for several inputs. Layers whose name matches a pattern in `keep` ("layer4.*") are frozen. The map holds in
    both modes: what only the training graph has (auxiliary heads) is followed too. Its limits: see `Channels.frozen`.

    Raises:
        ModelError: the model does not run on the example.
    """
    collecting = gc.isenabled()
    gc.disable()  # nothing here is worth collecting, and one full collection takes as long as the whole capture
    try:
        return _Capture(model, example, tuple(keep)).channels()
    finally:
        if collecting:
            gc.enable()


class _Capture:
    """One capture: the traces of both modes over a shared set of ties, refined by trial until nothing objects."""

    def __init__(self, model: nn.Module, example: Any, keep: tuple[str, ...]) -> None:
        self.model = model
        self.keep = keep
        self.notes: list[str] = []
        self.ties = Ties()
        self.skeleton, self.example, evaluated = _first_run(model, example)
        self.batch = next((leaf.shape[0] for leaf in tree_leaves(self.example) if isinstance(leaf, Tensor)), 1)
        self.walks = [(self._walk(evaluated), self.example, False)]
        doubled = tree_map(_at_least_two, self.example)
        trained = run(self.skeleton, doubled, training=True)
        if trained.error is None:
            self.walks.append((self._walk(trained), doubled, True))
        else:
            self.notes.append(f"not captured in training mode: {refusal(doubled, trained.error)}")
        self.tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        order = {name: place for place, name in enumerate(self.tensors)}
        self.order = probe.first_use(evaluated, order)
        self.ranks = {name: tensor.ndim for name, tensor in self.tensors.items()}
        self.found: list[RawSize] = [size for walk, _, _ in self.walks for size in walk.sizes]

    def _walk(self, trace: Trace) -> Walk:
        walk = Walk(trace, self.ties)
        walk.follow(RULES, elementwise)
        return walk

    def channels(self) -> Channels:
        self._refine()
        self._resolve()
        walk = self.walks[0][0]
        grouped = np.isin(np.arange(len(self.roots)), np.concatenate([group.ids for group in self.groups]))
        return Channels(
            identities={key: ids for key, ids in self.identities.items() if grouped[ids].any()},
            groups=self.groups,
            sites_by_module=resolve.sites(walk, self.roots),
            sizes=self.sizes,
            costs=resolve.costs(walk, self.roots, self.batch),
            shapes={name: tuple(tensor.shape) for name, tensor in self.tensors.items()},
            counted=frozenset(dict(self.model.named_parameters())),
            absorbers=resolve.absorbers(walk),
            notes=tuple(self.notes),
        )

    def _resolve(self) -> None:
        self.roots = resolve.roots_of(self.ties)
        self.identities = resolve.identities(self.ties, self.roots)
        self.groups = tuple(map(self._kept, resolve.groups(self.ties, self.roots, self.ranks, self.order)))
        self.sizes = resolve.sizes(self.found, self.ties, self.model, self.roots)

    def _kept(self, group: Group) -> Group:
        asked = any(fnmatchcase(name, pattern) for name in group.producers for pattern in self.keep)
        if group.frozen is not None or not asked:
            return group
        return Group(group.name, group.ids, group.places, group.producers, "kept by request", group.prune_only)

    def _refine(self) -> None:
        """Freeze, or learn the stored size of, whatever the trial objects to, until it runs as the map predicts."""
        seen: Counter[tuple[bool, int]] = Counter()
        for _ in range(_MOST_TRIALS):
            found = self._try(self.found)
            if found is None:
                return
            walk, objection = found
            place = (walk is self.walks[0][0], objection.op)
            if seen[place] or not self._learn(walk, objection):
                self._freeze(walk, objection, widen=seen[place])
                seen[place] += 1
        self.ties.frozen.extend((ids, "the model's code objects to every edit") for ids in self.ties.blocks.values())

    def _try(self, sizes: list[RawSize]) -> tuple[Walk, probe.Objection] | None:
        self.found = sizes
        self._resolve()
        kept = probe.half(self.groups, len(self.roots))
        if kept.all():
            return None
        edited = probe.edited(self.skeleton, self.identities, self.sizes, kept)
        for walk, example, training in self.walks:
            found = probe.objection(edited, example, walk, kept, self.roots, training)
            if found is not None:
                return walk, found
        return None

    def _learn(self, walk: Walk, objection: probe.Objection) -> bool:
        """Keep an attribute true that the running module read a size from, if that moves the objection further on."""
        op = walk.trace.ops[objection.op]
        before = list(self.found)
        known = {(size.module, size.attribute) for size in before}
        for alternative in probe.stored_sizes(op, walk, self.model):
            more = [
                RawSize(op.module, name if index is None else f"{name}.{index}", ids)
                for name, index, ids in alternative
                if (op.module, name) not in known
            ]
            found = self._try(before + more) if more else (walk, objection)
            if found is None or (found[0] is walk and found[1].op > objection.op):
                return True
        self.found = before
        return False

    def _freeze(self, walk: Walk, objection: probe.Objection, widen: int) -> None:
        """Freeze what meets at the operator, and at the same place of every module of the same class: it is one code.

        An operator that still objects took its size from something else: `widen` then freezes whatever came before it
        in its module, and at last whatever came before it at all.
        """
        if widen > 1:
            touched = walk.op_inputs[: objection.op + 1]
        else:
            numbers = probe.same_code(objection.op, walk, self.model)
            touched = [ids for number in numbers for ids in self._meeting(walk, number, bool(widen))]
        self.ties.frozen.extend((ids, objection.reason) for arrays in touched for ids in arrays)

    def _meeting(self, walk: Walk, number: int, widen: bool) -> list[list[Ids]]:
        if widen:
            return probe.earlier_in_module(number, walk)
        return [walk.op_inputs[number] or [ids for track in walk.op_outputs[number] for ids in track.values()]]


def _first_run(model: nn.Module, example: Any) -> tuple[nn.Module, Any, Trace]:
    """A skeleton that runs in evaluation mode: on shapes alone if it can, else on a copy with data."""
    for real in (False, True):
        copied = skeleton(model, real=real)
        traced = run(copied, example)
        if traced.error is None:
            return copied, example if real else tree_map(_shape_only, example), traced
    assert traced.error is not None
    raise ModelError(refusal(example, traced.error)) from traced.error


def _shape_only(leaf: Any) -> Any:
    return torch.empty_like(leaf, device="meta") if isinstance(leaf, Tensor) else leaf


def _at_least_two(leaf: Any) -> Any:
    """Batch norm in training mode wants more than one value per channel."""
    if isinstance(leaf, Tensor) and leaf.ndim > 1 and leaf.shape[0] == 1:
        return leaf.expand(2, *leaf.shape[1:])
    return leaf
