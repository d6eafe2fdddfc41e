"""Read a saved .mlpackage: operators in order, constants from the weight file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedistill.common.files import read_json
from edgedistill_export.mil.sdk import coremltools
from edgedistill_export.mil.values import TYPES, Stored, Value, read_blob, read_immediate

__all__ = ["Operation", "Program", "Slot", "read_package"]

_HERE = "@model_path/"
"""Prefix by which a program names the folder of its model file."""


@dataclass(frozen=True)
class Slot:
    """A named tensor with its declared type and shape."""

    name: str
    stored: Stored
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Operation:
    """One operator.

    Attributes:
        kind: Type of the operator in MIL.
        inputs: Names of the input values by parameter; lists have more than one.
        outputs: Tensors that it makes.
    """

    kind: str
    inputs: Mapping[str, Sequence[str]]
    outputs: Sequence[Slot]


@dataclass(frozen=True)
class Program:
    """The main function of a package.

    Attributes:
        path: The package.
        opset: The operator set of the program.
        inputs: Tensors that it takes.
        outputs: Names of the tensors that it returns.
        constants: Values by name, as they are stored.
        operations: Operators in order.
    """

    path: Path
    opset: str
    inputs: Sequence[Slot]
    outputs: Sequence[str]
    constants: Mapping[str, Value]
    operations: Sequence[Operation]


def read_package(path: Path) -> Program:
    """Read a package.

    Raises:
        ValueError: If it is no package, holds no ML program, or has unknown parts.
    """
    model_file = _model_file(path)
    model = coremltools.proto.Model_pb2.Model()
    model.ParseFromString(model_file.read_bytes())
    if model.WhichOneof("Type") != "mlProgram":
        raise ValueError(f"{path}: a {model.WhichOneof('Type')}, not an mlProgram")
    functions = model.mlProgram.functions
    if set(functions) != {"main"}:
        raise ValueError(f"{path}: functions {', '.join(sorted(functions))}; only main is run")
    main = functions["main"]
    block = main.block_specializations[main.opset]
    reading = _Reading(model_file.parent)
    operations = [found for op in block.operations if (found := reading.operation(op))]
    return Program(
        path=path,
        opset=main.opset,
        inputs=[_slot(entry) for entry in main.inputs],
        outputs=list(block.outputs),
        constants=reading.constants,
        operations=operations,
    )


def _model_file(package: Path) -> Path:
    try:
        manifest = read_json(package / "Manifest.json")
        root = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{package}: not an .mlpackage") from None
    return package / "Data" / str(root)


class _Reading:
    """One pass over a block of the program."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.constants: dict[str, Value] = {}
        self.files: dict[str, memoryview] = {}

    def operation(self, op: Any) -> Operation | None:
        """Read an operator; return None for a constant, which is only stored."""
        if op.blocks:
            raise ValueError(f"operator {op.type!r} holds blocks, which are not run here")
        if op.type == "const":
            self.constants[op.outputs[0].name] = self._value(op.attributes["val"])
            return None
        outputs = [_slot(entry) for entry in op.outputs]
        inputs = {
            key: [
                self._bound(bound, f"{outputs[0].name}/{key}/{index}")
                for index, bound in enumerate(argument.arguments)
            ]
            for key, argument in op.inputs.items()
        }
        # Before iOS 18 the parameters of constexpr operators are attributes.
        for key, value in op.attributes.items():
            if key != "name":
                name = f"{outputs[0].name}/{key}"
                self.constants[name] = self._value(value)
                inputs[key] = [name]
        return Operation(op.type, inputs, outputs)

    def _bound(self, bound: Any, name: str) -> str:
        if bound.WhichOneof("binding") == "name":
            return str(bound.name)
        self.constants[name] = self._value(bound.value)
        return name

    def _value(self, value: Any) -> Value:
        where = value.WhichOneof("value")
        if where == "blobFileValue":
            blob = value.blobFileValue
            return read_blob(self._file(blob.fileName), blob.offset, *_tensor_type(value.type))
        if value.immediateValue.WhichOneof("value") != "tensor":
            raise ValueError(f"value {value.immediateValue.WhichOneof('value')!r}: only tensors")
        tensor = value.immediateValue.tensor
        if tensor.WhichOneof("value") == "strings":
            return str(tensor.strings.values[0])
        return read_immediate(tensor, *_tensor_type(value.type))

    def _file(self, name: str) -> memoryview:
        if name not in self.files:
            self.files[name] = memoryview((self.home / name.removeprefix(_HERE)).read_bytes())
        return self.files[name]


def _slot(entry: Any) -> Slot:
    return Slot(entry.name, *_tensor_type(entry.type))


def _tensor_type(type_: Any) -> tuple[Stored, tuple[int, ...]]:
    kind = type_.WhichOneof("type")
    if kind != "tensorType":
        raise ValueError(f"type {kind!r}: only tensors are run here")
    tensor = type_.tensorType
    name = coremltools.proto.MIL_pb2.DataType.Name(tensor.dataType)
    if name not in TYPES:
        raise ValueError(f"numbers of type {name} are not in edgedistill_export.mil.values.TYPES")
    return TYPES[name], tuple(int(dim.constant.size) for dim in tensor.dimensions)
