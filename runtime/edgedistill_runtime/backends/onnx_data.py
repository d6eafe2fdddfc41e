"""Find the files of an ONNX graph's weights in its protobuf, without the onnx package."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

__all__ = ["external_files"]

_CHILDREN = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {1: "key", 2: "value"},
}
"""Fields that lead to a tensor's external_data, by message of onnx.proto."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
"""Wire types of protobuf."""


def external_files(path: Path) -> set[str]:
    """Return locations of the external data of all tensors in an .onnx file, as written in it.

    Raises:
        ValueError: If the file is no protobuf.
    """
    found = set()
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise ValueError("is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            todo = [("model", 0, len(data))]
            while todo:
                kind, start, end = todo.pop()
                fields = list(_fields(data, start, end, _CHILDREN[kind]))
                if kind == "entry":
                    words = {child: data[a:b] for child, a, b in fields}
                    if words.get("key") == b"location":
                        found.add(words.get("value", b"").decode(errors="replace"))
                else:
                    todo += fields
    return found


def _fields(
    data: mmap.mmap, start: int, end: int, wanted: dict[int, str]
) -> Iterator[tuple[str, int, int]]:
    """Yield the wanted children of a message at start .. end: (kind, start, end)."""
    at = start
    while at < end:
        tag, at = _varint(data, at, end)
        field, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            _, at = _varint(data, at, end)
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        elif wire == _LENGTH:
            length, at = _varint(data, at, end)
            if field in wanted and at + length <= end:
                yield wanted[field], at, at + length
            at += length
        else:
            raise ValueError("is no ONNX graph")
    if at != end:
        raise ValueError("is no ONNX graph, or only a part of one")


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("is no ONNX graph, or only a part of one")
