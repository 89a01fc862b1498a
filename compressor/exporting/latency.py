"""Latency of a model on torch and, after an export, on ONNX Runtime; and of several graphs in turn."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from compressor.errors import CompressorError, first_line
from compressor.exporting.measure import node_times
from compressor.exporting.onnx import export_onnx, feeds_of
from compressor.exporting.runtime import OnnxModel, open_session
from compressor.exporting.runtimes import ENGINES
from compressor.exporting.samples import images, portable, random_like
from compressor.exporting.weights import graphs_in
from compressor.graph.held import with_tensors
from compressor.graph.neutral import bare, neutrally, seeded, uncollected
from compressor.graph.state import State
from compressor.graph.tensors import device_of
from compressor.graph.trace import call_arguments
from compressor.profiling.costs import profile as profile_costs
from compressor.profiling.latency import measure_in_turn, once
from compressor.report.manifest import Array
from compressor.report.measurements import Profile
from compressor.report.progress import progress
from compressor.training.evaluate import evaluating

_PROFILED_SECONDS = 0.3
_LAYERS = ("Conv", "Gemm", "MatMul")


def layer_latency(path: Path, feeds: dict[str, Array], threads: int) -> dict[str, float]:
    """Milliseconds of every layer with weights, by its dotted name, and of everything else by "(operator)".

    ONNX Runtime's profiler measures what the graph is fed; what is fused into a layer, as activations are, counts for
    it.
    """
    times = node_times(str(path), feeds, threads, _PROFILED_SECONDS)
    return by_layer(onnx.load(path, load_external_data=False).graph, times)


def by_layer(graph: Any, times: Mapping[str, tuple[str, float]]) -> dict[str, float]:
    """The times of the nodes that run, name -> (operator, ms), by the layers of the graph as it was exported."""
    nodes = [node for each in graphs_in(graph) for node in each.node]
    named = {node.name: node for node in nodes}
    made_by = {output: node for node in nodes for output in node.output}
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) > 1}
    found: dict[str, float] = {}
    for name, (operator, ms) in times.items():
        plain = name.removesuffix("_nchwc")
        node = named.get(plain) or made_by.get(plain)  # a fused node has the name of its last output
        while node is not None and any(part in operator for part in _LAYERS) and _weight(node, weights) is None:
            node = made_by.get(node.input[0]) if node.input else None
        weight = None if node is None else _weight(node, weights)
        layer = f"({operator})" if weight is None else weight.rpartition(".")[0] or plain
        found[layer] = found.get(layer, 0.0) + ms
    return dict(sorted(found.items(), key=lambda each: -each[1]))


def _weight(node: Any, weights: set[str]) -> str | None:
    """The name of a layer's weight."""
    if not any(part in node.op_type for part in _LAYERS):
        return None
    return next((name for name in node.input if name in weights), None)


LARGER_BATCH = 16
Timing = dict[str, Any]  # median and p95 in ms, batch, runs, threads; and the same under "larger"


@neutrally
def profile(module: nn.Module, example: Any, *, latency: bool = False, layers: bool = True) -> Profile:
    """Multiply-adds, parameters, peak activation memory and, if asked, latency of a model; the model is untouched.

    Args:
        example: a tensor with the batch first, such as (1, 3, 224, 224), or a tuple or dict of them; costs are for
            one image, whatever the batch.
        latency: also measure milliseconds on torch and ONNX Runtime, which takes several seconds.
        layers: also list the cost of every layer; the sums over the list are the totals.

    Raises:
        ModelError: the model does not run on the example.

    Example:
        cost = compressor.profile(module, torch.zeros(1, 3, 32, 32))
        cost.macs, cost.params                 # 313201664, 14728266
    """
    cost = profile_costs(module, example, layers=layers)
    if not latency:
        return cost
    [(timings, missing)] = model_latencies([bare(module)], example)
    known = {name: reason for name, reason in cost.reasons.items() if name != "latency_ms"}
    each = (timings["onnxruntime"] or {}).get("layers", {})
    rows = tuple(replace(layer, ms=each.get(layer.name)) for layer in cost.layers)
    return replace(cost, latency_ms=timings, layers=rows, reasons=known | missing)


def model_latencies(
    modules: Sequence[nn.Module], example: Any, made: Path | CompressorError | None = None
) -> list[tuple[dict[str, Timing | None], dict[str, str]]]:
    """Latency of modules on their own device, and of their exports on ONNX Runtime's CPU provider, all taking turns.

    Args:
        made: the ONNX file of the last of them, or why there can be none, where that is known.

    Returns for each `{"torch": timing, "onnxruntime": timing or None}`, where a timing holds `median` and `p95` in
    milliseconds, `batch` (1), `runs`, `threads` and `larger` (the same for a larger batch), that of ONNX Runtime also
    `layers` (the milliseconds of each); and a reason for each None.
    """
    found: list[dict[str, Timing | None]]
    try:
        found = [{"torch": timing, "onnxruntime": None} for timing in _torch_timings(modules, example)]
    except Exception as error:
        if isinstance(example, Tensor):
            raise
        # A list of images has no batch in its first dimension.
        reason = f"the model does not run on a batch made of the example ({first_line(error)})"
        missing = {f"latency_ms.{engine}": reason for engine in ("torch", "onnxruntime")}
        return [({"torch": None, "onnxruntime": None}, missing) for _ in modules]
    reasons: list[dict[str, str]] = [{} for _ in modules]
    with tempfile.TemporaryDirectory() as folder:
        opened: dict[int, tuple[Path, Any]] = {}
        for number, module in enumerate(modules):
            path = Path(folder) / f"{number}.onnx"
            try:
                if made is None or module is not modules[-1]:
                    export_onnx(module, example, path)
                elif isinstance(made, CompressorError):
                    raise made
                else:
                    path = made
                opened[number] = path, open_session(path, threads=torch.get_num_threads())
            except CompressorError as error:
                reasons[number] = {"latency_ms.onnxruntime": str(error)}
        for number, timing in zip(opened, _export_timings(list(opened.values()), portable(example))):
            found[number]["onnxruntime"] = timing
    return list(zip(found, reasons))


