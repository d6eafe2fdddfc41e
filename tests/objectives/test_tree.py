"""The tree of classes below `Objective` is shallow: methods hold parts, and inherit little."""

import importlib
import pkgutil

from edgedistill import objectives
from edgedistill.objectives.base import Objective

DEEPEST = 3


def chains(kind: type[Objective]) -> list[tuple[str, ...]]:
    """Every way from a class down to its last subclasses in the package, by names."""
    below = [k for k in kind.__subclasses__() if k.__module__.startswith(objectives.__name__)]
    return [(kind.__name__, *rest) for k in below for rest in chains(k)] or [(kind.__name__,)]


def test_no_method_is_farther_below_objective_than_three():
    for module in pkgutil.walk_packages(objectives.__path__, f"{objectives.__name__}."):
        importlib.import_module(module.name)
    found = sorted({chain[1:] for chain in chains(Objective)}, key=len)
    assert len(found) > 50
    assert ("Matching", "DMD2", "ASD") in found
    deep = [" < ".join(chain) for chain in found if len(chain) > DEEPEST]
    assert not deep, "\n".join(deep)
