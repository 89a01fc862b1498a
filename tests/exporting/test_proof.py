"""What the exporter proves of every exit, and that each part of the proof can fail."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressor.errors import CompressorError
from compressor.exporting import proof
from compressor.exporting.forms import Cost, Exit
from compressor.exporting.proof import PROOF_IMAGES, count_layers, latencies, parity
from compressor.exporting.samples import same_classes

IMAGES = torch.randn(PROOF_IMAGES, 6, generator=torch.Generator().manual_seed(0))


class Scores(nn.Module):
    """Images that are scores already."""

    def forward(self, x: Tensor) -> Tensor:
        return x


LEAVING = Exit(1, "layer2", Scores())


def changed(by: float, seen: list[int]):
    """A runner whose first score of each image is off by a share of the batch's largest."""

    def run(images: np.ndarray) -> list[np.ndarray]:
        seen.append(len(images))
        found = images.copy()
        found[:, 0] += by * np.abs(images).max()
        return [found]

    return run


def test_one_image_five_and_all_are_compared() -> None:
    seen: list[int] = []
    assert parity(changed(0, seen), LEAVING, IMAGES) == (0, 1)
    assert seen == [1, 5, PROOF_IMAGES] and PROOF_IMAGES >= 64


def test_a_difference_up_to_a_ten_thousandth_is_rounding_and_no_more() -> None:
    assert 4e-5 < parity(changed(5e-5, []), LEAVING, IMAGES)[0] < 6e-5
    with pytest.raises(CompressorError, match=r"exit 1 \(layer2\) differs from torch by 2.0e-04 .* nothing was"):
        parity(changed(2e-4, []), LEAVING, IMAGES)


def test_another_class_is_refused_though_the_scores_are_near() -> None:
    close = torch.tensor([[1.0, 1.0 - 5e-5, 0.0]])
    swapped = np.array([[1.0 - 5e-5, 1.0, 0.0]], np.float32)
    assert not same_classes(close.numpy(), swapped)
    with pytest.raises(CompressorError, match="gives other classes than torch"):
        parity(lambda _: [swapped], LEAVING, close)
    assert parity(lambda _: [swapped], LEAVING, close, quantized=True)[1] == 0, "said and not refused"
    tie = np.array([[1.0, 1.0, 0.0]], np.float32)
    assert same_classes(tie, np.array([[0.999999, 1.0, 0.0]], np.float32)), "of two that are equal either may win"


@pytest.mark.parametrize(
    ("ran", "promised", "said"),
    [
        ({"Conv": 3, "FusedConv": 1, "Relu": 9}, Cost(0, 0, 4, 1), None),
        ({"QLinearConv": 4}, Cost(0, 0, 4, 1), None),
        ({"Conv": 5}, Cost(0, 0, 4, 1), "executes 5 convolutions and not the 4 it should"),
        ({"Conv": 3}, Cost(0, 0, 4, 1), "executes 3 convolutions and not the 4 it should"),
        ({"Gemm": 2}, Cost(0, 0, 0, 2), None),
        ({"FusedMatMul": 1, "Gemm": 2}, Cost(0, 0, 0, 2), "executes 3 matrix products and not the 2 it should"),
    ],
)
def test_executed_layers_are_those_promised(ran, promised, said, monkeypatch) -> None:
    monkeypatch.setattr(proof, "executed", lambda *_: Counter(ran))
    if said is None:
        count_layers(Path("model.onnx"), LEAVING, promised, {"input": IMAGES.numpy()})
        return
    with pytest.raises(CompressorError, match=said):
        count_layers(Path("model.onnx"), LEAVING, promised, {"input": IMAGES.numpy()})


@pytest.mark.parametrize(
    ("rounds", "best"),
    [
        ([[5.0, 3.0]], [5.0, 3.0]),  # of 200 and 100 MACs
        ([[5.0, 9.0], [6.0, 3.0]], [5.0, 3.0]),  # a busy moment
        ([[5.0, 5.3]], [5.0, 5.3]),  # within what a busy machine does
        ([[5.0, 9.0]] * 9, None),
    ],
)
def test_latency_falls_with_the_macs(rounds, best, monkeypatch) -> None:
    medians = iter([each for both in rounds for each in both])
    monkeypatch.setattr(proof, "measure", lambda *_, **__: SimpleNamespace(median=next(medians)))
    costs = [Cost(200, 0, 0, 0), Cost(100, 0, 0, 0)]
    if best is None:
        with pytest.raises(CompressorError, match="exit 1 takes 9.00 ms and exit 0, with more multiply-adds, 5.00 ms"):
            latencies([lambda input: [], lambda input: []], costs, {"input": IMAGES.numpy()}, 1, ())
        return
    found, _ = latencies([lambda input: [], lambda input: []], costs, {"input": IMAGES.numpy()}, 1, ())
    assert [each.median for each in found] == best
