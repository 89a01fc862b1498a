"""Open an ONNX file as a torch network that can be pruned and trained, and check it against ONNX Runtime."""

import copy
import re
from keyword import iskeyword
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.errors import CompressorError, FileError, first_line, listed, shown
from compressor.exporting.onnx_in.nodes import Built, Node, Untaken
from compressor.exporting.onnx_in.operators import build
from compressor.exporting.onnx_in.values import Graph, evaluate, sampled
from compressor.exporting.runtime import private_copy
from compressor.exporting.samples import RELATIVE_LIMIT, largest_difference, torch_outputs
from compressor.files.limits import LARGEST_GIB
from compressor.loading.onnx_network import OnnxNetwork
from compressor.loading.opening import OpenedModel
from compressor.report.manifest import card_inside

_VALUE = "%"  # begins the names of values, and no tensor's
_ROUNDINGS = 10  # times the error that float32 makes in torch
_DEVIATES = 1e-3  # of the largest value: an operator is wrong and not only rounded otherwise


def open_onnx(path: Path, *, shape: tuple[int, ...] | None = None, most_gib: float = LARGEST_GIB) -> OpenedModel:
    """The network of an ONNX file: convolutions, linear layers and norms as torch's layers, the rest as functions.

    A batch size that the file fixes is left open. On random images every operator's results are compared with ONNX
    Runtime's.

    Args:
        shape: (channels, height, width), where the file leaves the images' size open.

    Raises:
        FileError: an operator is unknown here, or gives something else than in ONNX Runtime; the message names it. The
            graph mixes the images of a batch, has several inputs, or is not of float32. As `runtime.OnnxModel`.
        UsageError: the images' size is not known, or `shape` is another one.
    """
    import onnx

    with private_copy(path, most_gib) as copy:
        metadata = {each.key: each.value for each in onnx.load(str(copy), load_external_data=False).metadata_props}
        graph = evaluate(copy, path, shape)
    network = _Assembly(graph, path).network()
    differs = _check(network, graph, path)
    card = card_inside(metadata, str(path))
    told = f"{len(graph.nodes)} operations of torch, whose outputs equal ONNX Runtime's to {differs:.0e}"
    notes = [f"{path} is opened as {told}"]
    if graph.fixed:
        notes.append(f"{path} was exported for batches of {graph.values.batch}: the batch size is free now")
    return OpenedModel(
        network,
        input_shape=tuple(graph.images.shape[1:]),
        classes=card.classes,
        preparation=card.preparation,
        history=card.history,
        notes=tuple(notes),
    )


