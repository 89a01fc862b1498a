"""Faults that are put in by name: kinds that no test once saw, and ones that a careless change would make.

Each is a piece of a file, as it stands there once, and what it becomes; `benchmarks.mutants` stops where one is no
longer found. Every one has to be noticed by a test.
"""

from typing import NamedTuple


class Fault(NamedTuple):
    """A file below `compressor/`, a text in it, and what takes its place."""

    path: str
    old: str
    new: str


# Each kind was once put in and seen by no test.
KNOWN = (
    # surgery
    Fault("surgery/operate.py", "means.repeat_interleave(where.shape[1])", "means.repeat(where.shape[1])"),
    Fault("surgery/operate.py", "grad = _companion(grad, slices, tensor.shape, tensor.device)", "pass"),
    Fault("surgery/operate.py", "grad = _companion(grad, slices, tensor.shape, tensor.device)",
          "grad = torch.zeros_like(data[name])"),
    Fault("surgery/renumber.py", "(SINGLE if len(ids) == 1 else None)", "None"),
    Fault("surgery/snapshot.py", "    held.clear()\n", ""),
    # graph
    Fault("graph/rules_layers.py", 'if op.kwargs.get("scale") is None:', "if False:"),
    Fault("graph/rules_layers.py", "op.args[0] if op.args[6] else op.outputs[0]", "op.outputs[0]"),
    Fault("graph/rules_parts.py", "track[dim][start:end:step]", "track[dim][start:end]"),
    Fault("graph/rules_parts.py", "track[dim][start:end:step]", "track[dim][:end:step]"),
    Fault("graph/rules_parts.py", "if len(ids) % step == 0 and 0 <= start < step:", "if len(ids) % step == 0:"),
    Fault("graph/rules_parts.py", "if len(ids) % step == 0 and 0 <= start < step:", "if 0 <= start < step:"),
    Fault("graph/rules_parts.py", "w.tie_rows(ids.reshape(-1, step).T)", "pass"),
    Fault("graph/rules_shapes.py", "np.tile(ids, size // len(ids))", "np.repeat(ids, size // len(ids))"),
    Fault("graph/rules_shapes.py", "w.tie_rows(ids.reshape(-1, r * r).T)", "ids.reshape(-1, r * r).T[0]"),
    Fault("graph/rules_shapes.py", "w.tie_rows(ids.reshape(-1, r * r).T)", "w.tie_rows(ids.reshape(r * r, -1))"),
    Fault("graph/rules_shapes.py", "ids.repeat(op.args[1] ** 2)", "np.tile(ids, op.args[1] ** 2)"),
    # adapnet
    Fault("pruning/adapnet/boundary.py", "eligible[[unit.ids.index(identity) for identity in leaving]] = False",
          "pass"),
    Fault("pruning/adapnet/boundary.py", "judged = ~unit.frozen & (", "judged = ("),
    Fault("pruning/adapnet/boundary.py", "fixed = coupled or group.prune_only is not None", "fixed = coupled"),
    Fault("pruning/adapnet/boundary.py", "None if means is None else (means[identity],)", "None"),
    Fault("pruning/adapnet/boundary.py", "(unit.protect > 0) | unit.frozen", "unit.protect > 0"),
    Fault("pruning/adapnet/extract.py", "choose_maps(fired, settings.dict_size, generator)",
          "choose_maps(fired, fired.numel(), generator)"),
    Fault("pruning/adapnet/maps.py", "math.ceil(dict_size / (filters * rec_batches))", "0"),
    Fault("pruning/adapnet/method.py", "REC_MAPS, REC_BATCHES, self.settings.dict_size)",
          "REC_MAPS, REC_BATCHES, 0)"),
    # exits
    Fault("exits/points.py", "if kernel <= 2 * stride + 1:", "if kernel <= 2 * stride:"),
    Fault("exits/points.py", "if kernel <= 2 * stride + 1:", "if kernel <= 2 * stride + 2:"),
    # routing
    Fault("routing/observing.py", "x[:, :MAPS].flatten(2).abs().mean(2)", "x[:, :MAPS].flatten(2).mean(2)"),
    Fault("routing/network.py", "leaves = sure >= self.thresholds[depth]", "leaves = sure > self.thresholds[depth]"),
    Fault("routing/curve.py", "_first(seen.suffices >= ", "_first(seen.suffices > "),
    Fault("routing/curve.py", "_first(seen.entropy[:, :-1] <= limit)", "_first(seen.entropy[:, :-1] < limit)"),
    Fault("routing/learning.py", "None if weights is None else weights.to(x.device)", "None"),
    Fault("routing/learning.py", "len(depths) / (counts.clamp_min(1) * (counts > 0).sum())",
          "counts / len(depths)"),
    Fault("routing/curve.py", "if point.macs <= limit), key=lambda point: (point.top1, -point.macs))",
          "if point.macs <= limit), key=lambda point: (point.top1, point.macs))"),
    Fault("routing/curve.py", "return max(able, key=lambda point: (point.top1, -point.macs))",
          "return max(able, key=lambda point: (point.top1, point.macs))"),
    # primenet
    Fault("primenet/learning.py", "winner = torch.where(better, number, winner)",
          "winner = torch.where(better, winner, number)"),
    Fault("primenet/learning.py", "better = loss < lowest", "better = loss > lowest"),
    Fault("primenet/learning.py", "better = loss < lowest", "better = loss <= lowest"),
    Fault("primenet/network.py", "torch.where((value < lowest)[", "torch.where((value <= lowest)["),
    Fault("primenet/learning.py", "(losses[scale], scale)", "(losses[scale], -scale)"),
    # training
    Fault("training/loop.py", "    model.train()\n", "    pass\n"),
    Fault("training/data.py", "loss = loss + AUXILIARY_WEIGHT * functional", "loss = loss + functional"),
    Fault("training/data.py", "AUXILIARY_WEIGHT = 0.3", "AUXILIARY_WEIGHT = 0.5"),
    Fault("exits/learning.py", "backward(weight * loss)", "backward(loss / weight)"),
)  # fmt: skip

