"""Distil diffusion and flow teachers, export the students, prove and measure them.

    import edgedistill as ed

    recipe = ed.load_recipe("emoji-4step", **{"train.steps": 100})
    run = ed.distill(recipe, out="runs/mine")
    bundle = run.student.export(target="ort")
    print(ed.bench([run.student, bundle]))

Submodules are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgedistill.students.converting import Converted, convert
    from edgedistill.verbs.measuring import Compared, Results, bench, compare, evaluate, report
    from edgedistill.verbs.publishing import push
    from edgedistill.verbs.students import Bundle, StudentDir, adopt, load_bundle, load_student
    from edgedistill.verbs.training import CostReport, TrainedRun, distill, load_recipe, plan

__all__ = [
    "Bundle",
    "Compared",
    "Converted",
    "CostReport",
    "Results",
    "StudentDir",
    "TrainedRun",
    "adopt",
    "bench",
    "compare",
    "convert",
    "distill",
    "evaluate",
    "load_bundle",
    "load_recipe",
    "load_student",
    "plan",
    "push",
    "report",
]

_PLACES = {
    "edgedistill.students.converting": ("Converted", "convert"),
    "edgedistill.verbs.measuring": (
        "Compared",
        "Results",
        "bench",
        "compare",
        "evaluate",
        "report",
    ),
    "edgedistill.verbs.publishing": ("push",),
    "edgedistill.verbs.students": (
        "Bundle",
        "StudentDir",
        "adopt",
        "load_bundle",
        "load_student",
    ),
    "edgedistill.verbs.training": ("CostReport", "TrainedRun", "distill", "load_recipe", "plan"),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("edgedistill")
    if name not in _MODULES:
        raise AttributeError(f"module 'edgedistill' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
