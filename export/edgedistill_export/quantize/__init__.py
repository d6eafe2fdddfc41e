"""Quantization: of ONNX graphs, and the search for the layers that do not bear it."""
