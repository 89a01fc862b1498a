"""Graphs put together from flat ones: names, branches, weights, outputs."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.exporting.compose import Body, Stage, image_info
from compressor.exporting.runtime import open_session


def adding(number: float) -> Stage:
    """x + number, for a vector."""
    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch"])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch"])
    weight = numpy_helper.from_array(np.asarray([number], np.float32), "w")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "adds", [shape], [output], [weight])
    return Stage(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def run(body: Body, value: str, path: Path, **feeds: np.ndarray) -> np.ndarray:
    stage = adding(0)
    model = body.model([image_info(stage), *_flags(feeds)], {"y": (value, stage.model.graph.output[0])})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path / "net.onnx")
    return open_session(path / "net.onnx").run(None, {"input": np.zeros(2, np.float32), **feeds})[0]


def _flags(feeds: dict[str, np.ndarray]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in feeds]


def test_a_stage_called_twice_keeps_its_names_apart(tmp_path: Path) -> None:
    body, stage = Body(), adding(2)
    once = body.call(stage, {"x": "input"})[0]
    np.testing.assert_array_equal(run(body, body.call(stage, {"x": once})[0], tmp_path), [4, 4])


@pytest.mark.parametrize(("flag", "expected"), [(True, 11), (False, 101)])
def test_each_branch_holds_its_weights_and_sees_the_outside(flag: bool, expected: float, tmp_path: Path) -> None:
    body = Body()
    one = body.call(adding(1), {"x": "input"})[0]
    branches = []
    for number in (10, 100):
        inner = body.inner()
        branches.append((inner, [inner.call(adding(number), {"x": one})[0]]))
    chosen = body.choose("flag", *branches)[0]
    assert len(body.graph.initializer) == 1
    np.testing.assert_array_equal(run(body, chosen, tmp_path, flag=np.asarray(flag)), [expected, expected])


@pytest.mark.parametrize(("flag", "expected"), [(True, 1), (False, 0)])
def test_a_branch_may_hand_an_outer_value_through(flag: bool, expected: float, tmp_path: Path) -> None:
    body = Body()
    one = body.call(adding(1), {"x": "input"})[0]
    chosen = body.choose("flag", (body.inner(), [one]), (body.inner(), ["input"]))[0]
    np.testing.assert_array_equal(run(body, chosen, tmp_path, flag=np.asarray(flag)), [expected, expected])


def test_the_first_output_alone_needs_no_more_than_its_own_nodes(tmp_path: Path) -> None:
    stage = adding(3)
    graph = stage.model.graph
    graph.node.append(helper.make_node("Mul", ["y", "w2"], ["z"]))
    graph.initializer.append(numpy_helper.from_array(np.asarray([2], np.float32), "w2"))
    graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch"]))
    alone = stage.first_output()
    assert [node.op_type for node in alone.model.graph.node] == ["Add"]
    assert [tensor.name for tensor in alone.model.graph.initializer] == ["w"]
    assert len(graph.output) == len(graph.node) == 2, "the stage itself is as it was"
    body = Body()
    np.testing.assert_array_equal(run(body, body.call(alone, {"x": "input"})[0], tmp_path), [3, 3])
