"""Packages made ready for this machine: the same outputs and work, names that load, weights that sessions share."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from compressor.errors import CompressorError, FileError
from compressor.exporting import tune as tuning
from compressor.exporting.graphs import PackageSettings
from compressor.exporting.onnx_profile import profile_onnx
from compressor.exporting.package import export_package
from compressor.exporting.running import executed
from compressor.exporting.runtime import OnnxModel, open_session
from compressor.exporting.tune import tune_package, uniquified
from compressor.exporting.verify import verify_package
from compressor.exporting.weights import graphs_in
from compressor.report.manifest import Manifest, fed
from compressor.report.progress import listening
from tests.exits.nets import detachable, images
from tests.exporting.nets import trained

QUICK = PackageSettings(latency=False)
_STATISTICS = Path("/proc/self/smaps_rollup")


class Wide(nn.Sequential):
    """Convolutions that ONNX Runtime re-orders in every branch."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 5),
        )  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune") / "net"
    torch.manual_seed(0)
    export_package(trained(detachable(Wide(), "stats")), images()[:1], folder, settings=QUICK)
    return folder


@pytest.fixture(scope="module")
def made(exported: Path) -> tuple[Path, Manifest]:
    folder = exported.parent / "tuned"
    shutil.copytree(exported, folder)
    return folder, tune_package(folder)


def test_tuned_files_lie_beside_the_portable_ones(made: tuple[Path, Manifest], exported: Path) -> None:
    folder, manifest = made
    names = {entry.name for entry in folder.iterdir()}
    assert names == {entry.name for entry in exported.iterdir()} | {"model.cpu.onnx", "weights.cpu.bin"}
    assert (folder / "model.onnx").read_bytes() == (exported / "model.onnx").read_bytes()
    assert verify_package(folder) == manifest
    assert len(manifest.tuned["latency_ms"]) == len(manifest.tuned["portable_ms"]) == len(manifest.exits)
    assert (folder / "model.cpu.onnx").stat().st_size < 40_000


def test_every_exit_gives_the_same_at_the_same_work(made: tuple[Path, Manifest]) -> None:
    folder, manifest = made
    x = images(count=3).numpy()
    for each in manifest.exits:
        before, after = (
            OnnxModel(folder / name, feeds=fed(each.feeds))(x) for name in ("model.onnx", "model.cpu.onnx")
        )
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
        ran = executed(folder / "model.cpu.onnx", {"input": x[:1], **fed(each.feeds)})
        assert sum(count for name, count in ran.items() if "Conv" in name) == each.convolutions


def test_weights_are_already_in_the_processors_order(made: tuple[Path, Manifest]) -> None:
    """Opened as they are, the convolutions are the blocked ones, in the branches too, and read the file."""
    model = onnx.load(made[0] / "model.cpu.onnx", load_external_data=False)
    blocked = [node.domain for graph in graphs_in(model.graph) for node in graph.node if node.op_type == "Conv"]
    assert len(blocked) == 5 and set(blocked) == {"com.microsoft.nchwc"}
    places = [
        tuple(entry.value for entry in tensor.external_data)
        for graph in graphs_in(model.graph)
        for tensor in graph.initializer
    ]
    stored = [place for place in places if place]
    assert len(stored) == len(set(stored)) >= 5 and {place[0] for place in stored} == {"weights.cpu.bin"}


def test_tuning_again_and_after_damage_to_the_tuned_files(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "net")
    tune_package(tmp_path / "net", latency=False)
    (tmp_path / "net" / "weights.cpu.bin").write_bytes(b"")
    with pytest.raises(FileError, match="weights.cpu.bin has 0 bytes"):
        verify_package(tmp_path / "net")
    told: list[tuple[str, int, int]] = []
    with listening(lambda *event: told.append(event)):
        tune_package(tmp_path / "net", latency=False)
    assert told == [("steps of tuning", done, 4) for done in range(5)]
    verify_package(tmp_path / "net")


def test_a_damaged_package_is_not_tuned(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "net")
    (tmp_path / "net" / "weights.bin").write_bytes(b"")
    with pytest.raises(FileError, match="weights.bin has"):
        tune_package(tmp_path / "net", latency=False)


