"""The reference that surgery is held against: the untouched network with the same channels set to zero.

Operators that take statistics over channels (layer norm, a mean over channels, standardised weights) are recomputed
in the reference over the channels that stay, since a channel of zeros would still count there.
"""

from collections.abc import Iterable, Mapping
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from compressor.graph import Channels, capture
from compressor.graph.channels import SINGLE
from compressor.graph.outline import is_reserve
from compressor.graph.propagate import Propagation
from compressor.graph.refine import Refinement
from compressor.graph.skeleton import Replica, skeleton
from compressor.graph.trace import TensorRef, Way, call_arguments, run
from compressor.graph.unions import Unions, roots_of
from compressor.surgery import Plan, Prune

STATISTICS = frozenset(
    """native_layer_norm native_group_norm _fused_rms_norm mean var var_mean std std_mean native_batch_norm
    _native_batch_norm_legit linalg_vector_norm norm _weight_norm_interface""".split()  # noqa: SIM905 - a list of words
)


def randomise_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Batch-norm statistics and scales as a trained network might have them, in evaluation mode and float64."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.2)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            if module.affine:
                module.weight.data.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
                module.bias.data.copy_(torch.randn(module.num_features, generator=generator) * 0.2)
    for parameter in model.parameters():
        if (
            parameter.numel() and parameter.detach().abs().max() < 1e-3
        ):  # a head or a scale that starts at zero hides all errors
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.double().eval()


def calibrated(model: nn.Module, example: Any) -> nn.Module:
    """Batch norms with statistics of data: with others the features of a deep network fade, and nothing shows."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    outputs(model.train(), example)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    return model.eval()


def half_plan(channels: Channels, seed: int = 0, share: float = 0.5) -> Plan:
    """Prune a random half of every free group.

    Two channels stay where a channel stands in several positions: a convolution left with one channel a group is a
    depthwise one, which another capture may tie more loosely than the map that was updated.
    """
    generator = np.random.default_rng(seed)
    edits = []
    for group in channels.free:
        repeated = any(channels.positions(place, group.ids[:1]).shape[1] > 1 for place in group.places)
        gone = min(max(1, int(group.size * share)), group.size - 1 - repeated)
        if gone:
            edits.append(Prune(group.name, tuple(generator.choice(group.ids, gone, replace=False).tolist()), "test"))
    return Plan(tuple(edits))


def duplicate_(model: nn.Module, channels: Channels, group_name: str) -> tuple[int, int]:
    """Make the last channel of a group equal to the first wherever it is made; readers stay as they are."""
    group = channels.group(group_name)
    first, last = int(group.ids[0]), int(group.ids[-1])
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for place in group.places:
        if place.role == "row":
            source, target = channels.positions(place, [first, last])
            data = tensors[place.tensor].data
            data.index_copy_(
                place.dim, torch.from_numpy(target), data.index_select(place.dim, torch.from_numpy(source))
            )
    return first, last


def outputs(model: nn.Module, example: Any) -> list[Tensor]:
    """Every tensor the model gives, in a fixed order."""
    arguments, keywords = call_arguments(example, model)
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(model(*arguments, **keywords)) if isinstance(leaf, Tensor)]


def relative_error(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Largest relative difference over all outputs, in the Euclidean norm."""
    assert [a.shape for a in ours] == [b.shape for b in theirs]
    return max(((a - b).norm() / b.norm().clamp_min(1e-30)).item() for a, b in zip(ours, theirs, strict=True))


def masked_outputs(model: nn.Module, example: Any, channels: Channels, removed: Iterable[int]) -> list[Tensor]:
    """What the model gives once every position of the removed channels is zero, in all parameters and buffers."""
    gone = np.zeros(channels.next_id, dtype=bool)
    gone[list(removed)] = True
    masked = skeleton(model, real=True)
    tensors = dict(masked.named_parameters()) | dict(masked.named_buffers())
    for (name, dim), ids in channels.identities.items():
        where = np.flatnonzero(gone[ids])
        if len(where) and tensors[name].is_floating_point() and not name.endswith("running_var"):
            tensors[name].data.index_fill_(dim, torch.from_numpy(where), 0)
    # Traced on real data, since an operator may be made of others on the meta device than on this one.
    trace = run(Replica(model, real=True), Way(example))
    walk = Propagation(trace, Unions())
    walk.follow()
    turned = _turned(model, example) if walk.choices else []
    if turned:  # reshapes where channels go on another dimension than the walk took first
        walk = Propagation(trace, Unions(), dict(zip(walk.choices, turned, strict=True)))
        walk.follow()
    try:
        with _KeptStatistics(walk, _kept_of_raw(walk, channels, gone)):
            return outputs(masked, example)
    except _AnotherWay:  # what a detector finds decides what runs; a reference that needs statistics is then wrong
        return outputs(masked, example)


def left_out(model: nn.Module, example: Any, channels: Channels) -> list[str]:
    """Dimensions of weights in no group, apart from those that read the example, and groups without a true reason.

    Layers that do not run are left out.
    """
    grouped = np.zeros(channels.next_id, dtype=bool)
    for group in channels.groups:
        grouped[group.ids] = True
    found = []
    for name, behind_weights in _layers(model, example).items():
        layer = model.get_submodule(name)
        rows = 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0
        for dim in (0, 1):
            ids = channels.identities.get((f"{name}.weight", dim))
            whole = ids is not None and grouped[ids].all()
            if not whole and layer.weight.shape[dim] > 1 and (dim == rows or behind_weights):
                found.append(f"{name}.weight, {dim}")
    unsaid = [group.name for group in channels.groups if group.frozen is not None and not group.frozen.strip()]
    wrong = [group.name for group in channels.groups if group.frozen == SINGLE and group.size > 1]
    return [*found, *(f"{name} has no true reason" for name in (*unsaid, *wrong))]


