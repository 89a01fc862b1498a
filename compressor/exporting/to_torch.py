"""For plain PyTorch: a Python file with the network's own sizes and a safetensors file, or torch's exported program.

The program (.pt2) opens without the code it was made of: plain torch runs it (`torch.export.load(path).module()`), and
so does compressor, which also edits and trains it.
"""

import json
import os
import re
import warnings
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from compressor.errors import FileError, ModelError, first_line
from compressor.exporting.onnx import write_checked
from compressor.exporting.samples import images, largest_difference, torch_outputs
from compressor.graph.program import is_weight, operator_of, program, with_free_batch
from compressor.loading.opening import EXTRA, open_model
from compressor.report.card import Card
from compressor.report.manifest import Array
from compressor.report.measurements import OnnxCheck

_LAYERS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
)
_TEXT = '''"""A network in plain PyTorch: load() gives it with the weights of the .safetensors file beside this one."""

from pathlib import Path

{imports}
from safetensors.torch import load_file


class Network(nn.Module):
    """Images (batch, {shape}) to what the network gives."""

    def __init__(self) -> None:
        super().__init__()
        {layers}

{forward}

def load() -> Network:
    """The network, in evaluation mode."""
    network = Network()
    network.load_state_dict(load_file(Path(__file__).with_suffix(".safetensors")))
    return network.eval()
'''


def write(module: nn.Module, samples: Tensor, target: Path, int8: bool) -> None:
    """Write a module as `target` (.py) and a .safetensors file beside it; torch's layers keep their classes."""
    assert not int8, "no quantizer of torch's own"
    made = program(module, samples[:2])
    graph, layers, tensors = fx.Graph(), dict[str, str](), dict[str, Tensor]()
    found = pytree.tree_leaves(graph.graph_copy(made.graph, {}))
    graph.output(found[0] if len(found) == 1 else tuple(found))
    for node in list(graph.nodes):
        name = _layer_of(node, module)
        if name is not None:
            flat = _flat(name)
            layers[flat] = f"nn.{module.get_submodule(name)!r}"
            tensors |= {f"{flat}.{key}": value for key, value in module.get_submodule(name).state_dict().items()}
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.create_node("call_module", flat, (node.args[0],)))
            graph.erase_node(node)
        elif node.op == "call_function":
            node.target = _spoken(node.target)
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op in ("get_attr", "call_function"):
            graph.erase_node(node)
    for node in graph.nodes:
        if node.op == "get_attr" and node.target != "training":
            flat, value = _flat(str(node.target)), _tensor(made, str(node.target))
            kind = "nn.Parameter({})" if isinstance(value, nn.Parameter) else "nn.Buffer({})"
            layers[flat] = kind.format(f"torch.empty({tuple(value.shape)}, dtype={value.dtype})")
            tensors[flat], node.target = value.detach(), flat
    code = graph.python_code("self")
    source = re.sub(
        r";  \w+( = \w+)* = None.*$", "", code.src[code.src.index("def forward") :].rstrip(), flags=re.MULTILINE
    )
    body = source.splitlines()
    text = _TEXT.format(
        imports="\n".join(
            _imports({name: value for name, value in code.globals.items() if re.search(rf"\b{name}\b", source)})
        ),
        shape=", ".join(map(str, samples.shape[1:])),
        layers="\n        ".join(f"self.{name} = {made}" for name, made in layers.items()),
        forward="\n".join(f"    {line}".rstrip() for line in body) + "\n",
    )
    target.write_text(text, encoding="utf-8")
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, target.with_suffix(".safetensors"))


