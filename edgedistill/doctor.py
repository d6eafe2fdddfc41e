"""`edgedistill doctor`: say which targets work here and why not, and what is installed.

Nothing heavy is imported: versions come from the packages' metadata, GPUs from their driver.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgedistill_runtime.machine import cores

__all__ = ["examine", "report_lines"]

PACKAGES = (
    "edgedistill",
    "edgedistill-runtime",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "onnx",
    "onnxscript",
    "openvino",
)

ENGINES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
)
"""Distributions of ONNX Runtime, which all install the same files; only one may be there."""


def examine(everything: bool = False) -> dict[str, Any]:
    """Examine this machine.

    Args:
        everything: Whether to list teachers, methods and recipes too, which takes seconds.

    Returns:
        "system", "python", "cores", "gpus", "targets", "packages" (None: not installed) and
        "warnings", and with `everything` "teachers", "methods" and "recipes".
    """
    engines = [name for name in ENGINES if _version(name)]
    packages = {name: _version(name) for name in (*PACKAGES, *(engines or ENGINES[:1]))}
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": cores(),
        "gpus": gpu_names(),
        "targets": _targets(),
        "packages": packages,
        "warnings": clashes(engines),
        **(_lists() if everything else {}),
    }


def clashes(engines: list[str]) -> list[str]:
    """Return a warning if several distributions of ONNX Runtime are installed."""
    if len(engines) < 2:
        return []
    return [
        f"{' and '.join(engines)} overwrite each other's files: keep one, by "
        f"pip uninstall -y {' '.join(engines)}, then pip install {engines[-1]}"
    ]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def gpu_names(drivers: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """Return the names of NVIDIA's GPUs and Apple's, without importing torch."""
    if platform.system() == "Darwin":
        return ["Apple"] if platform.machine() == "arm64" else []
    found = []
    for file in sorted(drivers.glob("*/information")):
        lines = file.read_text("utf-8", "replace").splitlines()
        found += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    program = None if found else shutil.which("nvidia-smi")
    if program is None:
        return found
    command = [program, "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(  # noqa: S603  the driver's own program, and no shell
            command, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def _targets() -> list[dict[str, Any]]:
    """Return the targets, those that build here first."""
    from edgedistill_export.targets import find_target, target_names

    found = []
    for name in target_names():
        target = find_target(name)
        found.append(
            {
                "name": name,
                "problem": target.problem(),
                "precisions": list(target.precisions),
                "runs_on": list(target.runs_on),
            }
        )
    return sorted(found, key=lambda each: each["problem"] is not None)


def _lists() -> dict[str, list[str]]:
    from edgedistill.common.plugins import names
    from edgedistill.objectives import OBJECTIVES
    from edgedistill.recipes.listing import summaries
    from edgedistill.teachers import TEACHERS

    return {
        "teachers": names(TEACHERS, "edgedistill.teachers"),
        "methods": names(OBJECTIVES, "edgedistill.objectives"),
        "recipes": list(summaries()),
    }


def report_lines(found: dict[str, Any]) -> list[str]:
    """Return what `examine` found as lines for people."""
    lines = [f"warning: {warning}" for warning in found["warnings"]]
    lines.append(f"{found['system']}  Python {found['python']}  {found['cores']} CPU cores")
    lines.append(f"GPU: {', '.join(found['gpus']) or 'none'}")
    lines.append("targets")
    for target in found["targets"]:
        if target["problem"]:
            lines.append(f"  {target['name']}: no: {target['problem']}")
        else:
            precisions, devices = ", ".join(target["precisions"]), ", ".join(target["runs_on"])
            lines.append(f"  {target['name']}: yes ({precisions}); runs on {devices}")
    lines.append("packages")
    lines += [f"  {name} {held or 'not installed'}" for name, held in found["packages"].items()]
    lists = [name for name in ("teachers", "methods", "recipes") if name in found]
    lines += [f"{name}: {', '.join(found[name])}" for name in lists]
    if not lists:
        lines.append("edgedistill doctor --all lists teachers, methods and recipes too.")
    return lines
