"""int8 quantization of exported torch programs, as XNNPACK computes it."""

from __future__ import annotations

from collections import Counter
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
"""Operators that a Linear or Conv2d becomes."""


def quantize(
    program: ExportedProgram, layers: Collection[str], calls: Sequence[Call]
) -> ExportedProgram:
    """Put some layers of a network between quantize and dequantize operators.

    Weights are int8, symmetric, with one scale for each channel; inputs and outputs of a layer are
    int8, with one scale and zero point for each tensor, from their range in `calls`. (Scales found
    at run time would be 5 dB closer and need no output scale, but lowered to XNNPACK their
    convolutions mix up memory layouts and give other numbers.) Layers that are called several
    times stay in floating point.

    Args:
        program: The network, fixed to a batch of one.
        layers: Paths of the layers.
        calls: Inputs of the network to calibrate on.

    Raises:
        ValueError: If there are no calls.
    """
    if not calls:
        raise ValueError("calibration needs at least one call of the network")
    exported = program.module()
    quantizer = _OnlyLayers().set_filter_function(_among(_called_once(exported, layers)))
    for kind in OPERATORS:
        quantizer.set_operator_type(kind, get_symmetric_quantization_config(is_per_channel=True))
    module = prepare_pt2e(exported, quantizer)
    for call in calls:
        module(*(torch.from_numpy(array) for array in call.values()))
    converted = _one_user_each(convert_pt2e(module))
    return torch.export.export(converted, program.example_inputs[0])


def _called_once(module: fx.GraphModule, layers: Collection[str]) -> set[str]:
    """Leave out layers with several calls: XNNPACK would give one call's bias, scaled, to all."""
    calls = Counter(layer_of(node) for node in module.graph.nodes if node.target in OPERATORS)
    return {layer for layer in layers if calls[layer] <= 1}


class _OnlyLayers(XNNPACKQuantizer):  # type: ignore[misc]
    """Quantizer that does not extend a layer's int8 to the following views and means."""

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        annotated: fx.GraphModule = self._annotate_for_quantization_config(model)
        return annotated


def _one_user_each(module: fx.GraphModule) -> fx.GraphModule:
    """Give each user a dequantize operator of its own.

    XNNPACK's partitions include the dequantize before an operator; sharing one makes partitions
    form a cycle, or tensors have another partition's memory layout.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.quantized_decomposed.dequantize_per_tensor.default:
            for user in list(node.users)[1:]:
                with graph.inserting_before(user):
                    user.replace_input_with(node, graph.node_copy(node))
    module.recompile()
    return module


def layer_of(node: fx.Node) -> str:
    """Return the path of the module that an exported node came from, "" if it is unknown."""
    stack = node.meta.get("nn_module_stack") or {"": ("", "")}
    return str(list(stack.values())[-1][0])


def _among(layers: Collection[str]) -> Callable[[fx.Node], bool]:
    """Return a filter of nodes; weights pass, as they have no path but belong to an operator."""
    return lambda node: node.target not in OPERATORS or layer_of(node) in layers
