"""Packages for every runtime: the outputs of each exit, the work that is skipped, what a runtime lacks in one line.

Those that are not installed are skipped by name; `make runtimes` installs them apart and runs all.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressor.errors import CompressorError, FileError, ModelError, UsageError
from compressor.exporting import runtimes, to_executorch, to_ncnn
from compressor.exporting.graphs import PackageSettings
from compressor.exporting.package import export_package
from compressor.exporting.proof import Evidence
from compressor.exporting.run import Network
from compressor.exporting.runtimes import RUNTIMES
from compressor.exporting.verify import verify_package
from tests.exits.nets import detachable
from tests.exits.nets import images as pictures
from tests.exporting.nets import small_net, trained
from tests.routing.nets import Residual, images, routed

X = images(8)


def installed(name: str) -> pytest.param:
    missing = [each for each in RUNTIMES[name].packages if importlib.util.find_spec(each) is None]
    return pytest.param(name, marks=pytest.mark.skipif(bool(missing), reason=f"{name}: {', '.join(missing)} missing"))


def settings(name: str, **more: object) -> PackageSettings:
    return PackageSettings(latency=False, runtime=name, **more)


@pytest.mark.parametrize("name", [installed(name) for name in RUNTIMES])
def test_a_network_gives_torchs_outputs_on_every_runtime(name: str, tmp_path: Path) -> None:
    x = torch.randn(5, 3, 8, 8)
    manifest = export_package(small_net(), x[:1], tmp_path / "net", evidence=Evidence(x), settings=settings(name))
    assert manifest.exits[0].max_rel < 1e-4 and manifest.exits[0].agreement == 1
    with torch.no_grad():
        np.testing.assert_allclose(
            Network(tmp_path / "net")({"input": x.numpy()})[0], small_net()(x), rtol=1e-4, atol=1e-5
        )
    assert verify_package(tmp_path / "net") == manifest


SIGNALLED = """
import signal, sys
from pathlib import Path
import numpy as np
from compressor.exporting.engines import openvino

