"""The price of a network in milliseconds: its exported graph's layers, each timed by the runtime at some widths."""

import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.errors import FileError
from compressor.exporting import measure
from compressor.exporting.measure import PASSES, layer_ms, machine, profiled
from compressor.exporting.onnx_count import with_one_image
from compressor.files.paths import write_json
from compressor.graph.channels import Channels, Ids
from compressor.profiling.chip import preferred_multiple
from compressor.profiling.timetable import FORMAT, Grid, Layer, Machine, Timetable, Widths
from compressor.pruning.price import Price, Term
from compressor.report.manifest import Array

SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)  # of a layer's channels at which it is timed
_SECONDS = 60.0  # that all timing may take together
_OPERATORS = ("Conv", "ConvTranspose", "Gemm")


@dataclass(frozen=True, eq=False)
class Placed:
    """A layer of a graph: what it is but for its widths, and the channels that these count."""

    layer: Layer
    taken: Ids | int
    made: Ids | int
    ins: tuple[int, ...]  # widths at which it is timed, the last as it stands in the network
    outs: tuple[int, ...]

    @property
    def dense(self) -> Widths:
        """Its widths in the network."""
        return self.ins[-1], self.outs[-1]

    @property
    def diagonal(self) -> bool:
        """Whether every channel has a filter of its own."""
        return self.layer.groups == 0


@dataclass(frozen=True)
class Timed:
    """What the whole graph took when it was profiled."""

    layers: float  # ms of convolutions and matrix products
    others: float  # of everything else


def here(threads: int, batch: int = 1) -> Machine:
    """This machine with the installed runtime."""
    import onnxruntime

    return Machine(machine(), f"onnxruntime {onnxruntime.__version__}", threads, batch)


def placed(proto: Any, channels: Channels, block: int) -> list[Placed]:
    """The layers of a graph (onnx.ModelProto, shapes inferred) that hold weights of the network, to be timed at
    multiples of `block`.
    """
    free = np.concatenate([np.empty(0, np.int64), *(group.ids for group in channels.free)])
    shapes = _shapes(proto)
    weights = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    found = []
    for node in proto.graph.node:
        if node.op_type in _OPERATORS and node.input[1] in weights and node.input[0] in shapes:
            layer, sides, dense = _layer(node, shapes[node.input[0]], weights[node.input[1]], channels)
            (taken, made), (few, many) = sides, dense
            ins, outs = _widths(taken, few, free, block), _widths(made, many, free, block)
            found.append(Placed(layer, _or(taken, few), _or(made, many), ins, outs))
    return found


def _layer(
    node: Any, given: tuple[int, ...], weight: tuple[int, ...], channels: Channels
) -> tuple[Layer, tuple[Ids | None, Ids | None], Widths]:
    """A node's layer, the channels that it takes and makes, and how many."""
    import onnx

    attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    groups = int(attributes.get("group", 1))
    first, second = (channels.identities.get((node.input[1], dim)) for dim in (0, 1))
    if node.op_type == "Gemm":
        made, taken = (first, second) if attributes.get("transB") else (second, first)
        sizes = (weight[0], weight[1]) if attributes.get("transB") else (weight[1], weight[0])
        return Layer("Gemm", (math.prod(given[:-1]),)), (taken, made), (sizes[1], sizes[0])
    transposed = node.op_type == "ConvTranspose"
    ins, outs = (weight[0], weight[1] * groups) if transposed else (weight[1] * groups, weight[0])
    taken, made = (first, _repeated(second, groups)) if transposed else (_repeated(second, groups), first)
    names = ("kernel_shape", "strides", "pads", "dilations", "output_padding")
    settings = tuple((name, tuple(attributes[name])) for name in names if name in attributes)
    if settings and "kernel_shape" not in attributes:
        settings = (("kernel_shape", weight[2:]), *settings)
    diagonal = groups == ins == outs and groups > 1
    layer = Layer(node.op_type, given[2:], settings, 0 if diagonal else groups)
    return layer, (first, first) if diagonal else (taken, made), (ins, outs)


def _repeated(ids: Ids | None, groups: int) -> Ids | None:
    return ids if ids is None or groups == 1 else np.tile(ids, groups)


def _or(ids: Ids | None, size: int) -> Ids | int:
    return size if ids is None else ids


