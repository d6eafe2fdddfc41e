"""Trace a torch network of a student to ONNX."""

from __future__ import annotations

import ast
import inspect
import logging
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import torch
from torch.utils._pytree import tree_map_only

from edgedistill.teachers.base import ExportGraph
from edgedistill_export import onnx_files
from edgedistill_export.passes.attention import TRANSLATIONS
from edgedistill_export.passes.times import fold_constant_times, tabulate_times
from edgedistill_runtime.manifest import Port

__all__ = ["BATCH", "OPSET", "layer_of", "ports", "trace"]

BATCH = "batch"
"""Name of the free first axis of every input and output."""

SIDES = ("height", "width")
"""Names of the free last axes of an x that may have several sizes."""

OPSET = 20
"""Operator set: the first with Gelu. From 21 on, group norms become GroupNormalization, which ONNX
Runtime's CPU kernels run 5 % (U-Net) to 12 % (decoder) slower than the form in 20."""


def trace(graph: ExportGraph, path: Path) -> None:
    """Export a network to an ONNX file with a free batch axis, and a free size if requested.

    Two traces of the same network give the same names. Weights over 2 GiB go to `path`.data.

    Raises:
        ValueError: If the network works only for the batch it was traced with, or not for all
            sizes.
    """
    # diffusers' upsampling branches at a batch of 64, around a bug of torch's; without the bound,
    # torch traces everything twice to find out. The ONNX axis is free all the same.
    batch = torch.export.Dim(BATCH, max=63)
    inputs = tuple(graph.inputs.values())
    bound = inspect.signature(graph.module.forward).bind(*inputs)
    shapes = tree_map_only(torch.Tensor, lambda _: {0: batch}, dict(bound.arguments))
    if graph.step:
        sides = zip((-2, -1), SIDES, graph.step, strict=True)
        dims = {axis + inputs[0].ndim: _multiple(name, step) for axis, name, step in sides}
        shapes[next(iter(shapes))] |= dims
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            graph.module.eval(),
            inputs,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=shapes,
            verbose=False,
            optimize=False,
            custom_translation_table=dict(TRANSLATIONS),
        )
        assert program is not None
        _drop_idle_squeezes(program.model)
        with _kept_epsilons(program.model):
            program.optimize()
    model = program.model
    if graph.times:
        tabulate_times(model, graph.times)
    else:
        fold_constant_times(model)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is None or isinstance(value.shape[0], int):
            raise ValueError(f"{path.stem}: {value.name} is fixed to the batch it was traced with")
    if graph.step:
        _name_sides(model, graph.step, path.stem)
    _name_layers(model)
    _strip(model)
    size = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
    external = onnx_files.data_file(path).name if size > onnx_files.INLINE_LIMIT else None
    onnx_ir.save(model, path, external_data=external)


def _name_sides(model: onnx_ir.Model, step: tuple[int, int], stem: str) -> None:
    """Name the free sides of x and of the outputs; ValueError if they differ."""
    borders = [model.graph.inputs[0], *model.graph.outputs]
    shapes = [value.shape for value in borders if value.shape is not None]
    if len({str(shape[-2:]) for shape in shapes}) > 1:
        height, width = step
        raise ValueError(
            f"{stem}: no one graph for the student's sizes, multiples of {height} x {width}: the "
            "network halves them further"
        )
    for shape in shapes:
        for axis, name in zip((-2, -1), SIDES, strict=True):
            shape[axis + len(shape)] = name


def _multiple(name: str, step: int) -> Any:
    """Return an axis that is a multiple of `step`."""
    return torch.export.Dim(name) if step == 1 else step * torch.export.Dim(f"_{name}")


_SCOPES = "pkg.torch.onnx.name_scopes"


