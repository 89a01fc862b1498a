"""A module as an ONNX graph by torch's exporter, which is kept quiet and whose notes to itself are taken out."""

import contextlib
import functools
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from compressor.errors import CompressorError, ModelError, UsageError, first_line
from compressor.graph.trace import call_arguments

OPSET = 20
_OPSETS = range(15, 24)  # what torch's exporter writes (18 and later) or converts down to


def check_opset(opset: int) -> None:
    """Raise UsageError for a version of ONNX's operators that cannot be written."""
    if opset not in _OPSETS:
        raise UsageError(f"opset {opset} cannot be written; give one from {_OPSETS[0]} to {_OPSETS[-1]}")


def flatten(
    reference: nn.Module,
    example: Any,
    opset: int,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
) -> Any:
    """torch's ONNXProgram of a module in evaluation mode, without stack traces, batch norms folded where possible.

    The first dimension of every tensor of the example is left free, but for tensors without one; the example has two
    images. Raises ModelError where torch cannot export the module.
    """
    for name, module in reference.named_modules():
        if type(module).__module__.startswith("torch.ao.nn.quantized"):
            raise ModelError(
                f"{name or 'the model'} is a layer that torch has quantized ({type(module).__name__}), which it cannot "
                "write: export the network as it was before, with `precision` int8"
            )
    arguments, keywords = call_arguments(example, reference)
    batch = torch.export.Dim("batch")
    given = inspect.signature(reference.forward).bind(*arguments, **keywords).arguments
    shapes = tree_map(lambda leaf: {0: batch} if isinstance(leaf, Tensor) and leaf.dim() else None, dict(given))

    def exported(model: nn.Module | torch.export.ExportedProgram) -> Any:
        return torch.onnx.export(
            model,
            (*arguments, keywords),  # a dict in the last place is taken for keywords, whatever it is
            dynamo=True,
            dynamic_shapes=shapes,
            opset_version=opset,
            input_names=inputs,
            output_names=outputs,
            verbose=False,
        )

    try:
        with quiet(), _one_registry():
            program = exported(reference)
            if program is not None and _takes_one_batch_only(program.model):  # len(x) is read in the byte code only
                program = exported(
                    torch.export.export(reference, arguments, keywords, dynamic_shapes=shapes, strict=True)
                )
    except Exception as error:  # the exporter fails in many ways, with a report of many lines
        raise ModelError(f"torch cannot export this model to ONNX ({first_line(root_of(error))})") from error
    assert program is not None
    _strip(program.model)
    written = program.model.opset_imports[""]
    if written != opset:
        raise ModelError(f"this model cannot be written in opset {opset}; ask for opset {written}")
    return program


def _takes_one_batch_only(model: Any) -> bool:
    """Whether the first dimension of an input has become a number."""
    return any(
        value.shape is not None and len(value.shape) and isinstance(value.shape[0], int) for value in model.graph.inputs
    )


def check_file(file: Path) -> None:
    """Raise CompressorError for a file that is not valid ONNX."""
    import onnx

    try:
        onnx.checker.check_model(str(file))
    except onnx.checker.ValidationError as error:
        raise CompressorError(f"the exported graph is not valid ONNX ({first_line(error)})") from error


def root_of(error: BaseException) -> BaseException:
    """What an error was raised from first."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter: its progress, its logs, and the failing graph that it prints before it raises."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    sink = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
            # Said of every input after the first: they share one batch, and so one name for it.
            warnings.filterwarnings("ignore", r".*The axis name: batch will not be used", UserWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(torch|onnx|onnxscript|onnx_ir)\b")
            yield
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def _one_registry() -> Iterator[None]:
    """Let torch build its table of translated operators once for a process, not once for a graph.

    Building it takes most of the time of a small export, and a package is exported in stages. The table is private to
    torch: where it has moved, every export builds its own.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        own = ONNXRegistry.__dict__["from_torchlib"]
    except (ImportError, KeyError):
        yield
        return
    ONNXRegistry.from_torchlib = staticmethod(_registry(ONNXRegistry))  # type: ignore[method-assign]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = own  # type: ignore[method-assign]


@functools.cache
def _registry(owner: Any) -> Any:
    return functools.cache(owner.from_torchlib)


def _strip(model: Any) -> None:
    """Take out stack traces, scopes and signatures: the exporter's notes to itself, many times the graph's own size."""
    graphs = [model.graph, *model.functions.values()]
    nodes = [node for graph in graphs for node in graph.all_nodes()]
    values = [value for node in nodes for value in node.outputs]
    for graph in graphs:
        values += [*graph.inputs, *graph.outputs]
    values += model.graph.initializers.values()
    for holder in (model, *graphs, *nodes, *values):
        holder.metadata_props.clear()
        holder.doc_string = None
