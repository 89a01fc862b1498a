"""Latency of a model in memory."""

from functools import partial
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from compressor.exporting import latency
from compressor.exporting.latency import by_layer, layer_latency, profile
from compressor.exporting.onnx import export_onnx
from compressor.exporting.runtime import noise
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


class Net(nn.Module):
    """Everything a name can come from: a fused batch norm and activation, a layer used twice, a branch, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.twice(self.twice(x).relu()).relu()
        return self.head(x.mean((2, 3)))


def test_every_layer_is_found_and_what_is_fused_counts_for_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    export_onnx(Net().eval(), torch.zeros(1, 3, 16, 16), tmp_path / "net.onnx")
    found = layer_latency(tmp_path / "net.onnx", {"input": noise((1, 3, 16, 16))}, 1)
    layers = {name for name in found if not name.startswith("(")}
    assert layers == {"stem.0", "twice", "head"} and all(ms > 0 for ms in found.values())
    assert list(found.values()) == sorted(found.values(), reverse=True)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(1, 4, 3)

    def forward(self, image: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        return (self.left(image) + self.right(depth)).mean((2, 3))


@pytest.mark.parametrize("named", [False, True])
def test_a_model_of_several_inputs_is_timed_on_onnx_runtime(named: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "measure_in_turn", partial(measure_in_turn, seconds=0.02))
    image, depth = torch.zeros(1, 3, 16, 16), torch.zeros(1, 1, 16, 16)
    found = profile(Pair().eval(), {"depth": depth, "image": image} if named else (image, depth), latency=True)
    assert found.latency_ms is not None and found.latency_ms["torch"]["median"] > 0
    assert found.latency_ms["onnxruntime"]["larger"]["batch"] == 16
    assert not any("latency" in reason for reason in found.reasons)
    assert {layer.name for layer in found.layers if layer.ms} == {"left", "right"}


def test_a_fused_node_has_the_name_of_its_last_output() -> None:
    tensor = onnx.TensorProto.FLOAT
    nodes = [
        onnx.helper.make_node("Conv", ["x", "a.weight"], ["c"], name="first"),
        onnx.helper.make_node("Relu", ["c"], ["r"], name="second"),
        onnx.helper.make_node("Conv", ["r", "b.weight"], ["d"], name="third"),
        onnx.helper.make_node("Relu", ["d"], ["s"], name="fourth"),
        onnx.helper.make_node("MaxPool", ["s"], ["y"], name="fifth", kernel_shape=[2, 2]),
    ]
    weights = [onnx.helper.make_tensor(name, tensor, (1, 1, 1, 1), [1.0]) for name in ("a.weight", "b.weight")]
    graph = onnx.helper.make_graph(nodes, "g", [], [], weights)
    times = {"r_nchwc": ("Conv", 2.0), "third": ("Conv", 3.0), "s": ("FusedConv", 4.0), "y": ("MaxPool", 1.0),
             "unknown": ("Conv", 0.5)}  # fmt: skip
    assert by_layer(graph, times) == {"b": 7.0, "a": 2.0, "(MaxPool)": 1.0, "(Conv)": 0.5}


def test_profile_gives_each_layer_its_time() -> None:
    cost = profile(Net(), torch.zeros(1, 3, 16, 16), latency=True)
    times = {layer.name: layer.ms for layer in cost.layers}
    assert all(times[name] > 0 for name in ("stem.0", "twice", "head")) and times["stem.1"] is None
