"""Detachable networks as graphs: nested branches on the input `start`, every layer and its weights in them once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from compressor.exits.detachable import Detachable, Detaching, SubModel
from compressor.exits.nested import find_run
from compressor.exits.points import Survey
from compressor.exporting.compose import Body, Stage, StageMaker, outputs_of
from compressor.exporting.forms import START
from compressor.graph.program import operator_of, program

ROW = "row"  # name of the input that says which


@dataclass(frozen=True, eq=False)
class Affine:
    """A batch norm in evaluation: a scale and a shift for each channel."""

    scale: Tensor
    shift: Tensor


@torch.no_grad()
def batch_norms(part: fx.GraphModule) -> list[Affine]:
    """The batch norms of a graph that keep statistics, in the order they run."""
    found = []
    for node in part.graph.nodes:
        if _keeps_statistics(node):
            weight, bias, mean, variance = (_tensor(part, each) for each in node.args[1:5])
            assert mean is not None and variance is not None
            scale = torch.rsqrt(variance + float(node.args[7]))
            scale = scale if weight is None else scale * weight
            shift = -mean * scale if bias is None else bias - mean * scale
            found.append(Affine(scale.clone(), shift.clone()))
    return found


def with_rows(part: fx.GraphModule, rows: Sequence[Sequence[Affine]]) -> fx.GraphModule:
    """The graph with a table in the place of each batch norm that differs; `rows` holds, for each norm, every model's.

    The result takes the model's number, int64 (1,), as a second input where there is such a norm.
    """
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    result = graph.graph_copy(part.graph, mapping)
    graph.output(result)
    norms = [mapping[node] for node in part.graph.nodes if _keeps_statistics(node)]
    differing = [(node, row) for node, row in zip(norms, rows, strict=True) if _differ(row)]
    root = nn.Module()
    for name, tensor in _tensors(part).items():
        _put(root, name, tensor)
    if differing:
        image = next(node for node in graph.nodes if node.op == "placeholder")
        with graph.inserting_after(image):
            chosen = graph.placeholder(ROW)
    for number, (node, row) in enumerate(differing):
        ones = (1,) * (len(node.meta["tensor_meta"].shape) - 2)
        with graph.inserting_before(node):
            value = node.all_input_nodes[0]
            for name, function in (("scale", torch.ops.aten.mul.Tensor), ("shift", torch.ops.aten.add.Tensor)):
                table = torch.stack([getattr(each, name).view(-1, *ones) for each in row])
                _put(root, f"{name}_{number}", table)
                held = graph.create_node("get_attr", f"{name}_{number}")
                picked = graph.call_function(torch.ops.aten.index_select.default, (held, 0, chosen))
                value = graph.call_function(function, (value, picked))
        node.replace_all_uses_with(value)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    module = fx.GraphModule(root, graph)
    module.eval()
    return module


def _keeps_statistics(node: fx.Node) -> bool:
    return operator_of(node).kind == "batch norm" and isinstance(node.args[3], fx.Node)


def _differ(rows: Sequence[Affine]) -> bool:
    first = rows[0]
    return any(not torch.equal(each.scale, first.scale) or not torch.equal(each.shift, first.shift) for each in rows)


def _tensors(part: fx.GraphModule) -> dict[str, Tensor]:
    named = (*part.named_parameters(remove_duplicate=False), *part.named_buffers(remove_duplicate=False))
    return {name: tensor.detach() for name, tensor in named}


def _tensor(part: fx.GraphModule, node: object) -> Tensor | None:
    return _tensors(part)[str(node.target)] if isinstance(node, fx.Node) else None


def _put(root: nn.Module, name: str, tensor: Tensor) -> None:
    *path, leaf = name.split(".")
    owner = root
    for each in path:
        if each not in owner._modules:
            owner.add_module(each, nn.Module())
        owner = owner.get_submodule(each)
    owner.register_buffer(leaf, tensor)


@dataclass(frozen=True, eq=False)
class Ladder:
    """The layers of a base in runs; model k takes those from the k-th on, so the last one is every model's.

    What goes into a model's first run is what its own entry makes of the images; without one it is what the stem makes
    of them, or the images themselves. A run whose batch norms differ takes the model's number as well.
    """

    stem: fx.GraphModule | None
    runs: tuple[fx.GraphModule, ...]  # as many as there are models
    entries: tuple[nn.Module | None, ...]


def ladder(model: Detaching, shape: Sequence[int]) -> Ladder:
    """Cut a network between the points where its sub-models start; `shape` is (channels, height, width)."""
    found = Survey(model.base, tuple(shape))
    entries: tuple[nn.Module | None, ...] = (None,) * (model.exits + 1)
    inputs: list[tuple[int, ...]] = [tuple(shape)] * (model.exits + 1)
    models: list[nn.Module] = [model.detach(exit) for exit in range(model.exits + 1)]
    if isinstance(model, Detachable):
        submodels = [each for each in model.submodels if isinstance(each, SubModel)]
        places = [0, *(found.names.index(each) for each in model.at)]
        entries = (None, *(each.step_down for each in submodels))
        inputs = [found.chain.cuts[place].shape for place in places]
        models = [model.base, *(each.tail for each in submodels)]
    else:
        places = list(find_run(found, str(model.step()["at"][0])).cuts[: model.exits + 1])
    stem = found.chain.segment(0, places[0]).eval() if places[0] else None
    runs = tuple(found.chain.segment(*both).eval() for both in pairwise((*places, found.end)))
    norms = [batch_norms(program(each, torch.zeros(2, *size))) for each, size in zip(models, inputs)]
    return _with_rows(Ladder(stem, runs, entries), norms)


def _with_rows(whole: Ladder, norms: Sequence[Sequence[Affine]]) -> Ladder:
    """Tables in the runs for the batch norms that the models do not share, given each model's in the order they run."""
    left = [iter(each) for each in norms]

    def tabled(run: fx.GraphModule, models: int) -> fx.GraphModule:
        return with_rows(run, [[next(each) for each in left[:models]] for _ in batch_norms(run)])

    stem = None if whole.stem is None else tabled(whole.stem, len(left))
    return replace(whole, stem=stem, runs=tuple(tabled(run, number + 1) for number, run in enumerate(whole.runs)))


