"""`edgedistill doctor`: what is installed, and which targets work here and why not."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from edgedistill import recipes
from edgedistill.common.plugins import names
from edgedistill.objectives import OBJECTIVES
from edgedistill.teachers import TEACHERS

__all__ = ["report_lines"]

PACKAGES = (
    "edgedistill",
    "edgedistill-runtime",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "onnx",
    "onnxscript",
    "onnxruntime",
)


def report_lines() -> list[str]:
    """Lines for a terminal."""
    from edgedistill_export import find_target, target_names

    lines = [f"{platform.platform()}  Python {platform.python_version()}"]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    lines.append(f"GPU {gpu}  torch threads {torch.get_num_threads()}")
    for package in PACKAGES:
        try:
            lines.append(f"  {package} {version(package)}")
        except PackageNotFoundError:
            lines.append(f"  {package} not installed")
    lines.append(f"teachers  {', '.join(names(TEACHERS, 'edgedistill.teachers'))}")
    lines.append(f"methods   {', '.join(names(OBJECTIVES, 'edgedistill.objectives'))}")
    lines.append(f"recipes   {', '.join(recipes.shipped())}")
    lines.append("targets")
    for name in target_names():
        target = find_target(name)
        problem = target.problem()
        state = f"no: {problem}" if problem else f"yes ({', '.join(target.precisions)})"
        lines.append(f"  {name}: {state}; runs on {', '.join(target.runs_on)}")
    return lines
