"""Routed networks as graphs: who leaves where, with which scores, at what work, in batches of all mixtures."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from compressor.certify import share_at_most
from compressor.errors import CompressorError
from compressor.exporting import routed as module
from compressor.exporting.forms import AtDepth, forced, form_of
from compressor.exporting.graphs import PackageSettings
from compressor.exporting.package import export_package, watch_facts
from compressor.exporting.proof import Evidence
from compressor.exporting.routed import check_mixture, depth_times, mixtures
from compressor.exporting.running import executed
from compressor.exporting.runtime import OnnxModel, open_session
from compressor.exporting.watch import OVERHEAD
from compressor.exporting.weights import graphs_in
from compressor.report.card import Card
from compressor.report.manifest import Manifest
from compressor.routing.network import Routed
from tests.exporting.nets import trained
from tests.routing.nets import Residual, Three, images, routed

Made = tuple[Path, Manifest, Routed]
X = images(12)
CERTIFICATE = {"kept": True, "exit": None, "differed": 1, "images": 300, "confidence": 0.95, "words": "Loses"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("routed") / "net"
    torch.manual_seed(0)
    model = trained(routed(Residual))
    model.set_threshold_(mixtures(model, X)[1].tolist())
    evidence = Evidence(images(64), score=lambda run: float((run(X.numpy()).argmax(1) >= 0).mean()))
    settings = PackageSettings(latency=False, separate=True)
    card = Card(certificate=CERTIFICATE)
    return folder, export_package(model, X[:1], folder, card=card, evidence=evidence, settings=settings), model


def test_every_image_leaves_where_it_does_in_torch(made: Made) -> None:
    folder, _, model = made
    with torch.no_grad():
        scores, depths = model.route(X)
    assert len(set(depths.tolist())) > 1, "the images part"
    session, default = open_session(folder / "model.onnx"), model.thresholds.numpy()
    for chosen in (slice(None), slice(0, 1), slice(3, 5)):
        got = session.run(None, {"input": X[chosen].numpy(), "thresholds": default})
        np.testing.assert_array_equal(got[1], depths[chosen])
        np.testing.assert_allclose(got[0], scores[chosen], rtol=1e-4, atol=1e-5)


def test_thresholds_are_an_input_and_the_manifest_holds_the_calibrated_ones(made: Made) -> None:
    folder, manifest, model = made
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    assert [entry.name for entry in graph.input] == ["input", "thresholds"]
    assert "thresholds" not in {tensor.name for tensor in graph.initializer}, "some runtimes make a constant of it"
    np.testing.assert_allclose(manifest.default["thresholds"], model.thresholds)
    with torch.no_grad():
        np.testing.assert_allclose(OnnxModel(folder / "model.onnx")(X.numpy()), model.route(X)[0], rtol=1e-4, atol=1e-5)
    for depth in range(model.depths):
        feeds = {"input": X.numpy(), "thresholds": forced(model.depths, depth)}
        assert (open_session(folder / "model.onnx").run(None, feeds)[1] == depth).all()


def test_the_work_that_is_skipped_is_not_done(made: Made) -> None:
    folder, manifest, _ = made
    found = []
    for each in manifest.exits:
        feeds = {"thresholds": np.asarray(each.feeds["thresholds"], np.float32)}
        ran = executed(folder / "model.onnx", {"input": X[:1].numpy(), **feeds})
        found.append(sum(count for name, count in ran.items() if "Conv" in name))
    assert found == [each.convolutions for each in manifest.exits] == [1, 3, 6, 8]
    assert [each.macs for each in manifest.exits] == sorted(each.macs for each in manifest.exits)


def test_flat_graphs_are_the_depths_without_a_router(made: Made) -> None:
    folder, manifest, model = made
    for each in manifest.exits:
        with torch.no_grad():
            maps = X
            for depth in range(each.number + 1):
                maps = model.segment(depth, maps)
            expected = model.leave(each.number, maps)
        np.testing.assert_allclose(OnnxModel(folder / each.file)(X.numpy()), expected, rtol=1e-4, atol=1e-5)
        operators = {node.op_type for node in onnx.load(folder / each.file).graph.node}
        assert not operators & {"If", "Sigmoid", "ScatterND"}


def test_the_manifest_says_how_the_routed_whole_does(made: Made) -> None:
    _, manifest, model = made
    with torch.no_grad():
        depths = model.route(X)[1]
    shares = [float((depths == depth).float().mean()) for depth in range(model.depths)]
    assert manifest.routing["left_at"] == pytest.approx(shares) and manifest.routing["top1"] == 1
    expected = sum(share * each.macs for share, each in zip(shares, manifest.exits))
    assert manifest.routing["mean_macs"] == pytest.approx(expected, abs=1)


def test_branches_hold_their_own_weights(made: Made) -> None:
    folder, _, _ = made
    graphs = list(graphs_in(onnx.load(folder / "model.onnx").graph))
    assert sum(node.op_type == "Conv" for node in graphs[0].node) == 1
    for graph in graphs:
        names = {tensor.name for tensor in graph.initializer}
        assert all(set(node.input[1:]) <= names for node in graph.node if node.op_type == "Conv")


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [{"router": "image"}, {"router": "argmax", "heads": "own"}],
    ids=["image router", "argmax, own heads"],
)
def test_other_routers_export(layout: dict[str, str], tmp_path: Path) -> None:
    model = trained(routed(Three, **layout))
    with torch.no_grad():
        sure = model.router.suffices(X).sort(0).values
    model.set_threshold_(sure[5:7].mean(0).tolist())  # between two images, since rounding may turn one that is on it
    export_package(model, X[:1], tmp_path / "net", evidence=Evidence(X), settings=PackageSettings(latency=False))
    feeds = {"input": X.numpy(), "thresholds": model.thresholds.numpy()}
    got = open_session(tmp_path / "net" / "model.onnx").run(None, feeds)
    with torch.no_grad():
        scores, depths = model.route(X)
    np.testing.assert_array_equal(got[1], depths)
    np.testing.assert_allclose(got[0], scores, rtol=1e-4, atol=1e-5)


def test_thresholds_to_try_stay_while_others_are_set() -> None:
    """Of a buffer numpy has a view: images on a threshold were compared at others than those that were meant."""
    model = trained(routed(Three, router="image"))
    tried = mixtures(model, X)[0]
    before = tried.copy()
    model.set_threshold_([0.9, 0.9])
    np.testing.assert_array_equal(tried, before)


def test_a_graph_that_routes_otherwise_is_found(made: Made) -> None:
    folder, _, model = made

    def contrary(feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        scores, depths = open_session(folder / "model.onnx").run(None, feeds)
        return [scores, depths[::-1].copy() + (Counter(depths.tolist())[0] == len(depths))]

    with pytest.raises(CompressorError, match="other depths"):
        check_mixture(model, contrary, X)


def test_the_device_watches_the_certificate_with_numpy_and_the_runtime_alone(made: Made, tmp_path: Path) -> None:
    folder, manifest, _ = made
    facts, exits, routing, choice = manifest.watch, manifest.exits, manifest.routing, manifest.choice
    assert facts is not None and routing is not None and choice is not None and manifest.certificate == CERTIFICATE
    assert facts["deepest"] == exits[-1].feeds and facts["feeds"] == {"thresholds": choice["default"]}
    assert facts["share"] * exits[-1].macs / routing["mean_macs"] == pytest.approx(OVERHEAD) and OVERHEAD <= 0.01
    assert facts["limit"] == share_at_most(1, 300, 0.975)
    channels, height, width = manifest.input["shape"]
    draw = np.random.default_rng(0)
    for number in range(6):
        np.save(tmp_path / f"{number}.npy", draw.integers(0, 256, (height, width, channels), np.uint8))
    code = (
        "import sys\nfor name in ('torch', 'scipy', 'PIL', 'compressor'): sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(folder)!r}); sys.argv = ['run.py', {str(tmp_path)!r}]\n"
        "import run; run.watched()._skip = 0; run.main()\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0 and len(ran.stdout.splitlines()) == 6, ran.stderr
    assert ran.stdout.splitlines()[-1].endswith("  5.npy")
    assert "nothing speaks against the certificate: the deepest exit answered otherwise on" in ran.stderr
    assert " of 1 images drawn" in ran.stderr


@pytest.mark.parametrize("certificate", [None, {"kept": False}, {"differed": None}, {"differed": 300}])
def test_without_a_certificate_that_shows_there_is_nothing_to_watch(certificate: dict | None, made: Made) -> None:
    _, manifest, model = made
    given = None if certificate is None else {**CERTIFICATE, **certificate}
    assert watch_facts(form_of(model, X[:1]), manifest.exits, manifest.routing, given) is None


def test_each_depth_is_timed_in_the_whole_network(monkeypatch):
    torch.manual_seed(0)
    network = routed(Residual, leave_after=(1, 3)).eval()
    network.set_threshold_([0.3])
    x = torch.randn(2, 1, 8, 8)
    ran = []

    def latency(path):
        session = onnxruntime.InferenceSession(path)
        ran.append(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
        sends = {"NonZero", "ScatterND"} <= {node.op_type for node in onnx.load(path).graph.node}
        return {"median": 10.0 * len(ran) + sends}

    monkeypatch.setattr(module, "file_latency", latency)
    assert depth_times(network, x) == (11.0, 21.0)
    with torch.no_grad():
        for depth, scores in enumerate(ran):
            wanted = AtDepth(network, depth, router=False)(x)[0]
            np.testing.assert_allclose(scores, wanted.numpy(), atol=1e-5)
    assert torch.allclose(network.thresholds, torch.tensor([0.3]))
