"""Detachable networks in one graph and in flat ones: every model's outputs, work and weights."""

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from compressor.exits.detachable import Detachable
from compressor.exits.nested import Nested
from compressor.exporting.graphs import PackageSettings
from compressor.exporting.package import export_package
from compressor.exporting.proof import Evidence
from compressor.exporting.running import executed
from compressor.exporting.runtime import OnnxModel, open_session
from compressor.exporting.weights import graphs_in
from compressor.graph import capture
from compressor.report.manifest import Manifest
from compressor.surgery import operate_
from tests.equivalence import half_plan
from tests.exits.nets import CONVOLUTIONAL, FLAT, SHAPE, Block, detachable, images, nested
from tests.exporting.nets import trained

QUICK = PackageSettings(latency=False)


class Wide(nn.Sequential):
    """Layers so wide that their weights are worth a place in the weights file."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(24, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
            nn.Flatten(), nn.Linear(128, 5),
        )  # fmt: skip


def deep() -> nn.Module:
    """A stem with a batch norm, three equal blocks, a head."""
    blocks = (Block(4, 4, 1) for _ in range(3))
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest, Detachable]:
    folder = tmp_path_factory.mktemp("detached") / "net"
    torch.manual_seed(0)
    model = trained(detachable(Wide(), "stats"))
    manifest = export_package(model, images()[:1], folder, settings=PackageSettings(latency=False, separate=True))
    return folder, manifest, model


def compare(folder: Path, model: Detachable | Nested, x: Tensor) -> None:
    for exit in range(model.exits + 1):
        with torch.no_grad():
            expected = model(x, exit=exit).numpy()
        got = OnnxModel(folder / "model.onnx", feeds={"start": np.asarray(exit)})(x.numpy())
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_start_chooses_the_model_and_the_manifest_says_the_base(made: tuple[Path, Manifest, Detachable]) -> None:
    folder, manifest, model = made
    x = images(count=3)
    compare(folder, model, x)
    with torch.no_grad():
        np.testing.assert_allclose(OnnxModel(folder / "model.onnx")(x.numpy()), model(x, exit=0), rtol=1e-4, atol=1e-5)
    assert manifest.kind == "detachable" and [each.name for each in manifest.exits] == ["base", *model.at]
    assert manifest.default == {"start": 0}
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    assert [entry.name for entry in graph.input] == ["input", "start"]
    assert "start" not in {tensor.name for tensor in graph.initializer}, "some runtimes make a constant of it"


def test_a_start_beyond_the_models_is_the_nearest_one(made: tuple[Path, Manifest, Detachable]) -> None:
    folder, _, model = made
    x = images(count=2)
    for given, meant in ((-3, 0), (99, model.exits)):
        with torch.no_grad():
            expected = model(x, exit=meant)
        got = OnnxModel(folder / "model.onnx", feeds={"start": np.asarray(given)})(x.numpy())
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_flat_graphs_read_the_same_weights(made: tuple[Path, Manifest, Detachable]) -> None:
    folder, manifest, model = made
    x = images(count=2)
    for each in manifest.exits:
        with torch.no_grad():
            expected = model(x, exit=each.number)
        np.testing.assert_allclose(OnnxModel(folder / each.file)(x.numpy()), expected, rtol=1e-4, atol=1e-5)
        flat = onnx.load(folder / each.file, load_external_data=False)
        assert "If" not in {node.op_type for node in flat.graph.node}
        files = {entry.value for t in flat.graph.initializer for entry in t.external_data if entry.key == "location"}
        assert files == {"weights.bin"}


def test_every_layer_stands_in_the_graph_and_on_the_disk_once(made: tuple[Path, Manifest, Detachable]) -> None:
    folder, _, model = made
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    operators = Counter(node.op_type for each in graphs_in(graph) for node in each.node)
    assert operators["Conv"] == 3 + model.exits and operators["If"] == model.exits
    places = [
        tuple(entry.value for entry in tensor.external_data) for each in graphs_in(graph) for tensor in each.initializer
    ]
    places = [place for place in places if place]
    assert places and len(places) == len(set(places))
    assert (folder / "weights.bin").stat().st_size < 4 * sum(p.numel() for p in model.parameters()) + 4096 * len(places)


def test_the_profiler_sees_only_the_chosen_models_convolutions(made: tuple[Path, Manifest, Detachable]) -> None:
    folder, manifest, _ = made
    for each in manifest.exits:
        ran = executed(folder / "model.onnx", {"input": images(count=1).numpy(), "start": np.asarray(each.number)})
        assert sum(count for name, count in ran.items() if "Conv" in name) == each.convolutions
    assert [each.convolutions for each in manifest.exits] == [3, 3, 2]


def test_weights_stand_in_the_branch_that_uses_them(made: tuple[Path, Manifest, Detachable]) -> None:
    """Only there does the layout pass see them: the graph that runs has blocked convolutions in every branch."""
    folder, _, _ = made
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for graph in graphs_in(model.graph):
        names = {tensor.name for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Conv":
                assert set(node.input[1:]) <= names


def test_the_outputs_are_those_of_weights_in_the_outer_graph(
    made: tuple[Path, Manifest, Detachable], tmp_path: Path
) -> None:
    folder, manifest, _ = made
    model = onnx.load(folder / "model.onnx")
    for graph in list(graphs_in(model.graph))[1:]:
        model.graph.initializer.extend(copy.deepcopy(tensor) for tensor in graph.initializer)
        del graph.initializer[:]
    onnx.save(model, tmp_path / "outer.onnx")
    x = images(count=2).numpy()
    for each in manifest.exits:
        feeds = {"input": x, "start": np.asarray(each.number)}
        inner, outer = (
            open_session(path).run(None, feeds)[0] for path in (folder / "model.onnx", tmp_path / "outer.onnx")
        )
        np.testing.assert_allclose(inner, outer, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: detachable(CONVOLUTIONAL["grouped"](), "shared"), marks=pytest.mark.slow),
        pytest.param(lambda: detachable(CONVOLUTIONAL["residual"](), "switchable"), marks=pytest.mark.slow),
        pytest.param(lambda: detachable(CONVOLUTIONAL["bare"](), "stats"), marks=pytest.mark.slow),
        pytest.param(lambda: nested(), marks=pytest.mark.slow),
        pytest.param(lambda: nested(deep(), SHAPE, at=("2",), exits=2, bn="stats"), marks=pytest.mark.slow),
    ],
    ids=["folded norms", "own scales", "functions", "perceptron", "nested blocks"],
)
def test_every_kind_of_sub_model_exports(build, tmp_path: Path) -> None:
    model = trained(build())
    shape = FLAT if "Linear" in repr(model.base) and "Conv" not in repr(model.base) else SHAPE
    x = images(shape, count=3)
    evidence = Evidence(images(shape, count=6))
    manifest = export_package(model, x[:1], tmp_path / "net", evidence=evidence, settings=QUICK)
    compare(tmp_path / "net", model, x)
    macs = [each.macs for each in manifest.exits]
    assert macs == sorted(macs, reverse=True) and len(set(macs)) == len(macs)


@pytest.mark.slow
def test_a_shared_norm_is_folded_and_an_own_one_is_a_row(tmp_path: Path) -> None:
    counts = []
    for norms in ("shared", "stats"):
        model = trained(detachable(CONVOLUTIONAL["plain"](), norms))
        export_package(model, images()[:1], tmp_path / norms, settings=QUICK)
        graph = onnx.load(tmp_path / norms / "model.onnx").graph
        counts.append(Counter(node.op_type for each in graphs_in(graph) for node in each.node))
    assert counts[0]["Gather"] == counts[0]["BatchNormalization"] == 0
    assert counts[1]["Gather"] == 4, "two norms that two or three models share, a scale and a shift each"


@pytest.mark.slow
def test_a_pruned_one_exports(tmp_path: Path) -> None:
    model = trained(detachable(CONVOLUTIONAL["plain"](), "stats"))
    channels = capture(model, images())
    operate_(model, half_plan(channels), channels)
    export_package(model, images()[:1], tmp_path / "net", settings=QUICK)
    compare(tmp_path / "net", model.eval(), images(count=3))
