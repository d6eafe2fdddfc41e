"""Values as Core ML stores them: inside the program, or in its weight file."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["BY_NAME", "TYPES", "Stored", "Value", "read_blob", "read_immediate", "unpack"]

Value: TypeAlias = "NDArray[Any] | str"


@dataclass(frozen=True)
class Stored:
    """A type of numbers in Core ML.

    Attributes:
        name: Name of the type in operators.
        numpy: NumPy type that holds it; numbers below a byte get a byte.
        bits: Number of bits in a file.
        blob: Code of the type in a weight file, 0 if it has none.
    """

    name: str
    numpy: DTypeLike
    bits: int
    blob: int = 0


TYPES = {
    "BOOL": Stored("bool", np.bool_, 8),
    "FLOAT16": Stored("fp16", np.float16, 16, blob=1),
    "FLOAT32": Stored("fp32", np.float32, 32, blob=2),
    "INT4": Stored("int4", np.int8, 4, blob=8),
    "INT8": Stored("int8", np.int8, 8, blob=4),
    "INT16": Stored("int16", np.int16, 16, blob=6),
    "INT32": Stored("int32", np.int32, 32, blob=14),
    "UINT1": Stored("uint1", np.uint8, 1, blob=9),
    "UINT2": Stored("uint2", np.uint8, 2, blob=10),
    "UINT3": Stored("uint3", np.uint8, 3, blob=12),
    "UINT4": Stored("uint4", np.uint8, 4, blob=11),
    "UINT6": Stored("uint6", np.uint8, 6, blob=13),
    "UINT8": Stored("uint8", np.uint8, 8, blob=3),
    "UINT16": Stored("uint16", np.uint16, 16, blob=7),
    "UINT32": Stored("uint32", np.uint32, 32, blob=15),
}
"""Types by their names in MIL.proto's DataType; the codes are those of MILBlob's BlobDataType."""

BY_NAME = {stored.name: stored for stored in TYPES.values()}

_SENTINEL = 0xDEADBEEF
_ENTRY = struct.Struct("<IIQQ")
"""Header of a blob: sentinel, type code, size in bytes and offset of the data."""


def read_blob(file: memoryview, offset: int, stored: Stored, shape: Sequence[int]) -> NDArray[Any]:
    """Read the tensor whose entry is at `offset` of a weight file.

    Raises:
        ValueError: If there is no such entry, or not of this type and size.
    """
    if offset + _ENTRY.size > len(file):
        raise ValueError(f"weight file: no entry at {offset}, it ends at {len(file)}")
    sentinel, code, size, start = _ENTRY.unpack_from(file, offset)
    if sentinel != _SENTINEL or code != stored.blob:
        raise ValueError(f"weight file: no {stored.name} entry at {offset}")
    needed = -(-prod(shape) * stored.bits // 8)
    if size != needed or start + size > len(file):
        raise ValueError(f"weight file: {size} bytes at {start}, {needed} needed")
    return unpack(file[start : start + size], stored, shape)


def unpack(data: bytes | memoryview, stored: Stored, shape: Sequence[int]) -> NDArray[Any]:
    """Unpack numbers without gaps, the lowest bit of the first byte first."""
    raw = np.frombuffer(data, np.uint8)
    if stored.bits >= 8:
        whole: NDArray[Any] = raw.view(stored.numpy).reshape(shape)
        return whole
    count = prod(shape)
    bits = np.unpackbits(raw, count=count * stored.bits, bitorder="little")
    digits = bits.reshape(count, stored.bits)
    numbers = (digits << np.arange(stored.bits, dtype=np.uint8)).sum(axis=1, dtype=np.uint8)
    if np.issubdtype(stored.numpy, np.signedinteger):
        sign = np.uint8(1 << (stored.bits - 1))
        numbers = (numbers ^ sign).view(np.int8) - sign.astype(np.int8)
    result: NDArray[Any] = numbers.reshape(shape)
    return result


def read_immediate(tensor: Any, stored: Stored, shape: Sequence[int]) -> NDArray[Any]:
    """Read the tensor of a TensorValue; types without a field in proto are bytes there."""
    field = tensor.WhichOneof("value")
    if field == "bytes":
        return unpack(tensor.bytes.values, stored, shape)
    values = getattr(tensor, field).values if field else ()
    return np.asarray(values, stored.numpy).reshape(shape)