# What a careless change would do.
OWN = (
    # graph
    Fault("graph/propagate.py", "if len(known) < len(present):", "if False:"),
    Fault("graph/propagate.py", "self.ties.columns.append(ids)", "pass"),
    Fault("graph/rules_layers.py", "w.tie(inner, columns)", "pass"),
    Fault("graph/rules_layers.py", "w.tie_rows(rows.reshape(groups, -1))", "pass"),
    Fault("graph/rules_parts.py", "if len({len(part) for part in parts}) == 1:", "if False:"),
    Fault("graph/rules_shapes.py", "order[a], order[b] = b, a", "pass"),
    Fault("graph/rules.py", 'w.prune_only(ids, f"{op.name} in {where(op)} runs over channels")', "pass"),
    Fault("graph/unions.py", "labels: Roots = connected_components(links, directed=False)",
          "labels: Roots = connected_components(links, directed=True, connection='strong')"),
    Fault("graph/attributes.py", "fresh = copy.copy(held)", "fresh = held"),
    Fault("graph/kept_sizes.py", 'whose = value_at(module, f"{around}.module") if around else None', "whose = None"),
    Fault("graph/trace.py", 'warnings.simplefilter("ignore")', "pass"),
    Fault("graph/cuts.py", "if node.target is not _SIZE or node.args[1] != 0:", "if node.target is not _SIZE:"),
    # surgery
    Fault("surgery/slices.py", "total if self.column else total / 2", "total / 2"),
    Fault("surgery/slices.py", "halves = result.index_select(self.dim, here) / 2",
          "halves = result.index_select(self.dim, here)"),
    Fault("surgery/operate.py", 'if absorber.kind == "bias"', "if True"),
    Fault("surgery/renumber.py", "by_run = np.lexsort((order, new, run[order]))",
          "by_run = np.lexsort((new, order, run[order]))"),
    Fault("surgery/structure.py", "if counts_channels(path) or not (", "if True or not ("),
    Fault("surgery/structure.py", "0 <= size < _LARGEST", "size < _LARGEST"),
    # adapnet
    Fault("pruning/adapnet/schedule.py", "(epoch // every)", "((epoch + 1) // every)"),
    Fault("pruning/adapnet/tables.py", "and to_nearest > radius", "and to_nearest >= 0"),
    Fault("pruning/adapnet/freeze.py", "for tensor in (parameter, *companions))", "for tensor in (parameter,))"),
    Fault("pruning/adapnet/subspace.py", "return coefficients * (1 - eye), inverse", "return coefficients, inverse"),
    Fault("pruning/adapnet/clusters.py", "sums = (weights[:, None] * start)", "sums = (0 * start)"),
    Fault("pruning/adapnet/unit.py", "torch.maximum(self.protect[keep], self.protect[drop])", "self.protect[keep]"),
    # routing
    Fault("routing/network.py", "torch.cat(pieces)[torch.cat(order).argsort()]", "torch.cat(pieces)[torch.cat(order)]"),
    Fault("routing/curve.py", "asked = [sum(gates[: depth + 1])", "asked = [sum(gates[:depth])"),
    Fault("routing/observing.py", "return right | ~right[:, -1:]", "return right"),
    Fault("routing/router.py", "return probabilities.cumsum(1)[:, :-1]", "return probabilities[:, :-1]"),
    # exits
    Fault("exits/learning.py", "yield layer, 1 / 2 if last else 1.0", "yield layer, 1 / 2"),
    Fault("exits/learning.py", "dampening=momentum)", "dampening=0)"),
    Fault("exits/learning.py", "backward(weight * loss)", "backward(loss)"),
    # primenet
    Fault("primenet/network.py", "module.training = mode and module in self._learning", "module.training = mode"),
    Fault("primenet/learning.py", "self.optimizers[name].zero_grad(set_to_none=True)", "pass"),
)  # fmt: skip

