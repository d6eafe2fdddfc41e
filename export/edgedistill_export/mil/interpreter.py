"""Run a program with torch, rounding every result to the type that the program declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgedistill_export.mil.constexpr import CONSTEXPR
from edgedistill_export.mil.elementwise import ELEMENTWISE
from edgedistill_export.mil.layers import LAYERS
from edgedistill_export.mil.reader import Operation, Program, Slot
from edgedistill_export.mil.shapes import SHAPES
from edgedistill_export.mil.values import Value

__all__ = ["OPERATORS", "Interpreter"]

OPERATORS = {**ELEMENTWISE, **LAYERS, **SHAPES}
"""Functions by operator; operators on weights before a program runs are in `CONSTEXPR`."""

LISTS = {"concat", "einsum", "stack"}
"""Operators whose `values` are a list even if there is only one."""

WORKING: Mapping[str, tuple[torch.dtype, torch.dtype]] = {
    "bool": (torch.bool, torch.bool),
    "fp16": (torch.float16, torch.float32),
    "fp32": (torch.float32, torch.float32),
    "int8": (torch.int8, torch.int64),
    "int16": (torch.int16, torch.int64),
    "int32": (torch.int32, torch.int64),
    "uint8": (torch.uint8, torch.int64),
    "uint16": (torch.uint16, torch.int64),
}
"""Types by declared type: the one a result is rounded to, and the one that holds it between
operators."""

Working: TypeAlias = "Tensor | str"


class Interpreter:
    """A Core ML program ready to run.

    An operator computes in float32 and its result is rounded once to the declared type, so float16
    loses digits and overflows where it does on a device, except for the order of sums.

    Raises:
        ValueError: If the program has an unknown operator.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        for operation in program.operations:
            if operation.kind not in OPERATORS.keys() | CONSTEXPR.keys():
                raise ValueError(
                    f"{program.path.name}: operator {operation.kind!r} is in no table of "
                    "edgedistill_export.mil (interpreter.OPERATORS, constexpr.CONSTEXPR)"
                )
        stored = dict(program.constants)
        for operation in program.operations:
            if operation.kind in CONSTEXPR:
                stored[operation.outputs[0].name] = _expand(operation, stored)
        self._steps = [op for op in program.operations if op.kind in OPERATORS]
        used = {n for op in self._steps for names in op.inputs.values() for n in names}
        used.update(program.outputs)
        self.constants = {name: _working(stored[name]) for name in stored.keys() & used}
        self._dead = _last_uses(self._steps, program.outputs)

    @torch.inference_mode()
    def __call__(self, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run the program.

        Args:
            inputs: Inputs by name, as the program declares them.

        Returns:
            The program's outputs by name.

        Raises:
            ValueError: If an input is missing or has another shape, or if an operator makes
                another shape than the program says.
        """
        values: dict[str, Working] = dict(self.constants)
        for slot in self.program.inputs:
            if slot.name not in inputs:
                raise ValueError(f"{self.program.path.name}: input {slot.name!r} is missing")
            values[slot.name] = _rounded(_working(inputs[slot.name]), slot, "input")
        for operation, dead in zip(self._steps, self._dead, strict=True):
            results = OPERATORS[operation.kind](**_arguments(operation, values))
            if isinstance(results, Tensor):
                results = (results,)
            for slot, result in zip(operation.outputs, results, strict=True):
                values[slot.name] = _rounded(result, slot, operation.kind)
            for name in dead:
                values.pop(name, None)
        return {name: _numpy(values[name]) for name in self.program.outputs}


def _arguments(operation: Operation, values: Mapping[str, Working]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, names in operation.inputs.items():
        listed = key == "values" and operation.kind in LISTS
        found[key] = [values[name] for name in names] if listed else values[names[0]]
    return found


def _rounded(value: Working, slot: Slot, kind: str) -> Tensor:
    assert isinstance(value, Tensor)
    if tuple(value.shape) != slot.shape:
        shape = tuple(value.shape)
        raise ValueError(f"{kind} {slot.name!r}: shape {shape}, the program says {slot.shape}")
    stored, working = WORKING[slot.stored.name]
    return value.to(stored).to(working)


def _expand(operation: Operation, stored: Mapping[str, Value]) -> NDArray[Any]:
    slot = operation.outputs[0]
    arguments = {key: stored[names[0]] for key, names in operation.inputs.items()}
    return CONSTEXPR[operation.kind](**arguments).astype(slot.stored.numpy).reshape(slot.shape)


def _working(value: Value) -> Working:
    if isinstance(value, str):
        return value
    if np.issubdtype(value.dtype, np.bool_):
        return torch.tensor(value)
    kind = np.float32 if np.issubdtype(value.dtype, np.floating) else np.int64
    return torch.tensor(value.astype(kind))


def _numpy(value: Working) -> NDArray[Any]:
    assert isinstance(value, Tensor)
    result: NDArray[Any] = value.numpy()
    return result


def _last_uses(steps: Sequence[Operation], outputs: Sequence[str]) -> list[list[str]]:
    """Return for every step the values that no later step reads."""
    seen = set(outputs)
    dead: list[list[str]] = []
    for operation in reversed(steps):
        names = {name for group in operation.inputs.values() for name in group}
        names.update(slot.name for slot in operation.outputs)
        dead.append(sorted(names - seen))
        seen |= names
    return dead[::-1]