def _layer_of(node: fx.Node, module: nn.Module) -> str | None:
    """The name of torch's own layer that a node is all the work of."""
    if node.op != "call_function" or operator_of(node).kind not in ("convolution", "batch norm", "product"):
        return None
    weights = [each for each in node.all_input_nodes if is_weight(each) and str(each.target) != "training"]
    owners = {str(each.target).rpartition(".")[0] for each in weights}
    if len(owners) != 1 or not (name := owners.pop()):
        return None
    layer = module.get_submodule(name)
    plain = type(layer) in _LAYERS and getattr(layer, "padding_mode", "zeros") == "zeros"
    held = {str(each.target).rpartition(".")[2] for each in weights}
    own = {key for key, _ in (*layer.named_parameters(), *layer.named_buffers())} - {"num_batches_tracked"}
    return name if plain and held == own else None


def _flat(name: str) -> str:
    """A name without dots, which Python takes."""
    flat = name.replace(".", "_")
    return flat if flat.isidentifier() else f"layer_{flat}"


def _spoken(function: Any) -> Any:
    """torch's public function in place of the operator where one is bound to it."""
    if isinstance(function, torch._ops.OpOverload) and function.namespace == "aten":
        public = getattr(torch, function._schema.name.removeprefix("aten::"), None)
        return public if type(public) is type(torch.relu) else function
    return function


def _imports(used: dict[str, Any]) -> list[str]:
    lines = {"import torch", "from torch import nn"}
    for name, value in used.items():
        if name in ("inf", "nan"):
            lines.add(f"from math import {name}")
        elif isinstance(value, ModuleType):
            lines.add(f"import {value.__name__}" + ("" if value.__name__ == name else f" as {name}"))
        else:
            lines.add(f"from {value.__module__} import {value.__name__} as {name}")
    return sorted(lines)


def _tensor(root: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    value: Tensor = getattr(root.get_submodule(owner), leaf)
    return value


def export_program(
    module: nn.Module,
    example: Tensor,
    path: str | os.PathLike[str],
    *,
    card: Card | None = None,
    settings: dict[str, Any] | None = None,
    check_inputs: Tensor | None = None,
) -> OnnxCheck:
    """Write the module in evaluation mode as a program of any batch size, checked after opening it again.

    Args:
        example: an image (1, channels, height, width).
        card: what the file says of the model: classes, normalisation, history.
        settings: plain data of the caller's, kept in the file.
        check_inputs: real images on which the opened program is compared; random ones where left out.

    Raises:
        ModelError: the model cannot be written as one graph.
        CompressorError: the opened program computes something else. Nothing is left under `path` then, except what was
            there before.
        FileError: the file cannot be written.
    """

    if not isinstance(example, Tensor):
        raise ModelError("torch's program is written for models of one input: export this one with `out` FILE.onnx")

    def write(reference: nn.Module, whole: Tensor, file: Path) -> None:
        _write(reference, images(whole, 2), file, _about(card or Card(), tuple(whole.shape[1:]), settings or {}))

    return write_checked(module, example, path, write, _compared, check_inputs)


def _about(card: Card, shape: tuple[int, ...], settings: dict[str, Any]) -> dict[str, Any]:
    preparation = None if card.preparation is None else asdict(card.preparation)
    known = {"classes": card.classes, "preparation": preparation, "history": card.history}
    return {"format": "compressor program", "version": 1, "input_shape": shape, **known, "settings": settings}


def _write(reference: nn.Module, example: Tensor, file: Path, about: dict[str, Any]) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's about torch's own internals
            program = with_free_batch(reference, example)
            torch.export.save(program, file, extra_files={EXTRA: json.dumps(about)})
    except OSError as error:
        raise FileError(f"{file.name} cannot be written ({error.strerror})") from error
    except Exception as error:  # the exporter and the user's code fail in many ways
        raise ModelError(f"torch cannot write this model as a program ({first_line(error)})") from error


def _opened(file: Path) -> list[nn.Module]:
    """The program as plain torch opens it, and as compressor does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = torch.export.load(file).module()
    return [plain, open_model(file, trust=True).module]


def _compared(file: Path, batch: Tensor, expected: list[Array]) -> tuple[float, float]:
    found = [largest_difference(expected, torch_outputs(opened, batch)) for opened in _opened(file)]
    return max(absolute for absolute, _ in found), max(relative for _, relative in found)
