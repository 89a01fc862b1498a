"""Graphs put together from flat ones: names, branches, weights, outputs."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.exporting.compose import Body, Stage
from compressor.exporting.runtime import open_session


def adding(number: float) -> Stage:
    """x + number, for a vector."""
    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch"])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch"])
    weight = numpy_helper.from_array(np.asarray([number], np.float32), "w")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "adds", [shape], [output], [weight])
    return Stage(ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)))


def level() -> tuple[Body, ir.Value]:
    """An empty model and its images."""
    body = Body()
    return body, body.input("input", adding(0).image)


def flag_of(body: Body) -> ir.Value:
    return body.input("flag", ir.Value(type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([])))


def run(body: Body, value: ir.Value, path: Path, **feeds: np.ndarray) -> np.ndarray:
    ir.save(body.model({"y": (value, adding(0).output)}), path / "net.onnx")
    onnx.checker.check_model(str(path / "net.onnx"), full_check=True)
    return open_session(path / "net.onnx").run(None, {"input": np.zeros(2, np.float32), **feeds})[0]


def test_a_stage_called_twice_keeps_its_names_apart(tmp_path: Path) -> None:
    (body, image), stage = level(), adding(2)
    once = body.call(stage, image)[0]
    np.testing.assert_array_equal(run(body, body.call(stage, once)[0], tmp_path), [4, 4])


@pytest.mark.parametrize(("flag", "expected"), [(True, 11), (False, 101)])
def test_each_branch_holds_its_weights_and_sees_the_outside(flag: bool, expected: float, tmp_path: Path) -> None:
    body, image = level()
    one = body.call(adding(1), image)[0]
    branches = []
    for number in (10, 100):
        inner = body.inner()
        branches.append((inner, [inner.call(adding(number), one)[0]]))
    chosen = body.choose(flag_of(body), *branches)[0]
    assert len(body.graph.initializers) == 1
    np.testing.assert_array_equal(run(body, chosen, tmp_path, flag=np.asarray(flag)), [expected, expected])


@pytest.mark.parametrize(("flag", "expected"), [(True, 1), (False, 0)])
def test_a_branch_may_hand_an_outer_value_through(flag: bool, expected: float, tmp_path: Path) -> None:
    body, image = level()
    one = body.call(adding(1), image)[0]
    chosen = body.choose(flag_of(body), (body.inner(), [one]), (body.inner(), [image]))[0]
    np.testing.assert_array_equal(run(body, chosen, tmp_path, flag=np.asarray(flag)), [expected, expected])


def test_the_first_output_alone_needs_no_more_than_its_own_nodes(tmp_path: Path) -> None:
    proto = ir.to_proto(adding(3).model)
    proto.graph.node.append(helper.make_node("Mul", ["y", "w2"], ["z"]))
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray([2], np.float32), "w2"))
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch"]))
    stage = Stage(ir.from_proto(proto))
    alone = stage.first_output()
    assert [node.op_type for node in alone.model.graph] == ["Add"]
    assert list(alone.model.graph.initializers) == ["w"]
    assert len(stage.model.graph.outputs) == len(stage.model.graph) == 2, "the stage itself is as it was"
    body, image = level()
    np.testing.assert_array_equal(run(body, body.call(alone, image)[0], tmp_path), [3, 3])
