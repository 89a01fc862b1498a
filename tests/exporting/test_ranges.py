"""Ranges of activations in INT8, against rounding the values themselves."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compressor.exporting.flatten import OPSET, flatten
from compressor.exporting.quantize import SCHEMES, quantize
from compressor.exporting.ranges import BINS, least_error
from compressor.exporting.runtime import open_session


def found(values: np.ndarray) -> tuple[float, float]:
    threshold = float(np.abs(values).max())
    counts, edges = np.histogram(values, BINS, range=(-threshold, threshold))
    return least_error(counts, edges, float(values.min()), float(values.max()))


def error(values: np.ndarray, low: float, high: float, cutting: float = 3.0) -> float:
    """Of each value in 8 bits, squared, what is cut off counting more."""
    step = (high - low) / 255
    rounded = low + np.clip(np.round((values - low) / step), 0, 255) * step
    outside = (values < low - step / 2) | (values > high + step / 2)
    return float(((values - rounded) ** 2 * np.where(outside, cutting, 1)).mean())


@given(st.integers(0, 1000), st.sampled_from(["normal", "uniform", "laplace", "lognormal", "exponential"]))
def test_range_errs_no_more_than_any_share_of_the_whole(seed: int, kind: str) -> None:
    generator = np.random.default_rng(seed)
    values = getattr(generator, kind)(size=5000).astype(np.float32)
    low, high = found(values)
    least, most = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    others = [error(values, least * a, most * b) for a in (1, 0.8, 0.5, 0.2) for b in (1, 0.8, 0.5, 0.2)]
    assert least <= low <= 0 <= high <= most
    assert error(values, low, high) <= 1.1 * min(others)


def test_one_far_value_is_cut_off_and_even_ones_are_kept() -> None:
    even = np.random.default_rng(0).uniform(0, 1, 1_000_000).astype(np.float32)
    low, high = found(even)
    assert low == 0
    assert high == pytest.approx(even.max())
    assert found(np.append(even, np.float32(2)))[1] < 1.5


@pytest.mark.parametrize("value", [0.0, 2.5, -2.5])
def test_constant_keeps_its_value(value: float) -> None:
    values = np.full(10, value, np.float32)
    counts, edges = np.histogram(values, BINS, range=(-abs(value), abs(value)))
    assert least_error(counts, edges, value, value) == (min(value, 0), max(value, 0))


def test_network_on_far_values_errs_less_than_with_smallest_and_largest(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten()).eval()
    images = torch.randn(256, 3, 16, 16) ** 5
    flatten(network, images[:2], OPSET, ["input"]).save(tmp_path / "float.onnx")
    pieces, errors = [{"input": part.numpy()} for part in images.split(8)], dict[bool, float]()
    for cut in (True, False):
        quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", SCHEMES["x86"], pieces, cut=cut)
        [got] = open_session(tmp_path / "int8.onnx").run(None, {"input": images.numpy()})
        with torch.no_grad():
            errors[cut] = float((network(images) - torch.from_numpy(got)).square().mean())
    assert errors[True] < 0.95 * errors[False]
