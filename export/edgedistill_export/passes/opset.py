"""Raise the operator set of a model, for types that came with a later one."""

from __future__ import annotations

import onnx

__all__ = ["raise_opset"]


def raise_opset(model: onnx.ModelProto, version: int) -> None:
    """Declare at least this operator set, in place.

    Between 20, at which graphs are traced, and 22, operators only gain types, except group norms,
    which are traced into other operators.
    """
    for opset in model.opset_import:
        if opset.domain == "":
            opset.version = max(opset.version, version)
