"""The weights file: every tensor once, on page boundaries, whatever form it came in."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from compressor.exporting.runtime import OnnxModel
from compressor.exporting.weights import ALIGNMENT, WeightsFile, graphs_in

BIG = np.random.default_rng(0).standard_normal((1, 1, 20, 20)).astype(np.float32)


def adding(weights: list[np.ndarray], constants: list[np.ndarray] | None = None) -> onnx.ModelProto:
    """A graph that adds all weights to its input, those of `constants` from nodes."""
    names = [f"w{i}" for i in range(len(weights))]
    nodes = [
        helper.make_node("Constant", [], [f"k{i}"], value=numpy_helper.from_array(value))
        for i, value in enumerate(constants or [])
    ]
    last = "input"
    for name in [*names, *(node.output[0] for node in nodes)]:
        nodes.append(helper.make_node("Add", [last, name], [f"{last}+"]))
        last = f"{last}+"
    shape = ["batch", 1, 20, 20]
    graph = helper.make_graph(
        nodes,
        "adds",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in zip(names, weights)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(path: Path) -> np.ndarray:
    return OnnxModel(path)(np.ones((2, 1, 20, 20), np.float32))


def test_equal_tensors_of_several_graphs_are_stored_once(tmp_path: Path) -> None:
    one, other = map(ir.from_proto, (adding([BIG, 2 * BIG, BIG.copy()]), adding([2 * BIG], [BIG])))
    with WeightsFile(tmp_path / "weights.bin") as weights:
        for number, model in enumerate((one, other)):
            weights.take(model)
            ir.save(model, tmp_path / f"{number}.onnx")
    size = (tmp_path / "weights.bin").stat().st_size
    assert BIG.nbytes * 2 <= size <= ALIGNMENT + BIG.nbytes
    assert {value.const_value.offset for value in one.graph.initializers.values()} == {0, ALIGNMENT}
    np.testing.assert_allclose(run(tmp_path / "0.onnx"), np.broadcast_to(1 + 4 * BIG[0], (2, 1, 20, 20)), rtol=1e-5)
    np.testing.assert_allclose(run(tmp_path / "1.onnx"), np.broadcast_to(1 + 3 * BIG[0], (2, 1, 20, 20)), rtol=1e-5)
    assert max((tmp_path / f"{number}.onnx").stat().st_size for number in range(2)) < 1000


def test_tensors_that_lie_in_another_file_move_over(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    onnx.save(adding([BIG]), elsewhere / "a.onnx", save_as_external_data=True, location="a.data", size_threshold=0)
    model = ir.load(elsewhere / "a.onnx")
    with WeightsFile(tmp_path / "weights.bin") as weights:
        weights.take(model)
    ir.save(model, tmp_path / "a.onnx")
    (elsewhere / "a.data").unlink()
    np.testing.assert_allclose(run(tmp_path / "a.onnx")[0], 1 + BIG[0], rtol=1e-6)


def test_small_tensors_stay_in_the_graph(tmp_path: Path) -> None:
    onnx.save(
        adding([np.ones((1, 1, 1, 20), np.float32)]), tmp_path / "a.onnx", save_as_external_data=True,
        location="a.data", size_threshold=0,
    )  # fmt: skip
    model = ir.load(tmp_path / "a.onnx")
    with WeightsFile(tmp_path / "weights.bin") as weights:
        weights.take(model)
    assert (tmp_path / "weights.bin").stat().st_size == 0
    assert not ir.to_proto(model).graph.initializer[0].external_data


def test_branches_are_found_at_any_depth() -> None:
    graph = adding([BIG]).graph
    for depth in range(2):
        node = helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=adding([BIG]).graph)
        graph = helper.make_graph([node], f"level {depth}", [], [])
    assert len(list(graphs_in(graph))) == 5
