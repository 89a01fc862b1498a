"""What remains of a base behind a cut, as a module made of the base's own layers."""

import copy
from typing import Literal

import torch
from torch import fx, nn

from compressor.graph.chain import Chain
from compressor.graph.program import is_weight, module_of, operator_of

Norms = Literal["stats", "switchable", "shared"]


def tail(chain: Chain, base: nn.Module, start: int, end: int, norms: Norms) -> fx.GraphModule:
    """The base between two cuts, `start` to `end`, from layers that are the base's own objects.

    With `norms` "stats", batch norms are new ones with statistics of their own and the base's scale and shift; with
    "switchable" these are their own too; with "shared" they are the base's. New ones start as copies.
    """
    part = chain.segment(start, end)
    _use_weights_of_(part, base)
    if norms != "shared":
        _give_own_norms_(part, norms == "switchable")
    layers = dict(base.named_modules(remove_duplicate=False))
    for path, nodes in _by_module(part.graph).items():
        layer = layers.get(path)  # of an exported program, only those with weights are left, and they are no layers
        if layer is not None and all(_is_call_of(node, layer, path) for node in nodes):
            part.add_submodule(path, layer)
            for node in nodes:
                _call(part.graph, node, path)
    part.graph.eliminate_dead_code()
    part.delete_all_unused_submodules()
    part.recompile()
    return part


def _by_module(graph: fx.Graph) -> dict[str, list[fx.Node]]:
    """The operators that ran in each module, without those of the top level."""
    found: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        path = module_of(node)
        if node.op == "call_function" and path and not _is_arithmetic(node):
            found.setdefault(path, []).append(node)
    return found


def _is_arithmetic(node: fx.Node) -> bool:
    """Whether a node computes sizes, such as the number of a convolution's groups."""
    return not isinstance(node.target, torch._ops.OpOverload) or operator_of(node).kind == "size"


def _is_call_of(node: fx.Node, layer: nn.Module, path: str) -> bool:
    """Whether the operator is all that calling the layer does, on the layer's own weights.

    Elsewhere the operators of the graph stand as they are, on the base's parameters.
    """
    if node.op != "call_function" or type(layer) not in operator_of(node).modules:
        return False
    image = node.args[0]
    if not isinstance(image, fx.Node) or is_weight(image):
        return False
    if getattr(layer, "inplace", False) and image.op == "placeholder":
        return False  # it would write into a tensor that is not the tail's
    used = {str(each.target) for each in node.all_input_nodes if is_weight(each) and each.target != "training"}
    return used == {f"{path}.{name}" for name, _ in (*layer.named_parameters(), *layer.named_buffers())
                    if name != "num_batches_tracked"}  # fmt: skip


def _call(graph: fx.Graph, node: fx.Node, path: str) -> None:
    """Put a call of a layer in the place of an operator."""
    with graph.inserting_before(node):
        call = graph.call_module(path, (node.args[0],))
    call.meta = copy.copy(node.meta)
    node.replace_all_uses_with(call)
    graph.erase_node(node)


def _give_own_norms_(part: fx.GraphModule, own_affine: bool) -> None:
    """Put a layer with its own statistics in the place of every batch norm, one for all calls of the same."""
    calls: dict[str, list[fx.Node]] = {}
    for node in part.graph.nodes:
        statistics = node.args[3:5] if operator_of(node).kind == "batch norm" else ()
        if statistics and all(isinstance(each, fx.Node) and is_weight(each) for each in statistics):
            calls.setdefault(str(node.args[3].target).rpartition(".")[0] or "norm", []).append(node)
    for path, nodes in calls.items():
        layer = _own_norm(part, nodes[0], own_affine)
        here = dict(part.named_modules()).get(path)
        if here is not None and any(True for _ in here.children()):
            path = f"{path}.own"  # of a layer that does more than normalise
        part.add_submodule(path, layer)
        for node in nodes:
            _call(part.graph, node, path)


def _own_norm(part: fx.GraphModule, node: fx.Node, own_affine: bool) -> nn.Module:
    scale, shift, mean, variance = (_tensor(part, each) for each in node.args[1:5])
    assert mean is not None and variance is not None
    kind = _NORMS[len(node.meta["tensor_meta"].shape)]
    momentum, eps = node.args[6:8]
    assert isinstance(momentum, float) and isinstance(eps, float)
    layer = kind(len(mean), eps, momentum, affine=scale is not None)
    layer.to(mean.device)
    layer.running_mean, layer.running_var = mean.clone(), variance.clone()
    for name, held in (("weight", scale), ("bias", shift)):
        if isinstance(held, nn.Parameter):
            setattr(layer, name, nn.Parameter(held.detach().clone(), held.requires_grad) if own_affine else held)
    return layer.train(part.training)


_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def _tensor(part: fx.GraphModule, node: object) -> torch.Tensor | None:
    if not isinstance(node, fx.Node):
        return None
    held: object = part
    for name in str(node.target).split("."):
        held = getattr(held, name)
    return held if isinstance(held, torch.Tensor) else None


def _use_weights_of_(part: fx.GraphModule, base: nn.Module) -> None:
    """Make every parameter and buffer of the part the base's own object, as far as the base has one of that name."""
    tensors = dict(base.named_parameters(remove_duplicate=False)) | dict(base.named_buffers(remove_duplicate=False))
    held_here = (*part.named_parameters(remove_duplicate=False), *part.named_buffers(remove_duplicate=False))
    for name, _ in held_here:
        if name in tensors:
            owner, _, leaf = name.rpartition(".")
            held = part.get_submodule(owner)
            (held._parameters if leaf in held._parameters else held._buffers)[leaf] = tensors[name]  # type: ignore[assignment]
