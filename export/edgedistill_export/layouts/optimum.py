"""Bundles for ONNX Runtime in the layout that optimum's `ORTDiffusionPipeline` opens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from onnx import ModelProto

from edgedistill_export import onnx_files
from edgedistill_export.layouts.pipeline import Layout

__all__ = ["OPTIMUM"]


def _write(source: Path, to: Path, names: Mapping[str, str]) -> None:
    onnx_files.write(renamed(onnx_files.read(source), names), to)


def renamed(model: ModelProto, names: Mapping[str, str]) -> ModelProto:
    """Give inputs and outputs of a graph other names, in place.

    Raises:
        ValueError: If a name is not there, or a new one is already taken inside.
    """
    graph = model.graph
    ports = {port.name for port in (*graph.input, *graph.output)}
    inside = {name for node in graph.node for name in (*node.input, *node.output)}
    for old, new in names.items():
        if old not in ports:
            raise ValueError(f"the graph has no {old}")
        if new in inside | ports:
            raise ValueError(f"the graph has a {new} of its own")
    for port in (*graph.input, *graph.output):
        port.name = names.get(port.name, port.name)
    for node in graph.node:
        for kind in (node.input, node.output):
            for index, name in enumerate(kind):
                kind[index] = names.get(name, name)
    return model


OPTIMUM = Layout(name="optimum", target="ort", model="model.onnx", write=_write)
