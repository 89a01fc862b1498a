"""Export a model to one ONNX file and keep it only when ONNX Runtime's outputs equal torch's.

The file is made in a temporary folder beside its final place and moved there after the check, so a failed export leaves
nothing behind and an older file of that name stays as it was.
"""

import contextlib
import io
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from compressor.errors import CompressorError, FileError, ModelError, UsageError
from compressor.exporting.parity import RELATIVE_LIMIT, Array, OnnxCheck, largest_difference
from compressor.exporting.runtime import first_line, open_session
from compressor.graph.trace import call_arguments, refusal, set_mode, skeleton

OPSET = 20
_OPSETS = range(15, 24)  # what torch's exporter writes (18 and later) or converts down to
CHECKED_BATCHES = (1, 5)
_LARGEST_SINGLE_FILE = 2_000_000_000  # bytes; a protobuf message ends at 2 GiB, and the graph needs some room


def export_onnx(
    module: nn.Module,
    example: Any,
    path: str | os.PathLike[str],
    *,
    opset: int = OPSET,
    check_inputs: Any = None,
) -> OnnxCheck:
    """Write `module` as a checked ONNX file with a free batch size, batch norms folded into convolutions.

    The file is float32 whatever the model's type, and holds the weights itself below 2 GB (above, they lie beside it in
    FILE.data). The model is untouched: a copy is exported, in eval mode and on the CPU.

    Args:
        example: a tensor with the batch first, such as (1, 3, 224, 224), or a tuple or dict of tensors for a model with
            several inputs; its values do not matter.
        path: the file to write; its folder is made if missing.
        opset: version of ONNX's operator set, 15 to 23.
        check_inputs: real inputs of the same form as `example`, any number of images, on which the file is compared
            with torch at batch 1 and 5; random ones where left out.

    Raises:
        UsageError: no such opset.
        ModelError: the model does not run on the example, or torch cannot export it.
        CompressorError: ONNX Runtime refuses the file, or its outputs differ from torch's by more than 1e-4 of the
            largest output. Nothing is left under `path` then, except what was there before.
        FileError: the file cannot be written.

    Example:
        check = export_onnx(module, torch.zeros(1, 3, 224, 224), "small.onnx")
        check.max_rel                          # 3e-7
    """
    if opset not in _OPSETS:
        raise UsageError(f"opset {opset} cannot be written; give one from {_OPSETS[0]} to {_OPSETS[-1]}")
    reference = skeleton(module, real=True).cpu().float()
    set_mode(reference, training=False)
    cpu_example = tree_map(_portable, example)
    inputs = check_inputs if check_inputs is not None else _random_like(cpu_example)
    batches = [_images(tree_map(_portable, inputs), count) for count in CHECKED_BATCHES]
    expected = [_torch_outputs(reference, batch) for batch in batches]
    program = _program(reference, _images(cpu_example, 2), opset)
    with _folder_beside(Path(path)) as folder:
        file = folder / Path(path).name
        _save(program, file)
        worst = [_compared(file, batch, outputs) for batch, outputs in zip(batches, expected)]
        check = OnnxCheck(
            max_abs=max(absolute for absolute, _ in worst),
            max_rel=max(relative for _, relative in worst),
            opset=opset,
            file_bytes=sum(entry.stat().st_size for entry in folder.iterdir()),
            batches=CHECKED_BATCHES,
            inputs="random" if check_inputs is None else "real",
        )
        if not check.max_rel <= RELATIVE_LIMIT:
            raise CompressorError(
                f"the exported file's outputs differ from torch's by {check.max_rel:.1e} of the largest output "
                f"(at most {RELATIVE_LIMIT:.0e} is allowed); {path} was not written"
            )
        _move(folder, Path(path))
    return check


def _portable(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    plain = leaf.detach().cpu()
    return plain.float() if plain.is_floating_point() else plain


def _random_like(example: Any) -> Any:
    """Normal noise in place of the floats, the same in every run; other types keep the example's values."""
    generator = torch.Generator().manual_seed(0)

    def drawn(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        return torch.randn((max(CHECKED_BATCHES), *leaf.shape[1:]), generator=generator)

    return tree_map(drawn, example)


def _images(inputs: Any, count: int) -> Any:
    """The first `count` images of every tensor, repeated from the start where there are fewer."""

    def taken(leaf: Any) -> Any:
        return leaf[torch.arange(count) % len(leaf)] if isinstance(leaf, Tensor) and leaf.dim() else leaf

    return tree_map(taken, inputs)


def _torch_outputs(reference: nn.Module, inputs: Any) -> list[Array]:
    arguments, keywords = call_arguments(inputs)
    try:
        with torch.inference_mode():
            outputs = reference(*arguments, **keywords)
    except Exception as error:  # any code of the user's may fail in any way
        raise ModelError(refusal(inputs, error)) from error
    tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise ModelError("the model gives infinities or NaN, so no export can be checked; train it to finite weights")
    return [tensor.numpy() for tensor in tensors]


def _program(reference: nn.Module, example: Any, opset: int) -> Any:
    """torch's ONNXProgram of the model, without stack traces."""
    arguments, keywords = call_arguments(example)
    single = isinstance(example, Tensor)
    batch = torch.export.Dim("batch")
    free = tree_map(lambda leaf: {0: batch} if isinstance(leaf, Tensor) and leaf.dim() else None, example)
    try:
        with _quiet():
            program = torch.onnx.export(
                reference,
                arguments,
                kwargs=keywords,
                dynamo=True,
                dynamic_shapes=(free,) if single else tuple(free) if isinstance(free, list) else free,
                opset_version=opset,
                input_names=["input"] if single else None,
                verbose=False,
            )
    except Exception as error:  # the exporter fails in many ways, with a report of many lines
        raise ModelError(f"torch cannot export this model to ONNX ({first_line(_root(error))})") from error
    assert program is not None
    _strip(program.model)
    written = program.model.opset_imports[""]
    if written != opset:
        raise ModelError(f"this model cannot be written in opset {opset}; ask for opset {written}")
    return program


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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


def _save(program: Any, file: Path) -> None:
    import onnx

    weights = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
    program.save(file, external_data=weights > _LARGEST_SINGLE_FILE)
    try:
        onnx.checker.check_model(str(file))
    except onnx.checker.ValidationError as error:
        raise CompressorError(f"the exported graph is not valid ONNX ({first_line(error)})") from error


def _compared(file: Path, inputs: Any, expected: list[Array]) -> tuple[float, float]:
    """The largest absolute and relative difference between the file's outputs and `expected`."""
    try:
        session = open_session(file)
        names = [entry.name for entry in session.get_inputs()]
        tensors = inputs if isinstance(inputs, dict) else dict(zip(names, tree_leaves(inputs), strict=True))
        got = session.run(None, {name: tensors[name].numpy() for name in names})
    except Exception as error:  # onnxruntime's exceptions share no class of their own
        raise CompressorError(f"ONNX Runtime cannot run the exported graph ({first_line(error)})") from error
    return largest_difference(expected, got)


@contextlib.contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """A temporary folder on the disk of `path`, removed at the end whatever happened."""
    if path.is_dir():
        raise FileError(f"{path} is a folder; give the name of the .onnx file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".export-", dir=path.parent))
    except OSError as error:
        raise FileError(f"{path} cannot be written ({error.strerror})") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move(folder: Path, path: Path) -> None:
    """Move what was written to its final place, the graph last: it names the others."""
    for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
        file.replace(path.parent / file.name)
