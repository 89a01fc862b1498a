"""OpenVINO: its IR, converted from the ONNX graphs, branches and INT8 included."""

from pathlib import Path


def convert(graph: Path, target: Path) -> None:
    """Write an ONNX file and its weights as `target` (.xml) and a .bin beside it, in float32."""
    import openvino

    openvino.save_model(openvino.convert_model(str(graph)), str(target), compress_to_fp16=False)