def _widths(side: Ids | None, size: int, free: Ids, block: int) -> tuple[int, ...]:
    if side is None or not np.isin(side, free).any():
        return (size,)
    stepped = {max(block, round(share * size / block) * block) for share in SHARES}
    return tuple(sorted({width for width in stepped if width < size} | {size}))


def samples(layers: Sequence[Placed]) -> list[tuple[Layer, Widths]]:
    """The widths at which every distinct layer is to be timed, those that say most first: as it is, the ends."""
    rounds: list[dict[tuple[Layer, Widths], None]] = [{}, {}, {}]
    for each in layers:
        pairs = [(a, a) for a in each.ins] if each.diagonal else [(a, b) for a in each.ins for b in each.outs]
        for taken, made in pairs:
            ends = (taken in (each.ins[0], each.ins[-1])) + (made in (each.outs[0], each.outs[-1]))
            place = 0 if (taken, made) == each.dense else 1 if ends == 2 else 2
            rounds[place][each.layer, (taken, made)] = None
    return list({job: None for jobs in rounds for job in jobs})


def timed(
    layers: Sequence[Placed],
    table: Timetable,
    time_layer: Callable[[Layer, Widths, Machine], float],
    clock: Callable[[], float],
    tell: Callable[[int, int], None],
) -> bool:
    """Add to a table what it lacks, the least of two passes; False where a minute was not enough for all widths, of
    which every layer's own are timed in any case.
    """
    missing = [(layer, widths) for layer, widths in samples(layers) if widths not in table.samples.get(layer, {})]
    needed = {(each.layer, each.dense) for each in layers}
    began, late = clock(), False
    for passed in range(PASSES):
        for number, (layer, widths) in enumerate(missing):
            late = late or clock() - began > _SECONDS
            if late and (passed or (layer, widths) not in needed):
                continue
            ms = time_layer(layer, widths, table.machine)
            table.add(layer, widths, min(ms, table.samples.get(layer, {}).get(widths, ms)))
            tell(passed * len(missing) + number + 1, PASSES * len(missing))
    return all(widths in table.samples.get(layer, {}) for layer, widths in missing)


def time_here(layer: Layer, widths: Widths, on: Machine) -> float:
    """Milliseconds of a layer on this machine."""
    model, shape = single(layer, widths, on.batch)
    return layer_ms(model, shape, on.threads)


def single(layer: Layer, widths: Widths, batch: int = 1) -> tuple[bytes, tuple[int, ...]]:
    """A graph of one layer, some hundred bytes long (its weights are a constant that the runtime unfolds), and the
    shape of its input `x`.
    """
    from onnx import TensorProto, helper

    taken, made = widths
    groups = taken if layer.groups == 0 else layer.groups
    settings: dict[str, Any] = dict(layer.settings)
    weight: tuple[int, ...]
    shape: tuple[int, ...]
    if layer.operator == "Gemm":
        weight, shape = (made, taken), (*layer.size, taken)
        node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    else:
        sides = (taken, made // groups) if layer.operator == "ConvTranspose" else (made, taken // groups)
        weight, shape = (*sides, *settings["kernel_shape"]), (batch, taken, *layer.size)
        node = helper.make_node(layer.operator, ["x", "w"], ["y"], group=groups, **settings)
    value = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.01])
    size = helper.make_tensor("size", TensorProto.INT64, [len(weight)], weight)
    nodes = [helper.make_node("ConstantOfShape", ["size"], ["w"], value=value), node]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    gives = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "layer", [given], [gives], [size])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return model.SerializeToString(), shape


def profile_whole(file: Path, name: str, shape: tuple[int, ...], threads: int) -> Timed:
    """What a graph takes, by layers and everything else."""
    image: Array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return sorted_times(profiled(str(file), {name: image}, threads, 1.0))


def sorted_times(times: dict[str, float]) -> Timed:
    """From the milliseconds of every operator."""
    layers = sum(ms for operator, ms in times.items() if any(part in operator for part in ("Conv", "Gemm")))
    return Timed(layers, sum(times.values()) - layers)