def test_a_tuned_graph_that_gives_something_else_changes_nothing(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(exported, tmp_path / "net")
    before = {entry.name: entry.read_bytes() for entry in (tmp_path / "net").iterdir()}
    monkeypatch.setattr(tuning, "largest_difference", lambda *outputs: (1.0, 1.0))
    with pytest.raises(CompressorError, match="differ by 1.0"):
        tune_package(tmp_path / "net", latency=False)
    assert {entry.name: entry.read_bytes() for entry in (tmp_path / "net").iterdir()} == before


@pytest.mark.parametrize("here", [True, False], ids=["this machine", "another machine"])
def test_the_script_takes_tuned_files_only_where_they_fit(
    made: tuple[Path, Manifest], here: bool, tmp_path: Path
) -> None:
    shutil.copytree(made[0], tmp_path / "net")
    path = tmp_path / "net" / "manifest.json"
    held = json.loads(path.read_text())
    if not here:
        path.write_text(json.dumps({**held, "tuned": {**held["tuned"], "machine": "abacus"}}))
    (tmp_path / "net" / ("model.onnx" if here else "model.cpu.onnx")).unlink()
    np.save(tmp_path / "image.npy", np.zeros((16, 16, 3), np.uint8))
    ran = subprocess.run(
        [sys.executable, tmp_path / "net" / "run.py", tmp_path / "image.npy", "1"], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) == 5


def test_names_that_two_branches_share_become_unique() -> None:
    def branch(name: str) -> onnx.GraphProto:
        nodes = [
            helper.make_node("Neg" if name == "then" else "Abs", ["x"], ["inner"]),
            helper.make_node("Exp", ["inner"], ["y"]),
        ]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])

    node = helper.make_node("If", ["flag"], ["y"], then_branch=branch("then"), else_branch=branch("else"))
    inputs = [helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
              helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])]  # fmt: skip
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])]
    graph = helper.make_graph([node], "main", inputs, outputs)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model = ir.to_proto(uniquified(ir.from_proto(made)))
    onnx.checker.check_model(model, full_check=True)
    outer, *branches = ({value for node in each.node for value in node.output} for each in graphs_in(model.graph))
    assert not any(outer & each for each in branches) and [entry.name for entry in model.graph.output] == ["y"]


_MEASURE = """
import gc, sys
import numpy as np, onnxruntime
def pss():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))
folder, level, names = sys.argv[1], sys.argv[2], sys.argv[3:]
options = onnxruntime.SessionOptions()
options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
options.intra_op_num_threads = 1
options.add_session_config_entry("optimization.disable_specified_optimizers", "ConvMulFusion;ConvAddFusion")
x = np.zeros((1, 3, 16, 16), np.float32)
def opened(name):
    session = onnxruntime.InferenceSession(f"{folder}/{name}", options, providers=["CPUExecutionProvider"])
    others = {each.name: np.zeros(each.shape, np.int64) for each in session.get_inputs() if each.name != "input"}
    session.run(None, {"input": x, **others})
    return session
before = pss()
sessions = [opened(name) for name in names]
gc.collect()
print(pss() - before)
"""


def added_memory(folder: Path, level: str, *names: str) -> float:
    """Proportional set size in MiB that sessions on these files add to a process of their own."""
    command = [sys.executable, "-c", _MEASURE, str(folder), level, *names]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


class Heavy(nn.Sequential):
    """9 MiB of weights, nearly all in the layers that every sub-model keeps."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 512, 3, padding=1), nn.BatchNorm2d(512), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(512, 512, 3, padding=1), nn.BatchNorm2d(512), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 5),
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not _STATISTICS.exists(), reason="the system does not tell the memory that processes share")
def test_sessions_share_the_weights_where_the_manifest_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    model = trained(detachable(Heavy(), "stats"))
    settings = PackageSettings(latency=False, separate=True)
    manifest = export_package(model, images()[:1], folder, settings=settings)
    tune_package(folder, latency=False)
    flat = [str(each.file) for each in manifest.exits]
    size = (folder / "weights.bin").stat().st_size / 2**20
    copied = added_memory(folder, manifest.session["fastest"]["graph_optimization_level"], *flat)
    shared = added_memory(folder, manifest.session["least memory"]["graph_optimization_level"], *flat)
    tuned = added_memory(folder, manifest.session["tuned"]["graph_optimization_level"], *["model.cpu.onnx"] * 3)
    assert len(flat) == 3 and size > 9
    assert copied > 2.5 * size, "a copy in every session"
    assert max(shared, tuned) < size + 3 * 2.5, "one for all, and some room for each of three sessions"


def test_a_tuned_session_does_not_need_to_be_told(made: tuple[Path, Manifest]) -> None:
    session = open_session(made[0] / "model.cpu.onnx")
    assert int(session.get_session_options().graph_optimization_level) == 0


def test_a_tuned_graph_costs_what_the_portable_one_does(made: tuple[Path, Manifest]) -> None:
    both = [profile_onnx(made[0] / name) for name in ("model.onnx", "model.cpu.onnx")]
    assert both[0].macs == both[1].macs == made[1].exits[0].macs and not both[1].uncounted
