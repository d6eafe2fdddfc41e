"""ExecuTorch with XNNPACK, for the CPUs of phones and boards: one .pte file for each network."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Iterator

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from edgedistill.common.plugins import unknown
from edgedistill_export.passes.xnnpack import for_xnnpack
from edgedistill_export.quiet import quiet
from edgedistill_export.targets import Built, Job

with quiet():  # torchao reports each of its libraries that does not load on this machine
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.utils.xnnpack_constants import XNN_MAX_TENSOR_DIMS
    from executorch.exir import EdgeProgramManager, to_edge_transform_and_lower
    from executorch.exir.delegate import executorch_call_delegate
    from executorch.exir.lowered_backend_module import get_lowered_submodules
    from executorch.exir.passes.constant_prop_pass import constant_prop_pass

    from edgedistill_export.quantize.pt2e import quantize

__all__ = ["MIN_SHARE", "build"]

MIN_SHARE = 0.75
"""Smallest share of a network's arithmetic that XNNPACK must take. The rest runs on one thread
without vector instructions."""

_MOVES = frozenset(
    {
        *("_clone_dim_order", "_to_copy", "_to_dim_order_copy", "alias_copy", "arange", "cat"),
        *("clone", "constant_pad_nd", "copy", "embedding", "expand_copy", "flip", "full"),
        *("full_like", "gather", "index", "index_select", "permute_copy", "repeat", "select_copy"),
        *("select_scatter", "slice_copy", "slice_scatter", "split_copy", "split_with_sizes_copy"),
        *("squeeze_copy", "stack", "t_copy"),
        *("transpose_copy", "unbind_copy", "unsqueeze_copy", "view_copy"),
    }
)
"""Operators that compute nothing: they move numbers, look them up, or change their type."""

_PRODUCTS = frozenset({"addmm", "baddbmm", "bmm", "convolution", "linear", "matmul", "mm"})
"""Operators with a sum of products for each number of their result."""


def build(job: Job) -> Built:
    """Export one network to a .pte file (see `targets.Builder`).

    The batch is fixed to one, since XNNPACK takes no reshape to an unknown size.

    Raises:
        ValueError: If XNNPACK takes too little of its arithmetic, or `keep` names no layer of it.
    """
    path = job.folder / f"{job.name}.pte"
    with quiet(), torch.no_grad():
        program = _export(job)
        if job.precision == "int8":
            program = quantize(program, _quantized(job), job.calls())
        manager = to_edge_transform_and_lower(program, partitioner=[_partitioner()])
        share = _share(job.name, manager)
        with path.open("wb") as file:
            manager.to_executorch().write_to_file(file)
    return Built(files=[path], batch=1, notes={"delegated": share})


def _export(job: Job) -> ExportedProgram:
    inputs = tuple(tensor[:1].clone() for tensor in job.graph.inputs.values())
    program = torch.export.export(job.graph.module.eval(), inputs)
    # Only constants can be weights, and some result from arithmetic on constants.
    folded: ExportedProgram = constant_prop_pass(for_xnnpack(program))
    return folded


def _partitioner() -> XnnpackPartitioner:
    """Return XNNPACK's partitioner, which would take tensors of more axes than XNNPACK has."""
    return XnnpackPartitioner(
        [type(each.__name__, (_FewAxes, each), {}) for each in ALL_PARTITIONER_CONFIGS]
    )


class _FewAxes:
    """Leaves operators on tensors of too many axes to ExecuTorch's portable kernels."""

    def check_constraints(self, node: fx.Node, program: ExportedProgram) -> bool:
        ranks = [len(_shape(each)) for each in (node, *node.all_input_nodes)]
        if max(ranks) > XNN_MAX_TENSOR_DIMS:
            return False
        return bool(super().check_constraints(node, program))  # type: ignore[misc]


def _quantized(job: Job) -> set[str]:
    """Return the paths of the layers to quantize."""
    layers = {
        path
        for path, module in job.graph.module.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d))
    }
    for path in sorted(job.keep):
        if path not in layers:
            raise unknown("layer to keep", path, layers)
    return layers - job.keep


def _share(name: str, manager: EdgeProgramManager) -> str:
    """Describe how much of the arithmetic XNNPACK took.

    Raises:
        ValueError: If that is too little, naming the operators left out.
    """
    module = manager.exported_program().graph_module
    inside = [low.original_module.graph_module for _, low, _ in get_lowered_submodules(module)]
    taken = [node for each in inside for node in _operators(each)]
    left = list(_operators(module))
    done, rest = sum(map(work, taken)), sum(map(work, left))
    share = done / (done + rest) if done + rest else 1.0
    if share < MIN_SHARE:
        names = Counter(_name(node) for node in left if work(node))
        kinds = ", ".join(f"{count} {kind}" for kind, count in names.most_common())
        raise ValueError(
            f"{name}: XNNPACK takes {share:.1%} of the arithmetic, under {MIN_SHARE:.0%}; "
            f"left out: {kinds}"
        )
    counts = f"{len(taken)} of {len(taken) + len(left)} nodes"
    return f"xnnpack {counts}, {share:.1%} of the arithmetic"


def _operators(module: fx.GraphModule) -> Iterator[fx.Node]:
    """Yield the operators of a graph, except those that only carry scales."""
    passive = {executorch_call_delegate, operator.getitem}
    for node in module.graph.nodes:
        called = node.op == "call_function" and node.target not in passive
        if called and not _name(node).startswith("quantized_decomposed::"):
            yield node


def _name(node: fx.Node) -> str:
    """Return an operator's name as namespace::operator.overload."""
    name = getattr(node.target, "name", None)
    return str(name()) if callable(name) else str(node.target)


def work(node: fx.Node) -> int:
    """Count the numbers that an operator computes, each once for every term of its sum."""
    kind = _name(node).rpartition("::")[2].partition(".")[0]
    if kind in _MOVES:
        return 0
    shapes = [_shape(each) for each in node.all_input_nodes]
    result = math.prod(_shape(node))
    if kind not in _PRODUCTS:
        return max([result, *map(math.prod, shapes)])
    # x and the weight, after a bias in those that add.
    x, weight = shapes[1:3] if kind in ("addmm", "baddbmm") else shapes[:2]
    return result * (math.prod(weight[1:]) if kind == "convolution" else x[-1])


def _shape(node: fx.Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    first = value[0] if isinstance(value, tuple | list) else value
    return tuple(map(int, first.shape)) if isinstance(first, torch.Tensor) else ()
