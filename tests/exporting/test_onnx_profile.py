"""The cost of an .onnx file equals that of the model it was made from."""

from functools import partial
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from compressor.errors import FileError
from compressor.exporting import latency
from compressor.exporting import onnx as exporting
from compressor.exporting.onnx import export_onnx
from compressor.exporting.onnx_profile import profile_onnx
from compressor.profiling.costs import profile
from compressor.profiling.latency import measure_in_turn


def small_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ConvTranspose2d(8, 4, 2, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )


def saved(graph: onnx.GraphProto, path: Path) -> Path:
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def chosen(path: Path, batch: int | str = 1) -> Path:
    """A file whose If multiplies by a 4x2 or a 4x6 matrix and then sums; nothing torch would write."""

    def branch(columns: int) -> onnx.GraphProto:
        nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("ReduceSum", ["m"], ["out"])]
        weight = helper.make_tensor("w", TensorProto.FLOAT, [4, columns], [1.0] * 4 * columns)
        output = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 1])
        return helper.make_graph(nodes, f"branch{columns}", [], [output], [weight])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["flag"], to=TensorProto.BOOL),
        helper.make_node("If", ["flag"], ["chosen"], then_branch=branch(2), else_branch=branch(6)),
        helper.make_node("Det", ["square"], ["det"]),
        helper.make_node("Add", ["chosen", "det"], ["y"]),
    ]
    square = helper.make_tensor("square", TensorProto.FLOAT, [2, 2], [1.0, 0.0, 0.0, 1.0])
    widths = {"x": 4, "y": 1}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, width]) for name, width in widths.items()]
    return saved(helper.make_graph(nodes, "chosen", ends[:1], ends[1:], [square]), path)


def test_macs_params_and_rows_equal_the_models(tmp_path: Path) -> None:
    net, example = small_net(), torch.zeros(1, 3, 12, 12)
    check = export_onnx(net, example, tmp_path / "net.onnx")
    before, after = profile(net, example), profile_onnx(tmp_path / "net.onnx")
    assert (after.macs, after.params, after.file_bytes) == (before.macs, before.params, check.file_bytes)
    assert [(row.name, row.macs) for row in after.layers] == [(row.name, row.macs) for row in before.layers if row.macs]
    assert sum(row.params for row in after.layers) == after.params
    assert not after.uncounted and {"macs_thop", "activation_bytes", "latency_ms"} <= set(after.reasons)


def test_latency_is_onnxruntimes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "measure_in_turn", partial(measure_in_turn, seconds=0.02))
    export_onnx(nn.Conv2d(1, 2, 3), torch.zeros(1, 1, 6, 6), tmp_path / "net.onnx")
    cost = profile_onnx(tmp_path / "net.onnx", latency=True)
    assert cost.latency_ms is not None and cost.latency_ms["torch"] is None
    assert cost.latency_ms["onnxruntime"]["median"] > 0


def test_weights_in_a_second_file_belong_to_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "_LARGEST_SINGLE_FILE", 1000)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 40))
    check = export_onnx(net, torch.zeros(1, 3, 8, 8), tmp_path / "big.onnx")
    cost = profile_onnx(tmp_path / "big.onnx")
    assert cost.file_bytes == check.file_bytes
    assert (cost.macs, cost.params) == (192 * 40, 193 * 40)


def test_the_dearer_branch_counts_and_unknown_operators_are_named(tmp_path: Path) -> None:
    cost = profile_onnx(chosen(tmp_path / "net.onnx"))
    assert cost.macs == 4 * 6
    assert cost.params == 4 * 2 + 4 * 6 + 4
    assert cost.uncounted == {"Det": 1}


def test_a_fixed_batch_is_divided_out(tmp_path: Path) -> None:
    assert profile_onnx(chosen(tmp_path / "net.onnx", batch=3)).macs == 4 * 6


def test_an_open_image_size_is_refused(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, "h", "w"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "open", ends[:1], ends[1:])
    saved(graph, tmp_path / "net.onnx")
    with pytest.raises(FileError, match="leaves its image size open"):
        profile_onnx(tmp_path / "net.onnx")


def test_broken_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"nonsense")
    with pytest.raises(FileError, match="cannot be read as ONNX"):
        profile_onnx(tmp_path / "net.onnx")
