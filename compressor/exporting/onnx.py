"""Export a model to one ONNX file and keep it only when ONNX Runtime's outputs equal torch's.

The file is made in a temporary folder beside its final place and moved there after the check, so a failed export leaves
nothing behind and an older file of that name stays as it was.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from compressor.errors import CompressorError, FileError, ModelError, first_line
from compressor.exporting.flatten import OPSET, check_file, check_opset, flatten
from compressor.exporting.runtime import open_session
from compressor.exporting.samples import (
    RELATIVE_LIMIT,
    arranged,
    images,
    largest_difference,
    portable,
    random_like,
    reference_of,
    torch_answer,
    torch_outputs,
)
from compressor.files.paths import folder_beside, move_files
from compressor.report.card import CARD_KEY, Card, card_text
from compressor.report.manifest import Array
from compressor.report.measurements import OnnxCheck

CHECKED_BATCHES = (1, 5)
_LARGEST_SINGLE_FILE = 2_000_000_000  # bytes; a protobuf message ends at 2 GiB, and the graph needs some room


def export_onnx(
    module: nn.Module,
    example: Any,
    path: str | os.PathLike[str],
    *,
    opset: int = OPSET,
    check_inputs: Any = None,
    card: Card | None = None,
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
        card: what the file says of the model, such as how its images are prepared.

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
    check_opset(opset)
    single = isinstance(example, Tensor)

    def write(reference: nn.Module, whole: Any, file: Path) -> None:
        program = flatten(reference, images(whole, 2), opset, ["input"] if single else None)
        if card is not None:
            first = next(leaf for leaf in tree_leaves(whole) if isinstance(leaf, Tensor))
            gives = arranged(torch_answer(reference, images(whole, 2)))
            program.model.metadata_props[CARD_KEY] = card_text(tuple(first.shape[1:]), card, gives)
        weights = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
        program.save(file, external_data=weights > _LARGEST_SINGLE_FILE)
        check_file(file)

    return replace(write_checked(module, example, path, write, _compared, check_inputs), opset=opset)


def write_checked(
    module: nn.Module,
    example: Any,
    path: str | os.PathLike[str],
    write: Callable[[nn.Module, Any, Path], None],
    compare: Callable[[Path, Any, list[Array]], tuple[float, float]],
    check_inputs: Any = None,
) -> OnnxCheck:
    """Write a module as one file and keep it only when it gives torch's outputs.

    Args:
        write: of the module as it is exported, an example, and the file to write.
        compare: of the file, inputs and torch's outputs, the largest absolute and relative difference.
    """
    target = Path(path)
    if target.is_dir():
        raise FileError(f"{target} is a folder; give the name of the {target.suffix or 'file'} file to write")
    if isinstance(example, list | tuple) and any(isinstance(part, list) for part in example):
        raise ModelError("a network that is called with a list of images has no batch, so no such file can be written")
    reference, whole = reference_of(module), portable(example)
    inputs = random_like(whole, max(CHECKED_BATCHES)) if check_inputs is None else portable(check_inputs)
    batches = [images(inputs, count) for count in CHECKED_BATCHES]
    expected = [torch_outputs(reference, batch) for batch in batches]
    with folder_beside(target) as folder:
        file = folder / target.name
        write(reference, whole, file)
        worst = [compare(file, batch, outputs) for batch, outputs in zip(batches, expected)]
        check = OnnxCheck(
            max_abs=max(absolute for absolute, _ in worst),
            max_rel=max(relative for _, relative in worst),
            file_bytes=sum(entry.stat().st_size for entry in folder.iterdir()),
            batches=CHECKED_BATCHES,
            inputs="random" if check_inputs is None else "real",
        )
        if not check.max_rel <= RELATIVE_LIMIT:
            raise CompressorError(
                f"the exported file's outputs differ from torch's by {check.max_rel:.1e} of the largest output "
                f"(at most {RELATIVE_LIMIT:.0e} is allowed); {path} was not written"
            )
        move_files(folder, target.parent, last=target.name)
    return check


def feeds_of(session: Any, inputs: Any) -> dict[str, Array]:
    """The tensors of `inputs` by the names of an exported graph's inputs: those of a dict, else in their order."""
    names = [entry.name for entry in session.get_inputs()]
    by_name = isinstance(inputs, dict) and inputs.keys() == set(names)
    tensors = inputs if by_name else dict(zip(names, tree_leaves(inputs), strict=True))
    return {name: tensors[name].numpy() for name in names}


def _compared(file: Path, inputs: Any, expected: list[Array]) -> tuple[float, float]:
    """The largest absolute and relative difference between the file's outputs and `expected`."""
    try:
        session = open_session(file)
        fed = feeds_of(session, inputs)
        got = session.run(None, fed)
    except Exception as error:  # onnxruntime's exceptions share no class of their own
        raise CompressorError(f"ONNX Runtime cannot run the exported graph ({first_line(error)})") from error
    count = len(next(iter(fed.values())))
    for wanted, found in zip(expected, got):
        if wanted.shape != found.shape:
            raise CompressorError(
                f"on a batch of {count} the model gives {wanted.shape}, the exported graph {found.shape}: perhaps the "
                "model drops dimensions of size 1 (squeeze() without saying which)"
            )
    return largest_difference(expected, got)
