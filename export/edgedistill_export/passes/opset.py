"""A later version of the standard, for types that came with it."""

from __future__ import annotations

import onnx

__all__ = ["raise_opset"]


def raise_opset(model: onnx.ModelProto, version: int) -> None:
    """Declare at least this version, in place.

    Between 20, at which graphs are traced, and 22, operators learn types and, but for group norms,
    which are traced into others, change nothing else.
    """
    for opset in model.opset_import:
        if opset.domain == "":
            opset.version = max(opset.version, version)
