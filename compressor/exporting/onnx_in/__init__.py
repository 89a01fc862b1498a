"""A network from an ONNX file: `reading.open_onnx`."""
