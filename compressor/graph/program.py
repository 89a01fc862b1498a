"""A network as a graph of ATen operators that runs, trains and can be cut, sharing the parameters it was made from."""

import contextlib
import copy
import functools
import logging
import operator
import types
import warnings
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_map

from compressor.errors import ModelError, cause
from compressor.graph.operators import lookup
from compressor.graph.records import Operator, plain_name
from compressor.graph.trace import trace

_KEPT = 8  # graphs that are remembered


def program(model: nn.Module, example: Tensor) -> fx.GraphModule:
    """The evaluation graph of a model of one image tensor, in whose every mode `train()` and `eval()` hold.

    `example` is (batch, channels, height, width); the batch may have any size afterwards. Parameters and buffers
    are the model's own, under the model's names. What only a training run does (auxiliary heads, stochastic depth)
    is not in it. Networks of one signature are exported once: a run builds the one that it saves several times.

    Raises:
        ModelError: the model does not run on the example, or cannot be written as one graph.
    """
    training = model.training
    model.eval()
    known = signature(model)
    key = None if known is None else (known, tuple(example.shape[1:]), example.dtype, example.device)
    try:
        if key in _graphs:
            _graphs.move_to_end(key)
            return fx.GraphModule(model, _copied(_graphs[key]))
        doubled = example if example.shape[0] > 1 else example.expand(2, *example.shape[1:])
        with _unlogged():
            exported = with_free_batch(model, doubled)
    except Exception as error:  # the exporter and the user's code fail in many ways
        trace(model, example)  # which says it where the model does not run at all
        text = f"the network cannot be written as one graph ({cause(error)}); only pruning works on it"
        raise ModelError(text) from error
    finally:
        model.train(training)
    made = trainable(exported)
    if key is not None and _is_own(model, made):
        _graphs[key] = _copied(made.graph)
        while len(_graphs) > _KEPT:
            _graphs.popitem(last=False)
    return made


_graphs: OrderedDict[Hashable, fx.Graph] = OrderedDict()  # the latest last; without weights


def _is_own(model: nn.Module, made: fx.GraphModule) -> bool:
    """Whether all that a graph reads are the model's tensors, by their names, so that it fits another such model."""
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    targets = {str(node.target) for node in made.graph.nodes if node.op in ("get_attr", "call_module")} - {"training"}
    return all(name in own and operator.attrgetter(name)(made) is own[name] for name in targets)


def _copied(graph: fx.Graph) -> fx.Graph:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of its own descriptions of arguments
        return copy.deepcopy(graph)


def with_free_batch(model: nn.Module, images: Tensor) -> ExportedProgram:
    """The exported program of a model of one image tensor, for any batch; the example has two images or more."""
    shapes = ({0: Dim.DYNAMIC},)
    try:
        return torch.export.export(model, (images,), dynamic_shapes=shapes, strict=False)
    except Exception as error:
        if "Constraints violated" not in str(error):
            raise
    # The code made a number of the batch. What `len(x)` does to it only the byte code shows.
    return torch.export.export(model, (images,), dynamic_shapes=shapes, strict=True)


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Silence the exporter, which logs an operator's failure with its stack before it raises it."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(disabled)


def trainable(exported: ExportedProgram) -> fx.GraphModule:
    """A module that runs the program, trains, and follows `train()` and `eval()`."""
    module = exported.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return trainable_graph(module, module.graph)


