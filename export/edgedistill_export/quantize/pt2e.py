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
    program: ExportedProgram, layers: Collection[str], calls: Sequence[Call]
) -> ExportedProgram:
    """Put some layers of a network between quantize and dequantize operators.

    Weights are int8, symmetric, a scale a channel; inputs and outputs of a layer int8, one scale
    and zero point a tensor, from the range they take in `calls`. (Scales found at run time would
    be 5 dB closer and need no output scale, but lowered to XNNPACK their convolutions mix up
    memory layouts and give other numbers.)

    Args:
        program: The network, fixed to a batch of one.
        layers: Paths of the layers.
        calls: Inputs of the network to calibrate on.

    Raises:
        ValueError: Without calls.
    """
    if not calls:
        raise ValueError("calibration needs at least one call of the network")
    quantizer = XNNPACKQuantizer().set_filter_function(_among(layers))
    for kind in OPERATORS:
        quantizer.set_operator_type(kind, get_symmetric_quantization_config(is_per_channel=True))
    module = prepare_pt2e(program.module(), quantizer)
    for call in calls:
        module(*(torch.from_numpy(array) for array in call.values()))
    return torch.export.export(convert_pt2e(module), program.example_inputs[0])


def layer_of(node: fx.Node) -> str:
    """Path of the module that a node of an exported program came from, "" if it tells none."""
    stack = node.meta.get("nn_module_stack") or {"": ("", "")}
    return str(list(stack.values())[-1][0])


def _among(layers: Collection[str]) -> Callable[[fx.Node], bool]:
    """The quantizer asks about weights too, which tell no path and belong to the operator."""
    return lambda node: node.target not in OPERATORS or layer_of(node) in layers
