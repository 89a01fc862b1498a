"""A model leaves the tool: ONNX files that are written only after ONNX Runtime gave the same outputs as torch."""