def _layers(model: nn.Module, example: Any) -> dict[str, bool]:
    """The layers that run, and whether what they read depends on weights."""
    blind, found = skeleton(model, real=True), {}
    for tensor in (*blind.parameters(), *blind.buffers()):
        if tensor.is_floating_point():
            tensor.data.fill_(torch.nan)
    for name, module in blind.named_modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            module.register_forward_pre_hook(
                lambda _, given, name=name: found.update({name: bool(given[0].isnan().any())})
            )
    outputs(blind, example)
    return found


def _turned(model: nn.Module, example: Any) -> list[int]:
    """Of every reshape with a choice, the dimension on which the final map has its channels; nothing to turn: empty."""
    found: list[Refinement] = []

    def keep(*args: Any) -> Refinement:
        found.append(Refinement(*args))
        return found[-1]

    with mock.patch("compressor.graph.capture.Refinement", keep):
        capture(model, example)
    [refined] = found
    walk = refined.walks[0][0]
    kept = [next(dim for dim in dims if dim in walk.op_outputs[number][0]) for number, dims in walk.choices.items()]
    return kept if refined.axes[0] else []


def _kept_of_raw(walk: Propagation, channels: Channels, gone: np.ndarray) -> np.ndarray:
    """The same question asked of the walk's own numbering."""
    roots = roots_of(walk.ties)
    kept = np.ones(walk.ties.count, dtype=bool)
    for key, raw in walk.ties.blocks.items():
        if key in channels.identities:
            kept[roots[raw[gone[channels.identities[key]]]]] = False
    return kept[roots]


class _AnotherWay(Exception):
    """The masked network runs other operators than the whole one."""


class _KeptStatistics(TorchDispatchMode):
    """Replays a trace; operators that take statistics over tracked channels see only the ones that stay."""

    def __init__(self, walk: Propagation, kept: np.ndarray) -> None:
        super().__init__()
        self.walk, self.kept, self.step = walk, kept, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func is torch.ops.aten.detach.default or is_reserve(func, args, kwargs):
            return func(*args, **kwargs or {})
        while self.step < len(self.walk.trace.ops) and self.walk.trace.ops[self.step].name == "detach":
            self.step += 1  # of constants, once per process
        if self.step == len(self.walk.trace.ops) or self.walk.trace.ops[self.step].func is not func:
            raise _AnotherWay(f"{func} runs in place of operator {self.step}")
        op = self.walk.trace.ops[self.step]
        self.step += 1
        if op.name not in STATISTICS or not any(
            self._lost(ids) for ref in op.inputs for ids in self._track(ref).values()
        ):
            return func(*args, **(kwargs or {}))
        compact = [self._compact(value, ref) for value, ref in zip(args, op.args, strict=True)]
        if op.name in ("native_layer_norm", "_fused_rms_norm"):
            compact[1] = list(compact[0].shape[-len(args[1]) :])
        if op.name == "native_group_norm":
            compact[4] = compact[0].shape[1]
        result = func(*compact, **(kwargs or {}))
        flat = [result] if isinstance(result, Tensor) else list(result)
        tracks = self.walk.op_outputs[self.step - 1]
        full = [
            self._scatter(value, ref.shape, track) for value, ref, track in zip(flat, op.outputs, tracks, strict=True)
        ]
        return full[0] if isinstance(result, Tensor) else tuple(full)

    def _track(self, ref: TensorRef) -> dict[int, np.ndarray]:
        return self.walk.track(ref)

    def _lost(self, ids: np.ndarray) -> bool:
        return not self.kept[ids].all()

    def _compact(self, value: Any, ref: Any) -> Any:
        if isinstance(ref, TensorRef):
            for dim, ids in self._track(ref).items():
                value = value.index_select(dim, torch.from_numpy(np.flatnonzero(self.kept[ids])))
        return value

    def _scatter(self, value: Tensor, shape: tuple[int, ...], track: dict[int, np.ndarray]) -> Tensor:
        if value.numel() == 0:
            return value
        for dim, ids in track.items():
            wide = value.new_zeros([*value.shape[:dim], len(ids), *value.shape[dim + 1 :]])
            value = wide.index_copy(dim, torch.from_numpy(np.flatnonzero(self.kept[ids])), value)
        assert value.shape == torch.Size(shape)
        return value


def move(example: Any, dtype: torch.dtype) -> Any:
    return tree_map(
        lambda leaf: leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, example
    )


def same_map(one: Channels, other: Channels) -> str | None:
    """None when two maps say the same of a model up to the numbering of identities; else the first difference.

    What holds a single channel holds nothing to edit, so a map may name it or not.
    """
    ours, theirs = ({key for key, ids in c.identities.items() if len(ids) > 1} for c in (one, other))
    if ours != theirs:
        return f"places differ: {sorted(ours ^ theirs)[:4]}"
    forth: dict[int, int] = {}
    back: dict[int, int] = {}
    for key in ours:
        ids, others = one.identities[key], other.identities[key]
        if len(ids) != len(others):
            return f"{key} holds {len(ids)} channels against {len(others)}"
        for here, there in zip(ids.tolist(), others.tolist(), strict=True):
            if forth.setdefault(here, there) != there or back.setdefault(there, here) != here:
                return f"{key} ties different channels"
    different = _described(one, forth) ^ _described(other, {i: i for i in back})
    return f"groups differ: {sorted(map(str, different))[:2]}" if different else None


def _described(channels: Channels, rename: Mapping[int, int]) -> set[tuple[frozenset[int], bool]]:
    return {
        (frozenset(rename[identity] for identity in group.ids.tolist()), group.frozen is None)
        for group in channels.groups
        if group.size > 1
    }