def without(proto: Any, channels: Channels, removed: Iterable[int]) -> Any:
    """The graph (onnx.ModelProto) without these channels, to be timed and not to be used: weights are cut, and what
    else counts channels as a number is left as it is, so that some graphs do not run.
    """
    import onnx

    gone = np.fromiter(removed, dtype=np.int64)
    cut = onnx.ModelProto()
    cut.CopyFrom(proto)
    del cut.graph.value_info[:]
    stays = {key: ~np.isin(ids, gone) for key, ids in channels.identities.items()}
    biases: dict[str, NDArray[np.bool_]] = {}
    for node in cut.graph.node:
        if node.op_type not in _OPERATORS or len(node.input) < 2:
            continue
        made = stays.get((node.input[1], 1 if node.op_type == "ConvTranspose" else 0))
        group = next((each for each in node.attribute if each.name == "group"), None)
        if made is None:
            continue
        if len(node.input) > 2 and node.input[2]:
            biases[node.input[2]] = made
        if group is not None and group.i == len(made) > 1:
            group.i = int(made.sum())
    for tensor in cut.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        for dim, size in enumerate(tensor.dims):
            mask = stays.get((tensor.name, dim), biases.get(tensor.name) if values.ndim == 1 else None)
            if mask is not None and len(mask) == size:
                values = np.compress(mask, values, axis=dim)
        if list(values.shape) != list(tensor.dims):
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
    for entry in cut.graph.output:
        entry.type.tensor_type.ClearField("shape")
    return cut


def price(proto: Any, layers: Sequence[Placed], channels: Channels, table: Timetable, whole: Timed) -> Price:
    """Milliseconds of the network by its channels.

    Layers cost what the table says, times what they take in the whole graph for what they take alone; everything else
    in proportion to the elements that it makes.
    """
    grids = [table.grid(each.layer, each.ins, each.outs) for each in layers]
    alone = sum(grid.at(*each.dense) for each, grid in zip(layers, grids, strict=True))
    scale = whole.layers / alone if alone else 1.0
    terms = [_term(each, grid, scale) for each, grid in zip(layers, grids, strict=True)]
    made = list(_others(proto, channels))
    known = sum(size * len(ids) for ids, size in made)
    fixed = whole.others if not known else 0.0
    terms += [Term((ids,), partial(_linear, size * whole.others / known)) for ids, size in made]
    return Price("ms", tuple(terms), fixed)


def _linear(each: float, count: int) -> float:
    return each * count


def _term(each: Placed, grid: Grid, scale: float) -> Term:
    sides = (each.taken,) if each.diagonal else (each.taken, each.made)
    axes = tuple(side for side in sides if not isinstance(side, int))
    known: dict[tuple[int, ...], float] = {}

    def cost(*counts: int) -> float:
        if counts not in known:
            given = iter(counts)
            widths = [side if isinstance(side, int) else next(given) for side in sides]
            taken, made = (widths[0], widths[0]) if each.diagonal else widths
            known[counts] = scale * grid.at(taken, made) if taken and made else 0.0
        return known[counts]

    return Term(axes, cost)