def trainable_graph(root: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """The same of a graph whose weights are `root`'s; the graph is used up.

    An exported graph holds the training flags of batch norm and dropout, the group counts of convolutions and the sizes
    of reshapes as constants: here they are read from the module, from the weights and from the tensors, so that they
    stay true after an edit.
    """
    for node in list(graph.nodes):
        _make_functional(node)
        known, flag = operator_of(node), _place(node, "training", "train", "use_input_stats")
        with graph.inserting_before(node):
            if known.resize is not None:
                known.resize(graph, node)
            elif flag is not None and not _always_of_batch(node):
                node.update_arg(flag, graph.create_node("get_attr", "training"))
            elif known.kind == "convolution" and (groups := _place(node, "groups")) and node.args[groups] != 1:
                node.update_arg(groups, _groups(graph, node, groups))
    for node in graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = tree_map(_outlined, node.meta["val"])
    graph.lint()
    return fx.GraphModule(root, graph)


def _outlined(value: Any) -> Any:
    """What an exporter noted of a result, by its shape alone: its own notes refer to the weights it was made from."""
    if isinstance(value, Tensor):
        sizes = [_outlined(size) for size in value.shape]
        return torch.empty(sizes, dtype=value.dtype, device="meta")
    return value.node.hint if isinstance(value, torch.SymInt) else value


def _always_of_batch(node: fx.Node) -> bool:
    """Whether a norm keeps no statistics, so that it takes the batch's in evaluation too."""
    statistics = _place(node, "running_mean")
    return statistics is not None and node.args[statistics] is None


def _place(node: fx.Node, *names: str) -> int | None:
    """The position of an argument that a node gives, by the names that it may have in the schema."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    declared = (argument.name for argument in node.target._schema.arguments[: len(node.args)])
    return next((position for position, name in enumerate(declared) if name in names), None)


def _groups(graph: fx.Graph, node: fx.Node, place: int) -> Any:
    size = torch.ops.aten.sym_size.int
    if _place(node, "output_padding"):  # transposed: the weight has all inputs first, and does not show its groups
        inputs = node.args[1].meta["val"].shape[0]  # type: ignore[union-attr]
        return graph.call_function(size, (node.args[1], 0)) if inputs == node.args[place] else node.args[place]
    inputs = graph.call_function(size, (node.args[0], 1))
    return graph.call_function(operator.floordiv, (inputs, graph.call_function(size, (node.args[1], 1))))


def _make_functional(node: fx.Node) -> None:
    """Turn `relu_` into `relu`: an in-place operator would change a tensor that a cut hands to someone else."""
    if not isinstance(node.target, torch._ops.OpOverload) or not _is_in_place(node.target):
        return
    packet = getattr(torch.ops.aten, node.target._schema.name.split("::")[-1][:-1], None)
    plain = getattr(packet, node.target._overloadname, None) if packet is not None else None
    changed = node.args[0]
    if plain is None or not isinstance(changed, fx.Node):
        return
    node.target = plain
    changed.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node and user > node)


def _is_in_place(func: torch._ops.OpOverload) -> bool:
    name = func._schema.name
    return name.startswith("aten::") and name.endswith("_") and not name.endswith("__")


def operator_of(node: fx.Node) -> Operator:
    """What is known of the operator that a node calls."""
    return lookup(node.target)


def name_of(node: fx.Node) -> str:
    """Name of the operator that a node calls, without namespace and overload: "conv2d"; "" for anything else."""
    return plain_name(node.target) if isinstance(node.target, torch._ops.OpOverload) else ""


def is_weight(node: fx.Node) -> bool:
    """Whether a node reads from the module rather than computes from the input."""
    return node.op == "get_attr"


def module_of(node: fx.Node) -> str:
    """Dotted name of the innermost module of the user's network in which the node runs ("" at the top)."""
    stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
    for path, _ in reversed(stack.values()):
        return str(path)
    return ""


_PLAIN = (type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device, torch.layout, torch.Size,
          torch.memory_format, types.BuiltinFunctionType, torch._ops.OpOverload)  # fmt: skip
_TENSORS = ("_parameters", "_buffers", "_modules")


class _Opaque(Exception):
    """Something that cannot be compared."""


def signature(model: nn.Module) -> Hashable | None:
    """What a model's code can read besides the values of its weights: two models of equal signature are the same graph.

    Classes, attributes, and the shapes of all parameters and buffers, ties among them included; None where a module
    holds anything that may differ unseen: a tensor that is no buffer, an object of a class of its own, a closure.
    """
    numbers: dict[int, int] = {}  # modules and tensors, in the order in which they are met
    try:
        return tuple(
            (name, numbers.setdefault(id(module), len(numbers)), type(module), *_held(module, numbers))
            for name, module in model.named_modules(remove_duplicate=False)
        )
    except _Opaque:
        return None


def _held(module: nn.Module, numbers: dict[int, int]) -> Iterator[Hashable]:
    for name, value in sorted(vars(module).items()):
        yield name
        if name == "_modules":
            yield tuple(value)
        elif name in _TENSORS:
            yield tuple((each, _tensor(tensor, numbers)) for each, tensor in value.items())
        else:
            yield _plain(value)


def _tensor(tensor: Tensor | None, numbers: dict[int, int]) -> Hashable:
    if tensor is None:
        return None
    number = numbers.setdefault(id(tensor), len(numbers))
    return number, type(tensor), tuple(tensor.shape), tensor.dtype, tensor.device, tensor.layout, tensor.requires_grad


def _plain(value: Any) -> Hashable:
    """The same as something that can be compared and kept. Raises _Opaque."""
    if isinstance(value, types.FunctionType) and value.__closure__ is None:
        return value
    if isinstance(value, functools.partial):
        return functools.partial, _plain(value.func), _plain(value.args), _plain(value.keywords)
    if type(value) in (list, tuple):
        return type(value), tuple(_plain(each) for each in value)
    if isinstance(value, Mapping):
        return type(value), tuple((_plain(key), _plain(each)) for key, each in value.items())
    if type(value) in (set, frozenset):
        return type(value), frozenset(_plain(each) for each in value)
    if isinstance(value, float | complex):
        return type(value), repr(value)  # one that is no number differs from itself
    if isinstance(value, _PLAIN):
        return type(value), value
    raise _Opaque
