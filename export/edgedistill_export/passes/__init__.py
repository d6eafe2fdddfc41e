"""Changes to an ONNX graph: model in, model out, a file each."""