class _Assembly:
    """A network while it is put together, node by node, and then run on the images of the graph."""

    def __init__(self, graph: Graph, path: Path) -> None:
        self._graph, self._path = graph, path
        self._root = OnnxNetwork(f"{_VALUE}images", (), ())
        self._names = {graph.values.image: f"{_VALUE}images"}  # ONNX's name of a value -> the network's
        self._calls: list[tuple[str, list[str], list[str]]] = []  # layer, sources, results
        self._origins: list[tuple[Any, list[str]]] = []  # of each call: its node, and ONNX's names of its results
        self._shared: dict[Any, str] = {}  # what makes two nodes one layer -> its name

    def network(self) -> OnnxNetwork:
        """The whole network, in evaluation mode. Raises FileError as `open_onnx`."""
        covered: set[int] = set()
        for node, made in self._built():
            if id(node) not in covered:
                covered.update(made.covered)
                self._add(node, made)
        outputs = [self._names[name] for name in self._graph.outputs]
        self._drop_unread(outputs)
        self._root.outputs, self._root.nodes = outputs, _with_ends(self._calls, outputs)
        self._root.eval()
        self._compare_all()
        return self._root

    def _drop_unread(self, outputs: list[str]) -> None:
        """Forget calls of which nothing is read, since another layer computes what they were for."""
        read, kept = set(outputs), []
        for call, origin in zip(reversed(self._calls), reversed(self._origins)):
            if read.intersection(call[2]):
                kept.append((call, origin))
                read.update(call[1])
        self._calls, self._origins = [call for call, _ in kept[::-1]], [origin for _, origin in kept[::-1]]
        for name in {*self._root._modules} - {layer for layer, *_ in self._calls}:
            del self._root._modules[name]

    def _built(self) -> list[tuple[Any, Built]]:
        """Every node with its layer, before anything is run."""
        import onnx

        refused, built = [], []
        for proto in self._graph.nodes:
            attributes = {each.name: _plain(onnx.helper.get_attribute_value(each)) for each in proto.attribute}
            try:
                with torch.device("meta"):
                    made = build(Node(proto, self._graph.values, attributes))
                if self._graph.values.varying.intersection(made.sources):
                    raise Untaken("it takes what is computed from the batch size")
                built.append((proto, made))
            except Untaken as why:
                refused.append(f"{_called(proto)}: {why}")
            except (LookupError, TypeError, ValueError, RuntimeError) as error:  # of attributes that no exporter writes
                refused.append(f"{_called(proto)}: {first_line(error, 80)}")
        if refused:
            raise FileError(
                f"{self._path} cannot be opened for pruning or training, because of {listed(refused, 3)}; give the "
                "network as PyTorch code and weights"
            )
        return built

    def _add(self, node: Any, made: Built) -> None:
        results = list(made.results or node.output)
        sources = [self._source(name) for name in made.sources]
        if made.layer is None:
            self._names[results[0]] = sources[0]
            return
        for name in filter(None, results):
            self._names[name] = f"{_VALUE}{len(self._names)}"
        self._calls.append((self._layer(node, made), sources, [self._names.get(name, "") for name in results]))
        self._origins.append((node, results))

    def _compare_all(self) -> None:
        """Run the network layer by layer. Raises FileError naming the first operator that differs in ONNX Runtime."""
        values = {self._root.image: torch.from_numpy(self._graph.images)}
        for (layer, sources, results, spent), (node, names) in zip(self._root.nodes, self._origins, strict=True):
            try:
                given = [values[name] if name in values else self._root.tensor(name) for name in sources]
                with torch.no_grad():
                    found = getattr(self._root, layer)(*given)
            except Exception as error:  # whatever torch refuses
                raise FileError(f"{self._path}: torch does not run {_called(node)} ({first_line(error)})") from error
            for name, ours, tensor in zip(names, results, (found,) if isinstance(found, Tensor) else found):
                values[ours] = tensor
                if name:
                    self._compare(node, given, tensor, name)
            for name in spent:
                del values[name]

    def _compare(self, node: Any, given: list[Tensor], ours: Tensor, name: str) -> None:
        """Raises FileError where a result is off by more than rounding makes of values as large as these."""
        shape, theirs = self._graph.values.shapes[name], self._graph.results[name]
        expected = sampled(theirs) if name in self._graph.outputs else theirs
        if tuple(ours.shape) != shape:
            raise FileError(
                f"{self._path}: {_called(node)} gives {tuple(ours.shape)} in torch, {shape} in ONNX Runtime"
            )
        if expected.dtype.kind != "f" or not np.isfinite(expected).all():
            return
        numbers = [each.detach() for each in (*given, ours) if each.is_floating_point() and each.numel()]
        largest = max((float(each.abs().max()) for each in numbers), default=0.0)
        apart, _ = largest_difference([expected], [sampled(ours.numpy())])
        if apart > _DEVIATES * largest:
            raise FileError(
                f"{self._path}: {_called(node)} differs between torch and ONNX Runtime by {apart:.0e} where values are "
                f"up to {largest:.0e}, so the network is not opened; please report it"
            )

    def _source(self, name: str) -> str:
        """The network's name of a value; a constant becomes a tensor of the network's own, one for each use: exporters
        keep equal ones once, which ties nothing."""
        if name in self._names:
            return self._names[name]
        tensor = torch.from_numpy(np.array(self._graph.values.constants[name]))
        own = self._unused(_cleaned(name) or "constant")
        if _learns(tensor):
            self._root.register_parameter(own, nn.Parameter(tensor))
        else:
            self._root.register_buffer(own, tensor)
        return own

    def _layer(self, node: Any, made: Built) -> str:
        """The name of the node's layer in the network; what has the same weights and settings is one layer."""
        settings = sorted(each.SerializeToString() for each in node.attribute)
        key = (node.op_type, *made.weights, *settings) if made.weights else id(node)
        if key not in self._shared:
            self._shared[key] = self._unused(_layer_name(node, made))
            self._root.add_module(self._shared[key], made.layer)
        return self._shared[key]

    def _unused(self, name: str) -> str:
        """The name, with a number where the network has it."""
        taken = name if not iskeyword(name) else f"{name}_"
        count = 1
        while hasattr(self._root, taken):
            count += 1
            taken = f"{name}_{count}"
        return taken