def _others(proto: Any, channels: Channels) -> Iterator[tuple[Ids, float]]:
    """Of every node that is no layer: the channels of its output, and elements for each of them.

    An output has the channels of the input that has as many; concatenated inputs follow each other.
    """
    shapes, held = _shapes(proto), dict[str, Ids]()
    weights = {tensor.name for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        name = node.output[0]
        shape = shapes.get(name, ())
        if node.op_type in _OPERATORS and len(node.input) > 1 and node.input[1] in weights:
            dim = 1 if node.op_type == "ConvTranspose" else 0
            ids = channels.identities.get((node.input[1], dim))
        else:
            ids = _carried(node, [held.get(each) for each in node.input], shape)
            if ids is not None and len(shape) > 1:
                yield ids, math.prod(shape) / len(ids)
        if ids is not None and len(shape) > 1 and len(ids) == shape[1]:
            held[name] = ids


def _carried(node: Any, given: Sequence[Ids | None], shape: tuple[int, ...]) -> Ids | None:
    known = [ids for ids in given if ids is not None]
    if len(shape) < 2 or not known:
        return None
    joined = np.concatenate(known)
    if len(known) == len(given) and len(known) > 1 and len(joined) == shape[1]:
        return joined
    return next((ids for ids in known if len(ids) == shape[1]), None)


def _shapes(proto: Any) -> dict[str, tuple[int, ...]]:
    entries = [*proto.graph.value_info, *proto.graph.input, *proto.graph.output]
    dims = {entry.name: entry.type.tensor_type.shape.dim for entry in entries}
    return {
        name: tuple(dim.dim_value for dim in shape) for name, shape in dims.items() if all(d.dim_value for d in shape)
    }


@dataclass(frozen=True, eq=False)
class LayerTimes:
    """All that tells how long a network takes for one image while its channels go."""

    proto: Any  # onnx.ModelProto of the network as it came
    layers: tuple[Placed, ...]
    table: Timetable
    whole: Timed
    measured: int  # samples taken now; the others were known
    complete: bool  # or a minute was not enough for all

    def price(self, channels: Channels) -> Price:
        """Milliseconds by channels."""
        return price(self.proto, self.layers, channels, self.table, self.whole)


def layer_times(
    file: Path,
    channels: Channels,
    *,
    threads: int,
    given: Timetable | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
    time_layer: Callable[[Layer, Widths, Machine], float] = time_here,
    clock: Callable[[], float] = time.monotonic,
) -> LayerTimes:
    """Time a network's layers on this machine, as far as earlier runs have not, or take the times of another machine.

    `file` is the network as `export_onnx` wrote it, with an input of one image. What was measured is kept for this
    chip, runtime, version and number of threads in $XDG_CACHE_HOME/compressor/times (~/.cache where that is not set).

    Raises FileError for a given table that lacks layers of this network.
    """
    import onnx

    proto = with_one_image(onnx.load(file))
    layers = tuple(placed(proto, channels, preferred_multiple()[0]))
    if given is not None:
        lacking = {layer for layer, widths in samples(layers) if widths not in given.samples.get(layer, {})}
        if lacking or given.whole is None:
            raise FileError(
                f"the timetable of {given.machine.chip} is of another network: it lacks {len(lacking)} layers of this "
                "one, write a kit of this network with tune --kit"
            )
        return LayerTimes(proto, layers, given, sorted_times(given.whole), 0, complete=True)
    on = here(threads)
    place = cache_file(on)
    table = Timetable.read(place) if place.is_file() else Timetable(on)
    before = sum(map(len, table.samples.values()))
    complete = timed(layers, table, time_layer, clock, tell)
    measured = sum(map(len, table.samples.values())) - before
    if measured:
        place.parent.mkdir(parents=True, exist_ok=True)
        table.write(place)
    name, shape = proto.graph.input[0].name, _shapes(proto)[proto.graph.input[0].name]
    return LayerTimes(proto, layers, table, profile_whole(file, name, shape, threads), measured, complete)


def cache_file(on: Machine) -> Path:
    """Where the times of a machine are kept."""
    folder = os.environ.get("XDG_CACHE_HOME")
    name = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", part) for part in (on.chip, on.runtime, f"{on.threads} threads"))
    return (Path(folder) if folder else Path.home() / ".cache") / "compressor" / "times" / f"{name}.json"


def write_kit(file: Path, channels: Channels, folder: Path) -> int:
    """Write a folder with which another machine times a network's layers (`measure.py`, its graphs, `layers.json`);
    returns the number of samples. The folder must be there.
    """
    import onnx

    proto = with_one_image(onnx.load(file))
    layers = placed(proto, channels, preferred_multiple()[0])
    (folder / "layers").mkdir()
    rows: dict[Layer, list[list[Any]]] = {}
    for number, (layer, widths) in enumerate(samples(layers)):
        model, shape = single(layer, widths)
        name = f"layers/{number:04}.onnx"
        (folder / name).write_bytes(model)
        rows.setdefault(layer, []).append([*widths, name, shape])
    shutil.copyfile(file, folder / "whole.onnx")
    given = proto.graph.input[0].name
    whole = {"file": "whole.onnx", "input": given, "shape": _shapes(proto)[given]}
    listed = [{**asdict(layer), "samples": found} for layer, found in rows.items()]
    write_json(folder / "layers.json", {"format": FORMAT, "layers": listed, "whole": whole})
    shutil.copyfile(Path(measure.__file__), folder / "measure.py")
    return sum(map(len, rows.values()))