@torch.no_grad()
def ports(
    graph: ExportGraph, batch: int | None = None
) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Return inputs and outputs as the manifest describes them, of any batch or a fixed one."""
    result = graph.module(*graph.inputs.values())
    results = result if isinstance(result, tuple) else (result,)
    outputs = dict(zip(graph.outputs, results, strict=True))

    def describe(tensors: dict[str, torch.Tensor], free: Collection[str]) -> tuple[Port, ...]:
        return tuple(
            Port(
                name=name,
                shape=(
                    batch or BATCH,
                    *(tensor.shape[1:-2] if name in free else tensor.shape[1:]),
                    *(SIDES if name in free else ()),
                ),
                dtype=str(tensor.dtype).removeprefix("torch."),
            )
            for name, tensor in tensors.items()
        )

    free = {"x", *outputs} if graph.step else set()
    return describe(graph.inputs, free), describe(outputs, free)


def layer_of(node: str) -> str:
    """Return the path of the module that a traced node came from, by the node's name."""
    return node.rpartition("/")[0]


@contextmanager
def _kept_epsilons(model: onnx_ir.Model) -> Iterator[None]:
    """Keep small constants, which the optimizer would take for 0 below 1e-8 and drop from sums.

    Otherwise guards against a division by 0, such as the 1e-15 of SANA's attention, would be lost.
    During the block such additions are Sum nodes of two inputs, for which the optimizer has no
    rule.
    """
    for node in model.graph:
        constants = [onnx_ir.convenience.get_const_tensor(value) for value in node.inputs if value]
        if node.op_type == "Add" and any(c is not None and _is_epsilon(c) for c in constants):
            node.op_type = "Sum"
    yield
    for node in model.graph:
        if node.op_type == "Sum" and len(node.inputs) == 2:
            node.op_type = "Add"


def _is_epsilon(constant: onnx_ir.TensorProtocol) -> bool:
    return constant.size == 1 and 0 < abs(constant.numpy().item()) <= 1e-8


def _drop_idle_squeezes(model: onnx_ir.Model) -> None:
    """Drop squeezes of axes longer than 1, which torch ignores and ONNX refuses."""
    for node in list(model.graph):
        if node.op_type != "Squeeze" or len(node.inputs) < 2:
            continue
        value, axes = node.inputs
        constant = onnx_ir.convenience.get_const_tensor(axes) if axes else None
        if not value or value.shape is None or constant is None:
            continue
        sizes = [value.shape[int(axis)] for axis in constant.numpy().reshape(-1)]
        if any(isinstance(size, int) and size != 1 for size in sizes):
            onnx_ir.convenience.replace_all_uses_with(node.outputs[0], value)
            model.graph.remove(node, safe=True)


def _name_layers(model: onnx_ir.Model) -> None:
    """Name nodes MODULE.PATH/OPERATOR_N, and the weights of layers MODULE.PATH.weight.

    The tracer folds the transposition of a linear layer's weight into a nameless constant, anew
    for every call of the layer; the calls share one here.
    """
    weights = model.graph.initializers
    for node in model.graph.all_nodes():
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        path = scopes[-2] if len(scopes) > 1 else ""
        node.name = f"{path}/{(node.name or node.op_type).removeprefix('node_')}"
        if node.op_type != "MatMul" or not path:
            continue
        weight = node.inputs[1]
        wanted = f"{path}.weight"
        if not weight or not weight.is_initializer() or not weight.name:
            continue
        if wanted not in weights:
            del weights[weight.name]
            weight.name = wanted
            model.graph.register_initializer(weight)
        elif weight.name != wanted and _equal(weight, weights[wanted]):
            node.replace_input_with(1, weights[wanted])
            if not weight.uses():
                del weights[weight.name]


def _equal(a: onnx_ir.Value, b: onnx_ir.Value) -> bool:
    first, second = a.const_value, b.const_value
    return (
        first is not None
        and second is not None
        and first.dtype == second.dtype
        and np.array_equal(first.numpy(), second.numpy())
    )


def _strip(model: onnx_ir.Model) -> None:
    """Drop the tracer's notes: stack traces with this machine's paths, a third of a small file."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's messages about torchvision and its own deprecated calls."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
