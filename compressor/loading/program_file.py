"""Read the archive that torch.export.save writes, its graph and its weights, without unpickling and evaluating."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor.errors import FileError
from compressor.loading.archive import check_archive

EXTRA = "compressor.json"  # our own file in the archive: classes, normalisation, history

# torch._export.serde.schema.ScalarType, MemoryFormat and Layout.
_DTYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64", 9: "complex32",
    10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16", 34: "uint32", 36: "uint64",
}  # fmt: skip
_FORMATS = {1: "contiguous_format", 2: "channels_last", 3: "channels_last_3d", 4: "preserve_format"}
_STRIDED = 7

# A weight may show more values than are stored (an expanded one), up to so many.
_MOST_REPEATED = 1 << 24


@dataclass(frozen=True, eq=False)
class ReadProgram:
    """What an archive holds."""

    recipe: dict[str, Any]  # see loading.programs
    state: dict[str, Tensor]
    input_shape: tuple[int, ...] | None  # of the first input, without the batch; None where a size is free
    extra: dict[str, Any]  # what compressor wrote about the model; unchecked


def read_program(path: Path, most_gib: float) -> ReadProgram:
    """Read a .pt2 file.

    Raises FileError where it is damaged, too large, was written by an older torch, or holds more than operators of
    ATen on one set of weights.
    """
    try:
        with path.open("rb") as file:
            check_archive(file, path, most_gib)
            with zipfile.ZipFile(file) as archive:
                return _read(_Records(archive), path)
    except FileError:
        raise
    except Exception as error:  # damaged JSON of any kind, in any place
        first = (str(error).strip() or "no reason given").splitlines()[0]
        raise FileError(
            f"{path} is damaged or no program of a known form ({type(error).__name__}: {first[:200]}): export it again"
        ) from error


class _Records:
    """The archive's records by name, without the folder that all of them lie in."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._names = {name.split("/", 1)[-1]: name for name in archive.namelist()}

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def names(self, start: str) -> list[str]:
        return [name for name in self._names if name.startswith(start)]

    def bytes(self, name: str) -> bytes:
        return self._archive.read(self._names[name])

    def json(self, name: str) -> Any:
        return json.loads(self.bytes(name))


def _read(records: _Records, path: Path) -> ReadProgram:
    models = records.names("models/")
    if "serialized_exported_program.json" in records:
        raise FileError(f"{path} was written by an older torch: load it there and save it with torch 2.8 or newer")
    if len(models) != 1 or records.names("data/aotinductor"):
        raise FileError(f"{path} holds {len(models)} programs or a compiled one: save one program by itself")
    name = models[0].removeprefix("models/").removesuffix(".json")
    held = records.json(models[0])["graph_module"]
    payloads = {
        **records.json(f"data/weights/{name}_weights_config.json")["config"],
        **records.json(f"data/constants/{name}_constants_config.json")["config"],
    }
    translation = _Translation(held["graph"], path)
    recipe, kinds = translation.recipe(held["signature"])
    state = _state(records, payloads, kinds, path)
    firsts: dict[int, str] = {}
    for weight, kind in kinds.items():
        tensor = state[weight]
        first = firsts.setdefault(id(tensor), weight)
        dtype = str(tensor.dtype).removeprefix("torch.")
        recipe["weights"][weight] = [kind, f"torch.{dtype}", list(tensor.shape), None if first == weight else first]
    extra = records.json(f"extra/{EXTRA}") if f"extra/{EXTRA}" in records else {}
    return ReadProgram(recipe, state, translation.input_shape, extra if isinstance(extra, dict) else {})


def _state(records: _Records, payloads: Mapping[str, Any], kinds: Mapping[str, str], path: Path) -> dict[str, Tensor]:
    """The tensors by their names; two names of one tensor give it twice."""
    found: dict[str, Tensor] = {}
    read: dict[str, Tensor] = {}
    for weight in kinds:
        payload = payloads[weight]
        file = str(payload["path_name"])
        if payload["use_pickle"] or not file.startswith(("weight_", "tensor_")):
            raise FileError(f"{path} holds {weight!r} as a pickle, which may run code: export the program without it")
        meta = payload["tensor_meta"]
        place = json.dumps([file, meta["sizes"], meta["strides"], meta["storage_offset"]])
        if place not in read:
            folder = "weights" if file.startswith("weight_") else "constants"
            read[place] = _tensor(records.bytes(f"data/{folder}/{file}"), meta)
        found[weight] = read[place]
    return found


def _tensor(data: bytes, meta: Mapping[str, Any]) -> Tensor:
    if meta["layout"] != _STRIDED:
        raise ValueError("a weight is not dense")
    dtype = getattr(torch, _DTYPES[meta["dtype"]])
    sizes, strides = ([int(each["as_int"]) for each in meta[key]] for key in ("sizes", "strides"))
    flat = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
    offset = int(meta["storage_offset"]["as_int"])
    if any(size < 0 for size in (*sizes, *strides, offset)):
        raise ValueError("a weight has a negative size")
    if math.prod(sizes) > max(len(flat), _MOST_REPEATED):
        raise ValueError("a weight shows more values than are there")
    # as_strided checks that it stays within the storage.
    return flat.as_strided(sizes, strides, offset).contiguous()


