"""INT8: what runs, how near it stays, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compressor.certify import promised
from compressor.errors import CompressorError, UsageError
from compressor.exporting import graphs, quantize
from compressor.exporting.forms import form_of
from compressor.exporting.graphs import PackageSettings
from compressor.exporting.package import export_package
from compressor.exporting.proof import Evidence
from compressor.exporting.quantize import SCHEMES, Chip, facts, saturates
from compressor.exporting.running import executed
from compressor.exporting.runtime import OnnxModel
from compressor.exporting.samples import torch_outputs
from compressor.exporting.verify import verify_package
from compressor.report.manifest import read_manifest
from compressor.report.measurements import Certificate
from tests.exits.nets import detachable
from tests.exits.nets import images as subnet_images
from tests.exporting.nets import small_net, trained
from tests.routing.nets import Residual, routed
from tests.routing.nets import images as routing_images

EXAMPLE = torch.zeros(1, 3, 8, 8)
IMAGES = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(3))
EVIDENCE = Evidence(IMAGES[:8], IMAGES, lambda run: 0.9)
SETTINGS = PackageSettings(latency=False, int8="x86")


def bound(chip: Chip) -> float:
    """How far the outputs may lie off; far where this machine's sums saturate."""
    return 0.4 if saturates(chip) else 0.05 if chip == "x86" else 0.1


def noise(folder: Path) -> float:
    """Error of the quantized model as a share of the signal."""
    with torch.no_grad():
        expected = small_net()(IMAGES).numpy()
    return float(np.linalg.norm(OnnxModel(folder / "model.onnx")(IMAGES.numpy()) - expected) / np.linalg.norm(expected))


def test_every_convolution_runs_in_int8_and_the_outputs_stay_near(tmp_path: Path) -> None:
    manifest = export_package(small_net(), EXAMPLE, tmp_path / "net", evidence=EVIDENCE, settings=SETTINGS)
    ran = executed(tmp_path / "net" / "model.onnx", {"input": IMAGES[:1].numpy()})
    assert sum(count for name, count in ran.items() if "QLinearConv" in name) == 2
    assert 0 < noise(tmp_path / "net") < bound("x86")
    assert manifest.quantization["activations"] == "QUInt8" and manifest.quantization["weights"] == "QInt8"
    assert manifest.quantization["calibrated_on"] == "40 training images"
    [leaving] = manifest.exits
    assert (leaving.top1_float, leaving.top1) == (0.9, 0.9) and 0 < leaving.max_rel < 2 * bound("x86")
    assert verify_package(tmp_path / "net") == manifest


def test_the_package_in_float32_is_timed_and_weighed_beside_it(tmp_path: Path) -> None:
    settings = replace(SETTINGS, latency=True)
    manifest = export_package(small_net(), EXAMPLE, tmp_path / "net", evidence=EVIDENCE, settings=settings)
    whole = export_package(small_net(), EXAMPLE, tmp_path / "whole", evidence=Evidence(IMAGES[:8]))
    graph = sum(whole.files[name]["bytes"] for name in ("model.onnx", "weights.bin"))
    assert graph - 20_000 < manifest.quantization["float32_bytes"] <= graph  # without the manifest inside
    assert manifest.exits[0].float_ms > 0 and whole.exits[0].float_ms is None
    assert sorted(manifest.files) == sorted(whole.files)


@pytest.mark.parametrize(("channels", "pools", "rounded"), [(3, False, 1), (4, False, 1), (5, False, 2), (3, True, 2)])
def test_the_convolution_of_an_image_stays_in_float32(channels: int, pools: bool, rounded: int, tmp_path: Path) -> None:
    """But where a pooling follows, which would be slow, or the input has so many channels that 8 bits save time."""
    pooling = [nn.MaxPool2d(2)] if pools else []
    convolutions = nn.Conv2d(channels, 16, 3), nn.Conv2d(16, 8, 3)
    net = nn.Sequential(convolutions[0], nn.ReLU(), *pooling, convolutions[1], nn.Flatten())
    images = torch.randn(16, channels, 8, 8)
    evidence = Evidence(images, images, lambda run: 1.0)
    export_package(net.eval(), images[:1], tmp_path / "net", evidence=evidence, settings=SETTINGS)
    ran = executed(tmp_path / "net" / "model.onnx", {"input": images[:1].numpy()})
    assert sum(count for name, count in ran.items() if "QLinearConv" in name) == rounded
    assert sum(count for name, count in ran.items() if "Conv" in name) == 2


def test_scores_beyond_those_of_the_calibration_are_not_cut_off(tmp_path: Path) -> None:
    net = small_net()
    evidence = Evidence(IMAGES[:8], IMAGES, lambda run: 0.9)
    with torch.no_grad():
        order = net(IMAGES).amax(1).argsort()
    export_package(
        net, EXAMPLE, tmp_path / "net", evidence=replace(evidence, calibration=IMAGES[order[:20]]), settings=SETTINGS
    )
    ran = executed(tmp_path / "net" / "model.onnx", {"input": IMAGES[:1].numpy()})
    assert sum(count for name, count in ran.items() if "QGemm" in name) == 1
    high = OnnxModel(tmp_path / "net" / "model.onnx")(IMAGES[order[-5:]].numpy()).max(1)
    low = OnnxModel(tmp_path / "net" / "model.onnx")(IMAGES[order[:20]].numpy()).max()
    assert high.max() > 1.02 * low and len(set(high.tolist())) == 5