@dataclass(frozen=True, eq=False)
class Rungs:
    """A ladder's parts as flat graphs."""

    stem: Stage | None
    runs: tuple[Stage, ...]
    entries: tuple[Stage | None, ...]


def rungs(whole: Ladder, images: Tensor, maker: StageMaker) -> Rungs:
    """Export the parts, each on the maps that every model gives it of the images."""
    flows: list[Tensor] = [images] * len(whole.runs)
    stem, entries, runs = None, [], []
    if whole.stem is not None:
        stem, flows = _run(whole.stem, flows, maker)
    for number, entry in enumerate(whole.entries):
        entries.append(None if entry is None else maker.make(entry, [(images,)], ["x"], ["y"]))
        if entry is not None:
            flows[number] = outputs_of(entry, [(images,)])[0]
    for number, run in enumerate(whole.runs):
        stage, flows[: number + 1] = _run(run, flows[: number + 1], maker)
        runs.append(stage)
    return Rungs(stem, tuple(runs), tuple(entries))


def _run(run: fx.GraphModule, flows: Sequence[Tensor], maker: StageMaker) -> tuple[Stage, list[Tensor]]:
    """A run as a graph, and what it makes of each model's maps."""
    inputs = [str(node.target) for node in run.graph.nodes if node.op == "placeholder"]
    numbered = len(inputs) > 1
    samples = [(maps, torch.tensor([model])) if numbered else (maps,) for model, maps in enumerate(flows)]
    names = ["x", ROW][: len(inputs)]
    return maker.make(run, samples, names, ["y"]), outputs_of(run, samples)


def one_graph(parts: Rungs) -> Any:
    """All models in one graph, chosen by the input `start`: 0 is the base."""
    import onnx_ir as ir

    body = Body()
    last = len(parts.runs) - 1
    image = body.input("input", (parts.stem or parts.runs[0]).image)
    start = body.input(START, ir.Value(type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([])))
    start = body.run("Clip", start, body.constant(0), body.constant(last))
    row = body.run("Reshape", start, body.constant(np.asarray([1])))
    flow = image if parts.stem is None else _call(body, parts.stem, image, row)

    def before(level: Body, number: int) -> Any:
        """The maps that go into a run, made at this level of the graph."""
        if number == 0:
            return flow
        late = level.run("GreaterOrEqual", start, level.constant(number))
        own, longer = level.inner(), level.inner()
        entry = parts.entries[number]
        made = flow if entry is None else _call(own, entry, image, row)
        grown = _call(longer, parts.runs[number - 1], before(longer, number - 1), row)
        return level.choose(late, (own, [made]), (longer, [grown]))[0]

    scores = _call(body, parts.runs[-1], before(body, last), row)
    return body.model({"logits": (scores, parts.runs[-1].output)})


def flat_graph(parts: Rungs, number: int) -> Any:
    """One of the models alone, on the same weights."""
    body = Body()
    first = parts.entries[number] or parts.stem
    flow, row = body.input("input", (first or parts.runs[0]).image), body.constant(np.asarray([number]))
    for stage in (*([] if first is None else [first]), *parts.runs[number:]):
        flow = _call(body, stage, flow, row)
    return body.model({"logits": (flow, parts.runs[-1].output)})


def _call(body: Body, stage: Stage, value: Any, row: Any) -> Any:
    return body.call(stage, value, row)[0]
