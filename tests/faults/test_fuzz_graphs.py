"""Random damage to ONNX files and packages: each is used, or refused in one line, and costs little.

Bytes are changed anywhere, and fields where they stand: a file whose checksums and framing are right gets further. What
ONNX Runtime does with it is tried in a process of its own.
"""

import functools
import signal
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.errors import FileError
from tests.faults.apart import apart, check
from tests.faults.test_fuzz import fuzz

QUICK, LONG = 25, 3000
_IMAGE = 1 << 20  # values of the largest image that a damaged file is run on


@functools.cache
def good_graphs() -> dict[str, bytes]:
    """Small models: convolutions with weights inside, weights beside, and a branch."""
    from onnx import TensorProto, helper, numpy_helper

    def value(name: str, shape: list[Any]) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    def model(nodes: list[Any], tensors: list[Any]) -> bytes:
        graph = helper.make_graph(nodes, "g", [value("x", ["N", 1, 8, 8])], [value("y", ["N", 4])], tensors)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        content: bytes = made.SerializeToString()
        return content

    draw = np.random.default_rng(0)
    weights = numpy_helper.from_array(draw.normal(size=(4, 1, 3, 3)).astype(np.float32), "w")
    outside = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 1, 3, 3], data_location=TensorProto.EXTERNAL)
    for key, text in (("location", "weights.bin"), ("offset", "0"), ("length", "144")):
        outside.external_data.add(key=key, value=text)
    body = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    branches = {}
    for name, operator in (("then_branch", "Relu"), ("else_branch", "Neg")):
        node = helper.make_node(operator, ["f"], ["b"])
        branches[name] = helper.make_graph([node], name, [], [value("b", ["N", 4])])
    yes = numpy_helper.from_array(np.asarray(True), "yes")
    chosen = [*body[:3], helper.make_node("Flatten", ["p"], ["f"]), helper.make_node("If", ["yes"], ["y"], **branches)]
    return {"inside": model(body, [weights]), "beside": model(body, [outside]), "branch": model(chosen, [weights, yes])}


_WORDS = ["", "x", "y", "w", "c", "../weights.bin", "/etc/passwd", "weights.bin", "Loop", "Scan", "Conv", "Expand",
          "ConstantOfShape", "Range", "Tile", "Resize", "a\x00b", "é" * 40]  # fmt: skip
_NUMBERS = [-(2**63), -1, 0, 1, 2, 3, 7, 16, 1000, 2**31 - 1, 2**40, 2**63 - 1]


def _fields(message: Any) -> list[tuple[Any, Any]]:
    """Every field that is set in a message and in those inside it, with its holder."""
    found = []
    for field, held in message.ListFields():
        found.append((message, field))
        for inner in (held if field.is_repeated else [held]) if field.message_type else ():
            found += _fields(inner)
    return found


def _other(draw: st.DrawFn, field: Any) -> Any:
    if field.cpp_type == field.CPPTYPE_STRING:
        word = draw(st.sampled_from(_WORDS))
        return word.encode() if field.type == field.TYPE_BYTES else word
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return draw(st.sampled_from([0.0, -1.0, 1e30, float("nan"), float("inf")]))
    if field.cpp_type == field.CPPTYPE_ENUM:  # nothing else can be set
        return draw(st.sampled_from([value.number for value in field.enum_type.values]))
    if field.cpp_type == field.CPPTYPE_INT32:
        return draw(st.sampled_from([0, 1, 2, 7, 9, 16]))
    return draw(st.sampled_from(_NUMBERS if field.cpp_type == field.CPPTYPE_INT64 else [0, 1, 2**40]))


@st.composite
def damaged_graphs(draw: st.DrawFn) -> bytes:
    """A good model after some changes of fields, or of bytes."""
    import onnx

    content = draw(st.sampled_from(sorted(good_graphs().values())))
    if draw(st.integers(0, 5)) == 0:
        return _bytes_changed(draw, content)
    proto = onnx.load_model_from_string(content)
    for _ in range(draw(st.integers(1, 3))):
        holder, field = draw(st.sampled_from(_fields(proto)))
        held = getattr(holder, field.name)
        if field.is_repeated and len(held):
            at = draw(st.integers(0, len(held) - 1))
            match draw(st.sampled_from(["drop", "again", "other"])):
                case "drop":
                    del held[at]
                case "again" if field.message_type:
                    held.add().CopyFrom(held[at])
                case "again":
                    held.append(held[at])
                case _ if not field.message_type:
                    held[at] = _other(draw, field)
        elif field.message_type or draw(st.booleans()):
            holder.ClearField(field.name)
        else:
            setattr(holder, field.name, _other(draw, field))
    changed: bytes = proto.SerializeToString()
    return changed


def _bytes_changed(draw: st.DrawFn, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(len(changed) - 1, 0)))
        changed[start : start + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(changed)


def use_graph(path: Path) -> None:
    """What `profile` and `evaluate` do: count, open, and run on one image."""
    from compressor.exporting.onnx_profile import counted
    from compressor.exporting.runtime import OnnxModel

    with tempfile.TemporaryDirectory() as folder:  # here and not in one more process, as this is one already
        try:
            counted(str(path), folder, 1.0)
        except MemoryError:
            _refuse("too much memory")
        model = OnnxModel(Path(folder) / path.name, threads=1, own=True)
    sizes = [1 if size is None else size for size in (model.batch, *model.input_shape)]
    if np.prod(sizes, dtype=float) <= _IMAGE:
        model(np.zeros(sizes, np.float32))


def check_graph_file(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        path.write_bytes(content)
        path.with_name("weights.bin").write_bytes(bytes(144))
        check(apart(lambda: use_graph(path)))
        assert sorted(each.name for each in path.parent.iterdir()) == ["m.onnx", "weights.bin"]


@pytest.mark.parametrize("name", ["inside", "beside", "branch"])
def test_the_undamaged_models_run(name, tmp_path):
    (tmp_path / "m.onnx").write_bytes(good_graphs()[name])
    (tmp_path / "weights.bin").write_bytes(bytes(144))
    use_graph(tmp_path / "m.onnx")


@fuzz(QUICK)
@given(content=damaged_graphs())
def test_any_graph_is_used_or_refused_in_one_line(content):
    check_graph_file(content)


@pytest.mark.slow
@fuzz(LONG)
@given(content=damaged_graphs())
def test_many_graphs(content):
    check_graph_file(content)


@pytest.mark.parametrize(
    ("work", "fine"),
    [
        (lambda: None, True),
        (lambda: _refuse("model.pt is damaged"), True),
        (lambda: _refuse("two\nlines"), False),
        (lambda: 1 / 0, False),
        (lambda: signal.raise_signal(signal.SIGKILL), False),
    ],
    ids=["opens", "refuses", "two-lines", "bug", "crash"],
)
def test_a_crash_or_a_bug_is_a_finding(work, fine):
    """The control of all tests here."""
    assert apart(work).fine is fine


def _refuse(text: str) -> None:
    raise FileError(text)
