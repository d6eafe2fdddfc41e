"""ExecuTorch with XNNPACK, for the CPUs of phones and boards: one .pte file for each network."""

from __future__ import annotations

import operator
from collections import Counter

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from edgedistill.common.plugins import unknown
from edgedistill_export.passes.xnnpack import for_xnnpack
from edgedistill_export.quiet import quiet
from edgedistill_export.targets import Built, Job

with quiet():  # torchao reports each of its libraries that does not load on this machine
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeProgramManager, to_edge_transform_and_lower
    from executorch.exir.delegate import executorch_call_delegate
    from executorch.exir.lowered_backend_module import get_lowered_submodules
    from executorch.exir.passes.constant_prop_pass import constant_prop_pass

    from edgedistill_export.quantize.pt2e import quantize

__all__ = ["MIN_SHARE", "build"]

MIN_SHARE = 0.75
"""Smallest share of a network's operators that XNNPACK must take. The others run on one thread
without vector instructions."""


def build(job: Job) -> Built:
    """Export one network to a .pte file (see `targets.Builder`).

    The batch is fixed to one, since XNNPACK takes no reshape to an unknown size.

    Raises:
        ValueError: If XNNPACK takes too few of its operators, or a layer to keep does not exist.
    """
    path = job.folder / f"{job.name}.pte"
    with quiet(), torch.no_grad():
        program = _export(job)
        if job.precision == "int8":
            program = quantize(program, _quantized(job), job.calls())
        manager = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
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


def _quantized(job: Job) -> set[str]:
    """Return the paths of the layers to quantize."""
    layers = {
        path
        for path, module in job.graph.module.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    }
    for path in sorted(job.keep):
        if path not in layers:
            raise unknown("layer to keep", path, layers)
    return layers - job.keep


def _share(name: str, manager: EdgeProgramManager) -> str:
    """Describe how many operators XNNPACK took.

    Raises:
        ValueError: If XNNPACK took too few; names the others.
    """
    module = manager.exported_program().graph_module
    taken = sum(
        _operators(lowered.original_module.graph_module).total()
        for _, lowered, _ in get_lowered_submodules(module)
    )
    left = _operators(module)
    total = taken + left.total()
    if taken < MIN_SHARE * total:
        rest = ", ".join(f"{count} {kind}" for kind, count in left.most_common())
        raise ValueError(
            f"{name}: XNNPACK takes {taken} of {total} operators, under {MIN_SHARE:.0%}; "
            f"left out: {rest}"
        )
    return f"xnnpack {taken} of {total} nodes"


def _operators(module: fx.GraphModule) -> Counter[str]:
    """Count the operators in a graph by kind, except those that only carry scales."""
    passive = {executorch_call_delegate, operator.getitem}
    names = (
        str(node.target.name())
        for node in module.graph.nodes
        if node.op == "call_function" and node.target not in passive
    )
    return Counter(name for name in names if not name.startswith("quantized_decomposed::"))
