"""Latency of a model in memory."""

from functools import partial

import pytest
import torch
from torch import nn

from compressor.exporting import latency
from compressor.exporting.latency import profile
from compressor.profiling.latency import measure_in_turn


def test_latency_covers_torch_and_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "measure_in_turn", partial(measure_in_turn, seconds=0.02))
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()).train()
    cost = profile(model, torch.zeros(2, 1, 6, 6), latency=True)
    assert cost.latency_ms is not None
    for engine in ("torch", "onnxruntime"):
        timing = cost.latency_ms[engine]
        assert timing["batch"] == 1 and timing["larger"]["batch"] > 1
        assert 0 < timing["median"] <= timing["p95"]
        assert timing["threads"] == torch.get_num_threads()
    assert model.training and model[0].training