def _learns(tensor: Tensor) -> bool:
    """Whether a constant is a parameter, such as a layer's scale, and not a grid, an anchor or a stride: a vector, and
    not of halves and whole numbers alone."""
    vector = tensor.is_floating_point() and tensor.numel() > 1 and max(tensor.shape) == tensor.numel()
    return vector and not bool((2 * tensor).frac().eq(0).all())


def _with_ends(calls: list[tuple[str, list[str], list[str]]], outputs: list[str]) -> list[list[Any]]:
    """The calls, each with the values that nothing reads after it."""
    read, nodes = set(outputs), []
    for layer, sources, results in reversed(calls):
        own = [name for name in results if name]
        spent = [name for name in dict.fromkeys((*sources, *own)) if name not in read and name.startswith(_VALUE)]
        nodes.append([layer, sources, results, spent])
        read.update(sources)
    return nodes[::-1]


def _layer_name(node: Any, made: Built) -> str:
    """As the network's code called it, as far as the file tells: by its weight, or by the path in the node's name."""
    if made.weights and made.weights[0].endswith(".weight"):
        return _cleaned(made.weights[0].removesuffix(".weight"))
    parts = node.name.removeprefix("node_").strip("/").split("/")
    own = len(list(made.layer.parameters())) > 0 if made.layer is not None else False
    parts = parts[:-1] if own and len(parts) > 1 else parts
    kept = [part for part, after in zip(parts, [*parts[1:], ""]) if not after.startswith(f"{part}.") and after != part]
    return _cleaned("_".join(kept)) or node.op_type.lower()


def _cleaned(name: str) -> str:
    return re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")


def _called(node: Any) -> str:
    return f"{shown(node.op_type, 40)} ({shown(node.name or ', '.join(node.output), 80)})"


def _plain(value: Any) -> Any:
    """An attribute's value, texts as such."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _check(network: OnnxNetwork, graph: Graph, path: Path) -> float:
    """How far outputs are from ONNX Runtime's, as a fraction of the largest. Raises FileError where it is too much, or
    where an image's output depends on what else is in the batch."""
    images = torch.from_numpy(graph.images)
    outputs = torch_outputs(network, images)
    rounding = 0.0
    _, differs = largest_difference([graph.results[name] for name in graph.outputs], outputs)
    if differs > RELATIVE_LIMIT:  # by rounding alone, where a network makes much of small differences
        exact = torch_outputs(copy.deepcopy(network).double(), images.double())
        _, rounding = largest_difference(exact, outputs)
    if differs > max(RELATIVE_LIMIT, _ROUNDINGS * rounding):
        raise FileError(
            f"{path}: the outputs in torch differ from ONNX Runtime's by {differs:.0e} of the largest (at most "
            f"{RELATIVE_LIMIT:.0e} is allowed), so the network is not opened; please report it"
        )
    try:
        more = [each[: len(images)] for each in torch_outputs(network, torch.cat([images, -images]))]
        _, mixed = largest_difference(outputs, more)
    except CompressorError:
        mixed = float("inf")
    if mixed > RELATIVE_LIMIT:
        raise FileError(f"{path} gives an image other outputs in a larger batch: export it with a free batch size")
    return differs