signal.signal(signal.SIGINT, signal.default_int_handler)
x = {"input": np.zeros((1, 3, 8, 8), np.float32)}
for _ in range(2):
    networks = [openvino(Path(sys.argv[1]), 1) for _ in range(2)]
    for network in networks:
        network(x)
    del networks[0], networks, network  # the first goes before the second
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("name", [installed("openvino")])
def test_a_signal_after_openvino_is_not_a_crash(name: str, tmp_path: Path) -> None:
    """Each of its cores gives signal handlers a stack: of several, one was left that was no longer there."""
    export_package(small_net(), torch.randn(1, 3, 8, 8), tmp_path / "net", settings=settings(name))
    command = [sys.executable, "-c", SIGNALLED, str(tmp_path / "net" / "model.xml")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "interrupted\n"


@pytest.mark.parametrize("name", [installed(name) for name, each in RUNTIMES.items() if each.int8])
def test_a_quantized_network_agrees_with_torch(name: str, tmp_path: Path) -> None:
    x = torch.randn(64, 3, 8, 8)
    evidence = Evidence(x, x, lambda run: float((run(x.numpy()).argmax(1) >= 0).mean()))
    made = export_package(
        small_net(), x[:1], tmp_path / "net", evidence=evidence, settings=settings(name, int8="x86-old")
    )
    assert made.exits[0].agreement >= 0.95 and 1e-4 < made.exits[0].max_rel < 0.1
    assert (
        made.quantization is not None and (RUNTIMES[name].quantizer or "x86 without VNNI") in made.quantization["note"]
    )
    assert verify_package(tmp_path / "net") == made


@pytest.mark.parametrize("name", [installed("litert")])
def test_litert_does_not_round_the_scores_of_a_last_linear_layer(name: str, tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    x = torch.randn(8, 3, 8, 8)
    evidence = Evidence(x, x, lambda run: 1.0)
    export_package(small_net(), x[:1], tmp_path / "net", evidence=evidence, settings=settings(name, int8="x86-old"))
    operators = [each["op_name"] for each in Interpreter(str(tmp_path / "net" / "model.tflite"))._get_ops_details()]
    assert [each for each in operators if each != "DELEGATE"][-1] == "FULLY_CONNECTED", "nothing turns 8 bits to floats"


@pytest.mark.parametrize("name", [installed("executorch")])
def test_executorch_rounds_what_is_left_and_no_more(name: str) -> None:
    torch.manual_seed(0)
    first, second = (nn.Sequential(nn.Conv2d(channels, 16, 3), nn.ReLU6()) for channels in (3, 16))
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(16, 4))
    made = to_executorch._quantized(nn.Sequential(first, second, pooled).eval(), torch.randn(8, 3, 8, 8))
    image, whole = (next(node for node in made.graph.nodes if node.op == op) for op in ("placeholder", "output"))
    reads: dict[str, list[str]] = {}  # kind of layer -> what each of them reads
    read_by: dict[str, list[str]] = {}
    for node in made.graph.nodes:
        kind = getattr(node.target, "__name__", str(node.target)).split(".")[0]
        node.meta["kind"] = "image" if node is image else kind
        if node.all_input_nodes:
            reads.setdefault(kind, []).append(node.all_input_nodes[0].meta["kind"])
            read_by.setdefault(node.all_input_nodes[0].meta["kind"], []).append(kind)
    assert reads["conv2d"] == ["image", "dequantize_per_tensor"], "an image's convolution stays in float32"
    assert reads["hardtanh"] == ["conv2d"] * 2, "nothing is rounded that ReLU6 cuts off"
    assert read_by["hardtanh"] == ["quantize_per_tensor"] * 2
    assert read_by["adaptive_avg_pool2d"] == ["flatten"], "a mean keeps its digits"
    assert "choose_qparams" in reads and whole.all_input_nodes[0].meta["kind"] == "linear", "scores stay in float32"


@pytest.mark.parametrize("name", [installed(name) for name in RUNTIMES if name != "onnx"])
def test_the_dial_chooses_a_detached_model(name: str, tmp_path: Path) -> None:
    model, x = trained(detachable()), pictures(count=3)
    made = export_package(model, x[:1], tmp_path / "net", settings=settings(name))
    network = Network(tmp_path / "net")
    for start in range(model.exits + 1):
        with torch.no_grad():
            expected = model(x, exit=start).numpy()
        got = network({"input": x.numpy(), "start": np.asarray(start)})[0]
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    if "model" not in made.graphs:
        assert network.ran == {f"exit_{each.number}": 3 for each in made.exits}, "each call runs one of them"


class Strided(nn.Module):
    """Begins in place, takes every second pixel, and ends with a mean that only its axes describe."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(x, inplace=True)[:, :, ::2, 0::2].mean((2, 3))


@pytest.mark.parametrize("name", [installed("ncnn")])
def test_ncnn_gets_what_it_lacks_in_its_own_words(name: str, tmp_path: Path) -> None:
    x = torch.randn(5, 3, 8, 8)
    manifest = export_package(Strided(), x[:1], tmp_path / "net", evidence=Evidence(x), settings=settings(name))
    assert manifest.exits[0].max_rel < 1e-5
    layers = (tmp_path / "net" / "model.param").read_text()
    assert layers.count("Pooling") == 2 and "Reduction" not in layers


@pytest.mark.parametrize("name", [installed("ncnn")])
def test_a_network_that_ncnn_crashes_on_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(to_ncnn, "_TRIED", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(ModelError, match=r"^ncnn crashes on this model \(SIGSEGV\)$"):
        export_package(small_net(), torch.zeros(1, 3, 8, 8), tmp_path / "net", settings=settings(name))
    assert not (tmp_path / "net").exists()


@pytest.mark.slow
@pytest.mark.parametrize("router", ["gates", "image"])
@pytest.mark.parametrize("name", [installed(name) for name in RUNTIMES if name != "onnx"])
def test_images_of_a_routed_network_go_no_deeper_than_they_have_to(name: str, router: str, tmp_path: Path) -> None:
    if (name, router) == ("ncnn", "gates"):
        with pytest.raises(ModelError, match=r"^ncnn has no operator torch.eq, torch.where, which this model needs$"):
            export_package(routed(Residual), X[:1], tmp_path / "net", settings=settings(name))
        return
    model = trained(routed(Residual, router=router))
    export_package(model, X[:1], tmp_path / "net", evidence=Evidence(X), settings=settings(name))
    network = Network(tmp_path / "net")
    for depth in range(model.depths):
        never = np.asarray([2.0] * depth + [-2.0] * (model.depths - 1 - depth), np.float32)
        network.ran.clear()
        assert network({"input": X.numpy(), "thresholds": never})[1].tolist() == [depth] * len(X)
        if "segment_0" in network.graphs:
            ran = {name for name in network.ran if name.startswith("segment")}
            assert ran == {f"segment_{each}" for each in range(depth + 1)}


@pytest.mark.slow
def test_a_network_in_plain_torch_needs_neither_compressor_nor_its_code(tmp_path: Path) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.ModuleDict({"0": nn.Conv2d(3, 6, 3, groups=3, bias=False), "bn": nn.BatchNorm2d(6)})
            self.scale = nn.Parameter(torch.full((6, 1, 1), 0.5))
            self.head = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.hardswish(self.part["bn"](self.part["0"](x))) * self.scale
            return self.head(x.mean((2, 3)))

    model, x = Own().eval(), torch.randn(3, 3, 8, 8)
    export_package(model, x[:1], tmp_path / "net", settings=settings("torch"))
    torch.save((x, model(x).detach(), x), tmp_path / "both.pt")
    code = (
        "import sys; sys.modules['compressor'] = None; sys.path.insert(0, 'net'); import torch, model\n"
        "x, expected, _ = torch.load('both.pt'); network = model.load()\n"
        "torch.testing.assert_close(network(x), expected); network.train(); network(x).sum().backward()\n"
        "assert network.part_0.in_channels == 3 and network.scale.grad is not None\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_what_a_runtime_lacks_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="plain PyTorch cannot quantize from Python.*openvino"):
        runtimes.check_runtime("torch", int8=True)
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match=r"LiteRT is not installed \(ai_edge_litert, litert_torch missing\): pip install"
    ):
        export_package(small_net(), torch.zeros(1, 3, 8, 8), tmp_path / "net", settings=settings("litert"))
    assert not (tmp_path / "net").exists()


class Gamma(nn.Module):
    """An operator that runtimes lack."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x).mean((2, 3))


@pytest.mark.parametrize("name", [installed(name) for name in RUNTIMES if name != "torch"])
def test_an_operator_that_a_runtime_lacks_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises((ModelError, CompressorError), match="(?i)bessel_j0") as raised:
        export_package(Gamma(), torch.rand(1, 3, 8, 8), tmp_path / "net", settings=settings(name))
    assert "\n" not in str(raised.value) and not (tmp_path / "net").exists()


def test_a_package_that_computes_something_else_is_found(tmp_path: Path) -> None:
    export_package(small_net(), torch.zeros(1, 3, 8, 8), tmp_path / "net", settings=settings("onnx"))
    network = Network(tmp_path / "net")
    with np.load(tmp_path / "net" / "sample.npz") as sample:
        held = dict(sample)
    held["exit_0"] = held["exit_0"] * 1.01
    np.savez(tmp_path / "net" / "sample.npz", **held)
    with pytest.raises(FileError, match=r"sample.npz was changed"):
        verify_package(tmp_path / "net")
    with pytest.raises(ValueError, match="computes something else here"):
        from compressor.exporting.run import compared

        compared(network, held)