def _export_timings(opened: Sequence[tuple[Path, Any]], example: Any) -> list[Timing]:
    """Of graphs that were exported for the example, and their sessions; with the milliseconds of each layer."""

    def fed(session: Any, batch: int) -> dict[str, Array]:
        return feeds_of(session, images(random_like(example, batch), batch))

    def calling(batch: int) -> list[Callable[[], object]]:
        return [partial(session.run, None, fed(session, batch)) for _, session in opened]

    timings = _timings("ONNX Runtime", calling) if opened else []
    return [
        {**timing, "layers": layer_latency(file, fed(session, 1), torch.get_num_threads())}
        for (file, session), timing in zip(opened, timings, strict=True)
    ]


def file_latency(path: Path) -> Timing:
    """Latency of an .onnx file of this process, for random images."""
    return _onnx_timing(OnnxModel(path, threads=torch.get_num_threads(), own=True))


def onnx_latency(path: Path, feeds: Mapping[str, Array], most_gib: float) -> Timing:
    """The same of an .onnx file from outside, with further `feeds`."""
    threads = torch.get_num_threads()
    return _onnx_timing(OnnxModel(path, threads=threads, feeds=feeds, most_gib=most_gib, several=True))


def _onnx_timing(model: OnnxModel) -> Timing:
    return _timings("ONNX Runtime", lambda batch: [partial(model, **model.noise(batch))])[0]


def _torch_timings(modules: Sequence[nn.Module], example: Any) -> list[Timing]:
    device = device_of(modules[0])
    wait = (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else None

    def calling(batch: int) -> list[Callable[[], object]]:
        given = with_tensors(example, lambda tensor: _repeated(tensor, batch, device))
        arguments, keywords = call_arguments(given, modules[0])
        return [partial(module, *arguments, **keywords) for module in modules]

    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(State(module.modules()).kept())
            stack.enter_context(evaluating(module))
        with seeded(0), torch.inference_mode():
            return _timings("torch", calling, wait)


def _timings(
    engine: str, calling: Callable[[int], Sequence[Callable[[], object]]], wait: Callable[[], object] | None = None
) -> list[Timing]:
    """Of all that `calling` gives for a batch: first one image, then the larger batch."""
    found = []
    for number, batch in enumerate((1, LARGER_BATCH)):
        progress(f"timing {engine}, batch", number, 2)
        found.append(measure_in_turn(calling(batch), batch=batch, threads=torch.get_num_threads(), wait=wait))
    return [{**asdict(first), "larger": asdict(larger)} for first, larger in zip(*found)]


def _repeated(tensor: Tensor, batch: int, device: torch.device) -> Tensor:
    return tensor[torch.arange(batch, device=tensor.device) % len(tensor)].to(device) if tensor.dim() else tensor


ROUNDS = 9
_SECONDS = 0.1  # that a graph runs in each round, once at least
_WARM = 2  # runs before anything is timed


@dataclass(frozen=True)
class Compared:
    """Milliseconds of a graph beside another's: medians over the rounds, and of their ratio the middle 90 %."""

    before: float
    after: float
    ratio: float  # after / before
    low: float
    high: float

    @classmethod
    def of(cls, rounds: Sequence[Sequence[float]]) -> "Compared":
        """From the two times of each round."""
        times = np.array(rounds, dtype=np.float64)
        ratios = times[:, 1] / times[:, 0]
        low, ratio, high = (float(value) for value in np.quantile(ratios, (0.05, 0.5, 0.95)))
        before = float(np.median(times[:, 0]))
        return cls(before, ratio * before, ratio, low, high)


def side_by_side(
    files: Sequence[Path], shape: tuple[int, ...], threads: int, runtime: str = "onnxruntime"
) -> list[list[float]]:
    """Milliseconds of each graph in every round, the shortest of some runs.

    Args:
        shape: of the one input of each, the batch included.
        threads: CPU threads that an operator may use.
    """
    calls = [ENGINES[runtime].calling(file, shape, threads) for file in files]
    for call in calls:
        for _ in range(_WARM):
            call()
    with uncollected():
        return [[1e3 * _shortest(call) for call in calls] for _ in range(ROUNDS)]


def _shortest(call: Callable[[], object]) -> float:
    """Seconds of the shortest of the runs that fit into a round."""
    began, best = time.perf_counter(), once(call)
    while time.perf_counter() - began < _SECONDS:
        best = min(best, once(call))
    return best
