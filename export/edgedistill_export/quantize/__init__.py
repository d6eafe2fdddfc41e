"""Quantization of ONNX graphs, and the search for layers that lose too much by it."""
