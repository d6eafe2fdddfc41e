"""int8 in exported torch programs, as XNNPACK computes it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from torch import fx
from torch.export import ExportedProgram
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from edgedistill_export.targets import Call

__all__ = ["OPERATORS", "layer_of", "quantize"]

OPERATORS = (torch.ops.aten.linear.default, torch.ops.aten.conv2d.default)
"""What a Linear or Conv2d becomes."""


def quantize(
    program: ExportedProgram,
    layers: Collection[str],
    calls: Sequence[Call] | None,
) -> ExportedProgram:
    """Put some layers of a network between quantize and dequantize operators.

    Weights are int8, symmetric, a scale a channel.

    Args:
        program: The network.
        layers: Paths of the layers.
        calls: Inputs to calibrate on: each layer's input and output get one scale, from the range
            they take in these. None for dynamic scales: found anew for each input, at run time,
            and none on outputs.

    Raises:
        ValueError: Without calls.
    """
    if calls is not None and not calls:
        raise ValueError("calibration needs at least one call of the network")
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=calls is None)
    quantizer = XNNPACKQuantizer().set_filter_function(_among(layers))
    for operator in OPERATORS:
        quantizer.set_operator_type(operator, config)
    module = prepare_pt2e(program.module(), quantizer)
    inputs = program.example_inputs[0]
    if calls is None:
        module(*inputs)  # weights find their ranges in passing
    for call in calls or ():
        module(*(torch.from_numpy(array) for array in call.values()))
    return torch.export.export(convert_pt2e(module), inputs)


def layer_of(node: fx.Node) -> str:
    """Path of the module that a node of an exported program came from; "" if unknown."""
    stack = node.meta.get("nn_module_stack") or {"": ("", "")}
    return str(list(stack.values())[-1][0])


def _among(layers: Collection[str]) -> Callable[[fx.Node], bool]:
    """The quantizer asks about weights too, which have no path and belong to the operator."""
    return lambda node: node.target not in OPERATORS or layer_of(node) in layers