# Faults that no test notices, and why they change nothing that anyone could see: by file and the line as it becomes.
_SAME_IMAGES = 'return {"kind": KIND, "input_shape": [plans[-1].in_channels, *plans[0].image], "bn": self.norms'
_NO_GRID = 'if layout.heads == "own" and ((len(layout.grids) != len(layout.leave_after) - 1)):'
_OTHER_WAY = "changed = [dim for dim, sizes in enumerate((zip(after.shape, before.shape, strict=True)))"
_FALLING = (
    "torch.quantile(values.flatten()[:: max(1, values.numel() // 1_000_000)], (torch.linspace(1, 0, _CANDIDATES)))"
)
HARMLESS: dict[tuple[str, str], str] = {
    ("exits/detachable.py", f'{_SAME_IMAGES}, "exits": exits}}'): "all sub-models take the same images",
    ("graph/batched.py", f"{_OTHER_WAY} if sizes[0] != sizes[1]]"): "sizes are compared for being equal alone",
    (
        "routing/curve.py",
        f"spread = {_FALLING}",
    ): "of thresholds at one cost, which send the same images, another stays",
    (
        "graph/meta_shapes.py",
        "if not any(tensor.is_contiguous() for tensor in tensors) and first.ndim in (4, 5):",
    ): "where one of the tensors is contiguous, so is what torch makes of them",
    ("graph/rules_layers.py", "if len(held) > 0 and held[0][1] > 1:"): "one operand joined with nothing is as it was",
    ("graph/rules_shapes.py", "sizes = list(zip(size, stride, strict=False))"): "torch takes as many strides as sizes",
    (
        "graph/refine.py",
        "free = [group for group in found.groups if group.frozen is None and (group.size >= 3)]",
    ): "of a group of three the second trial leaves the one channel that was objected to, and is refused",
    (
        "pruning/adapnet/extract.py",
        "if (recording is None):",
    ): "in a recording that nothing has filled no map fired, and no map is not enough",
    ("routing/network.py", _NO_GRID): "no head can be built for a grid of 0, which is refused by the same message",
}
