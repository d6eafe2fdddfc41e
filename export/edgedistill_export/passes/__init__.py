"""Passes that change an ONNX graph, from model to model, one file each."""