def test_biases_make_up_for_rounded_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        expected = small_net()(IMAGES).mean(0).numpy()
    shifts = []
    for corrected in (True, False):
        if not corrected:
            monkeypatch.setattr(graphs, "correct_biases", lambda module, images, chip: module)
        place, settings = tmp_path / str(corrected), replace(SETTINGS, int8="x86-old")
        made = export_package(small_net(), EXAMPLE, place, evidence=EVIDENCE, settings=settings)
        shifts.append(np.abs(OnnxModel(place / "model.onnx")(IMAGES.numpy()).mean(0) - expected).mean())
        assert made.exits[0].max_rel > 1e-4, "compared with the network as it was given"
    print(shifts)
    assert shifts[0] < 0.8 * shifts[1]


@pytest.mark.parametrize("chip", [chip for chip in SCHEMES if chip != "x86"])
def test_other_chips_have_their_own_scheme(chip: Chip, tmp_path: Path) -> None:
    manifest = export_package(
        small_net(), EXAMPLE, tmp_path / "net", evidence=EVIDENCE, settings=replace(SETTINGS, int8=chip)
    )
    assert manifest.quantization["chip"] == chip and manifest.quantization["note"]
    assert noise(tmp_path / "net") < bound(chip)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["detachable", "routed"])
def test_every_exit_runs_its_convolutions_in_int8(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage by stage, since the quantizer sees a graph's top level only."""
    monkeypatch.setattr(quantize, "IMAGE_CHANNELS", 0)  # some of these tiny stages read as few channels as an image has
    model = trained(detachable() if kind == "detachable" else routed(Residual))
    calibration = (subnet_images if kind == "detachable" else routing_images)(count=48)
    evidence = Evidence(calibration, calibration, lambda run: 0.9)
    manifest = export_package(model, calibration[:1], tmp_path / "net", evidence=evidence, settings=SETTINGS)
    for leaving, told in zip(form_of(model, calibration[:1]).exits, manifest.exits, strict=True):
        ran = executed(tmp_path / "net" / "model.onnx", {"input": calibration[:1].numpy(), **leaving.feeds})
        assert sum(count for name, count in ran.items() if "QLinearConv" in name) == told.convolutions
        assert not any(name.endswith(("Conv", "FusedConv")) and "QLinear" not in name for name in ran)
        expected = torch_outputs(leaving.module, calibration)[0]
        got = OnnxModel(tmp_path / "net" / "model.onnx", feeds=leaving.feeds)(calibration.numpy())
        assert np.linalg.norm(got - expected) < max(bound("x86"), 0.1) * np.linalg.norm(expected)
        assert (told.top1_float, told.top1) == (0.9, 0.9)


@pytest.mark.parametrize("lost", [60, 2])
def test_a_promise_that_int8_does_not_keep_leaves_nothing(tmp_path: Path, lost: int) -> None:
    asked: list[tuple[tuple[int, ...], ...]] = []

    def judged(before: Any, after: Any) -> Certificate:
        asked.append(tuple(np.asarray(each(IMAGES[:2].numpy())).shape for each in (before, after)))
        right = np.arange(1000) < 1000 - lost
        return promised(np.zeros(1000, int), np.ones(1000, bool), [right], ("all",), drop=0.03)[1]

    evidence = replace(EVIDENCE, promise=judged)
    if lost == 2:
        made = export_package(small_net(), EXAMPLE, tmp_path / "net", evidence=evidence, settings=SETTINGS)
        words = made.exits[0].certificate["words"]
        assert words.startswith("Loses at most 3 points of top-1 on images like these, with 95% confidence (n = 1,000")
        assert read_manifest(tmp_path / "net").exits[0].certificate["words"] == words
    else:
        with pytest.raises(CompressorError, match=r"exit 0 .*No promise of at most 3 points.*Nothing was written"):
            export_package(small_net(), EXAMPLE, tmp_path / "net", evidence=evidence, settings=SETTINGS)
        assert not list(tmp_path.iterdir())
    assert len(set(asked[0])) == 1


def test_nothing_is_calibrated_on_noise(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`data`"):
        export_package(small_net(), EXAMPLE, tmp_path / "net", evidence=Evidence(IMAGES), settings=SETTINGS)


def test_sums_that_saturate_here_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for vnni in (False, True):
        monkeypatch.setattr("torch.cpu._is_vnni_supported", lambda: vnni)  # noqa: B023
        monkeypatch.setattr("torch.cpu._is_avx2_supported", lambda: True)
        assert [chip for chip in SCHEMES if saturates(chip)] == ([] if vnni else ["x86", "arm", "npu"])
        assert ("measured on a chip without" in facts("x86", 40)["note"]) != vnni
