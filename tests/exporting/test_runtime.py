"""Running .onnx files that come from anywhere."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compressor.errors import CompressorError, FileError
from compressor.exporting.runtime import OnnxModel


def doubling(path: Path, batch: int | str = "n", inputs: int = 1, dtype: int = TensorProto.FLOAT) -> Path:
    """A file that adds its inputs (one: to itself), for images of shape (1, 2, 2)."""
    ends = [helper.make_tensor_value_info(f"x{i}", dtype, [batch, 1, 2, 2]) for i in range(inputs)]
    output = helper.make_tensor_value_info("y", dtype, [batch, 1, 2, 2])
    node = helper.make_node("Add", ["x0", f"x{inputs - 1}"], ["y"])
    graph = helper.make_graph([node], "adds", ends, [output])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_batches_go_through(tmp_path: Path) -> None:
    model = OnnxModel(doubling(tmp_path / "net.onnx"), threads=1)
    assert model.input_shape == (1, 2, 2) and model.batch is None
    images = np.arange(12, dtype=np.float32).reshape(3, 1, 2, 2)
    np.testing.assert_array_equal(model(images), 2 * images)


def test_input_is_cast_to_the_files_type(tmp_path: Path) -> None:
    model = OnnxModel(doubling(tmp_path / "net.onnx", dtype=TensorProto.FLOAT16))
    output = model(np.ones((1, 1, 2, 2), np.float64))
    assert output.dtype == np.float16 and (output == 2).all()


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_fixed_batch_is_fed_in_pieces(count: int, tmp_path: Path) -> None:
    model = OnnxModel(doubling(tmp_path / "net.onnx", batch=2))
    assert model.batch == 2
    images = np.random.default_rng(0).random((count, 1, 2, 2), np.float32)
    np.testing.assert_array_equal(model(images), 2 * images)


def test_wrong_shape_names_both_shapes(tmp_path: Path) -> None:
    model = OnnxModel(doubling(tmp_path / "net.onnx"))
    with pytest.raises(CompressorError, match=r"shape 1x3x2x2, it takes anyx1x2x2"):
        model(np.zeros((1, 3, 2, 2)))


def test_files_that_are_no_model_are_refused_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = doubling(tmp_path / "net.onnx").read_bytes()
    contents = {"empty": b"", "text": b"not a model\n" * 40, "cut off": whole[: len(whole) // 2]}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in (*contents, "missing", "."):
        with pytest.raises(FileError) as caught:
            OnnxModel(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_several_inputs_are_named_in_the_refusal(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"takes 2 inputs \(x0, x1\)"):
        OnnxModel(doubling(tmp_path / "net.onnx", inputs=2))
