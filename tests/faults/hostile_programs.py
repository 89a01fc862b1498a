"""Exported programs (.pt2) whose JSON was tampered with: torch's own reader would run, build or read what they name."""

import functools
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.faults.assembler import program
from tests.faults.hostile_pickles import Make, source, system

Change = Callable[[str, bytes, Path], bytes | None]  # of one record: its name, content, the canary; None drops it


@functools.cache
def good() -> bytes:
    """What torch.export.save writes of two layers."""
    file = io.BytesIO()
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).eval()
    torch.export.save(torch.export.export(model, (torch.zeros(2, 1, 8, 8),), strict=False), file)
    return file.getvalue()


def _changed(change: Change) -> Make:
    def make(path: Path, canary: Path) -> None:
        with zipfile.ZipFile(io.BytesIO(good())) as source_file, zipfile.ZipFile(path, "w") as copy:
            for name in source_file.namelist():
                data = change(name.split("/", 1)[-1], source_file.read(name), canary)
                if data is not None:
                    copy.writestr(name, data)

    return make


def _graph(change: Callable[[dict[str, Any], Path], None]) -> Make:
    """The JSON of the graph with a change."""

    def changed(name: str, data: bytes, canary: Path) -> bytes:
        if not name.startswith("models/"):
            return data
        held = json.loads(data)
        change(held["graph_module"]["graph"], canary)
        return json.dumps(held).encode()

    return _changed(changed)


def _calls(target: str) -> Make:
    return _graph(lambda graph, canary: graph["nodes"][0].update(target=target))


def _renamed(name: str, data: bytes, canary: Path) -> bytes:
    """The input's name is Python, which a reader that writes code from the graph would run."""
    if not name.startswith("models/"):
        return data
    (old,) = (each["as_tensor"]["name"] for each in json.loads(data)["graph_module"]["graph"]["inputs"][-1:])
    return json.dumps(json.loads(data)).replace(json.dumps(old), json.dumps(f"x={source(canary)}")).encode()


def _weights(pickled: bool = False, **changes: Any) -> Make:
    """The JSON of the weights with a change; or said to be a pickle, which then is one that fires."""

    def changed(name: str, data: bytes, canary: Path) -> bytes:
        if pickled and name.startswith("data/weights/") and not name.endswith(".json"):
            return program(system(canary))
        if not name.endswith("weights_config.json"):
            return data
        held = json.loads(data)
        for entry in held["config"].values():
            entry.update({key: value for key, value in changes.items() if key in entry})
            entry["tensor_meta"].update({key: value for key, value in changes.items() if key in entry["tensor_meta"]})
        return json.dumps(held).encode()

    return _changed(changed)


def _model(content: bytes | None) -> Make:
    return _changed(lambda name, data, canary: content if name.startswith("models/") else data)


PROGRAMS: dict[str, Make] = {
    "calls_os_system": _calls("torch.os.system"),
    "calls_from_file": _calls("torch.ops.aten.from_file.default"),
    "calls_methodcaller": _calls("_operator.methodcaller"),
    "calls_what_is_not": _calls("torch.ops.aten.no_such.default"),
    "name_is_code": _changed(_renamed),
    "no_nodes": _graph(lambda graph, canary: graph["nodes"].clear()),
    "no_values": _graph(lambda graph, canary: graph.pop("tensor_values") and None),
    "weights_are_a_pickle": _weights(pickled=True, use_pickle=True),
    "weights_elsewhere": _weights(path_name="../../../../etc/passwd"),
    "weights_of_4_TB": _weights(sizes=[{"as_int": 10**12}], strides=[{"as_int": 0}]),
    "stride_beyond": _weights(sizes=[{"as_int": 4}], strides=[{"as_int": 10**9}]),
    "offset_negative": _weights(storage_offset={"as_int": -5}),
    "type_unknown": _weights(dtype=99),
    "json_cut_off": _model(b"{"),
    "json_deep": _model(b"[" * 10**6),
    "json_missing": _model(None),
}
