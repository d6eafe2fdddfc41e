"""Run an OpenVINO model in pieces, so that its weights are never all unpacked at once.

To run a model, OpenVINO copies every weight into the layout of its kernels, in addition to the
mapped file. With the model cut into pieces, each of which runs all calls before the next is
loaded, calibration gives the same figures with only one piece's copy at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgedistill_runtime.backends.openvino import load_openvino, without_telemetry

with without_telemetry():
    from nncf.common.engine import Engine
    from nncf.common.factory import EngineFactory

ov = load_openvino()

__all__ = ["LEAST", "Piece", "Pieces", "calibrated_in_pieces", "cut"]

Untyped: TypeAlias = Any
"""Type of OpenVINO's classes, which are untyped."""
Array: TypeAlias = NDArray[Any]
Call: TypeAlias = Mapping[str, Array]

COUNT = 8
LEAST = 64 * 2**20
"""Bytes of weights below which a piece is not worth a separate compilation."""
LEAVES = {"Constant", "Parameter"}


@dataclass
class Piece:
    """A part of a model: its inputs from calls and earlier pieces, its outputs to later ones.

    Attributes:
        results: The model's outputs that it computes.
        takes: Parameters by value; inputs of calls by their names.
        gives: Outputs by value.
    """

    results: list[Untyped] = field(default_factory=list)
    takes: dict[str, Untyped] = field(default_factory=dict)
    gives: dict[str, Untyped] = field(default_factory=dict)

    def compile(self) -> Untyped:
        """Compile the piece: inputs as in `takes`, outputs as in `results`, then as in `gives`."""
        given = [ov.opset13.result(output) for output in self.gives.values()]
        model = ov.Model([*self.results, *given], list(self.takes.values()))
        return ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def cut(model: Untyped, least: int = LEAST) -> list[Piece]:
    """Cut a model without state into pieces, along its order of execution.

    Args:
        model: The model, whose operators move to the pieces; it cannot be used afterwards.
        least: Smallest size of the weights in a piece, in bytes, where the model has as many.
    """
    places = _places(model, least)
    pieces: defaultdict[int, Piece] = defaultdict(Piece)
    for op in model.get_ordered_ops():
        place = places.get(op.get_friendly_name())
        if place is None:
            continue
        piece = pieces[place]
        if op.get_type_name() == "Result":
            piece.results.append(op)
        for port in op.inputs():
            source = port.get_source_output()
            origin = places.get(_name(source))
            if source.get_node().get_type_name() == "Constant" or origin == place:
                continue
            if origin is None:
                value = source.any_name
            else:
                value = f"{_name(source)}:{source.get_index()}"
                pieces[origin].gives[value] = source
            if value not in piece.takes:
                piece.takes[value] = _parameter(source)
            port.replace_source_output(piece.takes[value].output(0))
    return [pieces[place] for place in sorted(pieces)]


def _places(model: Untyped, least: int) -> dict[str, int]:
    """Return the piece of each operator, except constants and parameters, by name."""
    ops = [op for op in model.get_ordered_ops() if op.get_type_name() not in LEAVES]
    weights = [
        sum(
            value.get_node().get_byte_size()
            for value in op.input_values()
            if value.get_node().get_type_name() == "Constant"
        )
        for op in ops
    ]
    limit = max(sum(weights) / COUNT, least)
    done = accumulate(weights, initial=0)
    places = {op.get_friendly_name(): int(b // limit) for op, b in zip(ops, done, strict=False)}
    for result in model.get_results():
        places[result.get_friendly_name()] = places.get(_name(result.input_value(0)), 0)
    return places


def _name(output: Untyped) -> str:
    name: str = output.get_node().get_friendly_name()
    return name


def _parameter(source: Untyped) -> Untyped:
    parameter = ov.opset13.parameter(source.get_partial_shape(), source.get_element_type())
    parameter.output(0).set_names(source.get_names())
    return parameter


class Pieces(Engine):  # type: ignore[misc]  # untyped
    """NNCF's engine for a model in pieces, and calls that are known beforehand.

    Args:
        model: As in `cut`.
        calls: Inputs by name of all calls of `infer`, in order.
        least: As in `cut`.
    """

    def __init__(self, model: Untyped, calls: Sequence[Call], least: int = LEAST) -> None:
        self._outputs = _run(cut(model, least), calls)

    def infer(self, input_data: Any) -> dict[str, Array]:
        """Return the outputs of the next call, by tensor name."""
        return next(self._outputs)


def _run(pieces: Sequence[Piece], calls: Sequence[Call]) -> Iterator[dict[str, Array]]:
    """Yield the outputs of each call."""
    found: list[dict[str, Array]] = [{} for _ in calls]
    numbers = {value: i for i, value in enumerate(v for piece in pieces for v in piece.gives)}
    with TemporaryDirectory() as scratch:

        def file(call: int, value: str) -> Path:
            return Path(scratch) / f"{call}-{numbers[value]}.npy"

        for piece in pieces:
            _run_one(piece, calls, found, file)
    yield from found


def _run_one(
    piece: Piece,
    calls: Sequence[Call],
    found: Sequence[dict[str, Array]],
    file: Callable[[int, str], Path],
) -> None:
    """Run all calls of one piece, which is freed at the end."""
    compiled = piece.compile()
    request = compiled.create_infer_request()
    own = len(piece.results)
    for i, call in enumerate(calls):
        request.infer(
            [call[v] if v in call else np.load(file(i, v)) for v in piece.takes],
            share_inputs=True,
        )
        arrays = [request.get_output_tensor(k).data for k in range(len(compiled.outputs))]
        for port, array in zip(compiled.outputs[:own], arrays[:own], strict=True):
            found[i] |= dict.fromkeys(port.get_names(), array.copy())
        for value, array in zip(piece.gives, arrays[own:], strict=True):
            np.save(file(i, value), array)


@contextmanager
def calibrated_in_pieces(calls: Sequence[Call]) -> Iterator[None]:
    """Make NNCF take its statistics from `Pieces` on these calls."""
    create = EngineFactory.create
    EngineFactory.create = staticmethod(lambda model: Pieces(model, calls))
    try:
        yield
    finally:
        EngineFactory.create = staticmethod(create)