class _Translation:
    """torch's JSON of a graph to a recipe's plain data."""

    def __init__(self, graph: Mapping[str, Any], path: Path) -> None:
        self._graph, self._path = graph, path
        self.input_shape: tuple[int, ...] | None = None

    def recipe(self, signature: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """The recipe without its weights, and the kind of each weight."""
        inputs: list[Any] = []
        uses: dict[str, str] = {}
        kinds: dict[str, str] = {}
        for spec in signature["input_specs"]:
            ((kind, about),) = spec.items()
            if kind == "user_input":
                name = about["arg"]["as_tensor"]["name"]
                inputs.append([name, *self._described(name)])
                if self.input_shape is None:
                    sizes = self._graph["tensor_values"][name]["sizes"][1:]
                    self.input_shape = (
                        tuple(size["as_int"] for size in sizes) if all("as_int" in s for s in sizes) else ()
                    )
                continue
            weight = str(about[_WEIGHTS[kind]])
            uses[about["arg"]["name"]] = weight
            kinds[weight] = "parameter" if kind == "parameter" else "buffer"
        outputs = []
        for spec in signature["output_specs"]:
            if set(spec) != {"user_output"}:
                raise FileError(
                    f"{self._path} is a program that changes its own buffers ({next(iter(spec))}): export the module "
                    "in evaluation mode, without decompositions"
                )
            outputs.append(spec["user_output"]["arg"]["as_tensor"]["name"])
        nodes = [self._node(node) for node in self._graph["nodes"]]
        self.input_shape = self.input_shape or None
        recipe = {"inputs": inputs, "uses": uses, "weights": {}, "nodes": nodes, "outputs": outputs}
        return recipe, kinds

    def _node(self, node: Mapping[str, Any]) -> list[Any]:
        arguments = [self._value(each["arg"]) for each in node["inputs"] if each.get("kind") != _KEYWORD]
        keywords = {each["name"]: self._value(each["arg"]) for each in node["inputs"] if each.get("kind") == _KEYWORD}
        outputs = [self._output(each) for each in node["outputs"]]
        if len(node["outputs"]) == 1 and "as_tensors" in node["outputs"][0]:
            names = (each["name"] for each in node["outputs"][0]["as_tensors"])
            outputs = [["part", name, *self._described(name)] for name in names]
        elif len(outputs) > 1:
            outputs = [["part", *each[1:]] for each in outputs]
        return [node["target"], arguments, keywords, _module(node.get("metadata", {})), outputs]

    def _output(self, output: Mapping[str, Any]) -> list[Any]:
        ((kind, about),) = output.items()
        if kind == "as_tensor":
            return ["one", about["name"], *self._described(about["name"])]
        if kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
            return ["one", about["as_name"], None, self._hint(kind, about["as_name"])]
        return ["part"]  # nothing, in a place where there may be a tensor

    def _hint(self, kind: str, name: str) -> int:
        """The example's value of a size."""
        held = self._graph[f"{kind.removeprefix('as_')}_values"][name]
        hint = (held.get("as_expr") or {}).get("hint") or {}
        return int(hint.get("as_int", held.get("as_int", 2)) or 0)

    def _described(self, name: str) -> tuple[str, list[int]]:
        """Type and example size of a tensor."""
        held = self._graph["tensor_values"][name]
        sizes = [_size(each) for each in held["sizes"]]
        return f"torch.{_DTYPES[held['dtype']]}", sizes

    def _value(self, argument: Mapping[str, Any]) -> Any:
        ((kind, held),) = argument.items()
        if kind not in _ARGUMENTS:
            raise FileError(
                f"{self._path} holds a graph inside its graph, or an object: only plain operators are opened"
            )
        return _ARGUMENTS[kind](held)


_KEYWORD = 2
_WEIGHTS = {
    "parameter": "parameter_name",
    "buffer": "buffer_name",
    "tensor_constant": "tensor_constant_name",
}


def _size(held: Mapping[str, Any]) -> int:
    if "as_int" in held:
        return int(held["as_int"])
    return max(2, int(((held["as_expr"].get("hint") or {}).get("as_int")) or 2))


def _reference(held: Mapping[str, Any]) -> Any:
    return held["as_int"] if "as_int" in held else {"ref": held.get("name", held.get("as_name"))}


def _optional(held: Mapping[str, Any]) -> Any:
    return None if "as_none" in held else _reference(held["as_tensor"])


def _same(held: Any) -> Any:
    return held


_ARGUMENTS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(
        ("as_int", "as_float", "as_bool", "as_string", "as_ints", "as_floats", "as_bools", "as_strings"), _same
    ),
    "as_none": lambda held: None,
    "as_tensor": _reference,
    "as_tensors": lambda held: [_reference(each) for each in held],
    "as_sym_int": _reference,
    "as_sym_ints": lambda held: [_reference(each) for each in held],
    "as_sym_bool": lambda held: held["as_bool"] if "as_bool" in held else _reference(held),
    "as_sym_float": lambda held: held["as_float"] if "as_float" in held else _reference(held),
    "as_optional_tensor": _optional,
    "as_optional_tensors": lambda held: [_optional(each) for each in held],
    "as_scalar_type": lambda held: {"torch": f"torch.{_DTYPES[held]}"},
    "as_memory_format": lambda held: {"torch": f"torch.{_FORMATS[held]}"},
    "as_layout": lambda held: {"torch": "torch.strided"} if held == _STRIDED else None,
    "as_device": lambda held: {"device": "cpu"},
}


def _module(metadata: Mapping[str, Any]) -> str:
    """Dotted name of the innermost module of the user's network in which a node ran."""
    innermost = str(metadata.get("nn_module_stack", "")).rpartition(";")[2].split(",")
    return (
        innermost[1]
        if len(innermost) == 3 and all(part.isalnum() or "_" in part for part in innermost[1].split("."))
        else ""
    )
