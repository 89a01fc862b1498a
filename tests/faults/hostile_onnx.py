"""ONNX files that reach outside of their folder, lie about sizes or fill the memory."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.hostile_pickles import Make


def graph_of(nodes: list[Any], initializers: list[Any] = ()) -> Any:
    """A model from an image x (1, 3) to y, of these nodes."""
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in "xy"]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], initializer=list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def outside(location: str, **more: str) -> Make:
    """A model whose weight lies where `location` says."""

    def make(path: Path, canary: Path) -> None:
        path.write_bytes(_external(location.replace("STEM", path.stem), **more).SerializeToString())
        path.with_name(f"{path.stem}.bin").write_bytes(bytes(36))

    return make


def _external(location: str, **more: str) -> Any:
    from onnx import TensorProto, helper

    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3, 3], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        weight.external_data.add(key=key, value=value)
    return graph_of([helper.make_node("MatMul", ["x", "w"], ["y"])], [weight])


def _linked(target: str) -> Make:
    """A model whose weight is a link beside it, to a file or a folder elsewhere."""

    def make(path: Path, canary: Path) -> None:
        link = path.with_name(f"{path.stem}.data")
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        location = link.name if Path(target).is_file() else f"{link.name}/passwd"
        path.write_bytes(_external(location).SerializeToString())

    return make


def _in_a_branch(path: Path, canary: Path) -> None:
    """The weight that lies elsewhere is a constant in a branch of an If."""
    from onnx import TensorProto, helper

    inner = _external("../../etc/passwd").graph.initializer[0]
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 3])
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"])], "branch", [], [out], initializer=[inner]
    )
    flag = helper.make_tensor("c", TensorProto.BOOL, [], [True])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    path.write_bytes(graph_of([node], [flag]).SerializeToString())


def filled(operator: str, size: int) -> Make:
    """A constant that is small to write and large to compute."""

    def make(path: Path, canary: Path) -> None:
        from onnx import helper, numpy_helper

        shape = numpy_helper.from_array(np.array([size], dtype=np.int64), "n")
        first = ["n"] if operator == "ConstantOfShape" else ["x", "n"]
        nodes = [
            helper.make_node(operator, first, ["big"]),
            helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
            helper.make_node("Add", ["x", "sum"], ["y"]),
        ]
        path.write_bytes(graph_of(nodes, [shape]).SerializeToString())

    return make


def _sizes_lie(path: Path, canary: Path) -> None:
    from onnx import TensorProto, helper

    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2**40, 2**40], raw_data=b"abcd")
    path.write_bytes(graph_of([helper.make_node("MatMul", ["x", "w"], ["y"])], [weight]).SerializeToString())


def _deep(path: Path, canary: Path) -> None:
    from onnx import TensorProto, helper

    flag = helper.make_tensor("c", TensorProto.BOOL, [], [True])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [], [out])
    for _ in range(28):  # protobuf itself ends at 100 messages in one another
        graph = helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=graph)], "g", [], [out])
    path.write_bytes(graph_of(list(graph.node), [flag]).SerializeToString())


def _unknown(domain: str) -> Make:
    def make(path: Path, canary: Path) -> None:
        from onnx import helper

        node = helper.make_node("Run\nshell\x1b[2J", ["x"], ["y"], domain=domain)
        model = graph_of([node])
        model.opset_import.append(helper.make_opsetid(domain or "x", 1))
        path.write_bytes(model.SerializeToString())

    return make


def _circle(path: Path, canary: Path) -> None:
    from onnx import helper

    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Add", ["a", "x"], ["b"])]
    path.write_bytes(graph_of([*nodes, helper.make_node("Relu", ["b"], ["y"])]).SerializeToString())


def _part(share: float) -> Make:
    def make(path: Path, canary: Path) -> None:
        outside("STEM.bin")(path, canary)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return make


ONNX: dict[str, Make] = {
    "external_parent": outside("../../../../../../etc/passwd"),
    "external_absolute": outside("/etc/passwd"),
    "external_dots_inside": outside("sub/../../../../../../../etc/passwd"),
    "external_windows": outside("..\\..\\etc\\passwd"),
    "external_link": _linked("/etc/passwd"),
    "external_linked_folder": _linked("/etc"),
    "external_in_a_branch": _in_a_branch,
    "external_device": outside("/dev/zero", length=str(2**40)),
    "external_missing": outside("STEM.nowhere"),
    "external_offset_beyond": outside("STEM.bin", offset=str(2**50)),
    "external_offset_negative": outside("STEM.bin", offset="-1000"),
    "external_length_beyond": outside("STEM.bin", length=str(2**50)),
    "external_length_no_number": outside("STEM.bin", length="many"),
    "external_empty": outside(""),
    "external_null": outside("a\0b"),
    "constant_of_1_TiB": filled("ConstantOfShape", 2**38),
    "constant_of_16_GiB": filled("ConstantOfShape", 2**32),
    "expanded": filled("Expand", 2**40),
    "sizes_lie": _sizes_lie,
    "deep": _deep,
    "unknown_operator": _unknown("some.where"),
    "operator_of_no_name": _unknown(""),
    "circle": _circle,
    "half": _part(0.5),
    "most": _part(0.9),
}
