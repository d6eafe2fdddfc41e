"""One student of several depths: one set of weights, trained at each depth, chosen at export.

Yu et al. 2019, "Slimmable Neural Networks" (arXiv 1812.08928), in depth instead of width: networks
that are parts of one another share their weights and are trained in turns. If the method has a
target network, it stays the whole network, which thus teaches its parts (Yu & Huang 2019,
"Universally Slimmable Networks", arXiv 1903.05134, Sec. 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch

from edgedistill.compress.plan import Plan, share
from edgedistill.compress.pruned import Pruned
from edgedistill.objectives.base import Batch, Losses, Objective, Setup, Wrapper

__all__ = ["Elastic"]


class Elastic(Wrapper):
    """A method whose student has another depth at each update, the same on all ranks.

    Args:
        method: The method, on the whole student.
        setup: Setup that the method was made from.
        plans: Plans of the additional depths by name.
        make: Makes the method of a depth from its setup, where each needs its own; by default all
            depths share `method`.
    """

    name = "elastic"

    def __init__(
        self,
        method: Objective,
        setup: Setup,
        plans: Mapping[str, Plan],
        make: Callable[[Setup], Objective] | None = None,
    ) -> None:
        super().__init__(method)
        self.net, self.core = setup.student.net, setup.core
        try:
            whole = self.net.get_submodule(self.core)
        except AttributeError:
            raise ValueError(
                f"compress.elastic: {method.name} trains a network around the student's, in which "
                "its depths cannot take turns; choose another method"
            ) from None
        self.depths = {"": whole, **{name: share(plan, whole) for name, plan in plans.items()}}
        self.methods = dict.fromkeys(self.depths, method)
        if make is None:
            return
        for name, plan in plans.items():
            with self._at(name):
                pruned = Pruned(self.depths[name], (plan,))
                self.methods[name] = make(replace(setup, pruned=pruned))

    @contextmanager
    def _at(self, depth: str) -> Iterator[None]:
        """Give the student this depth during the block."""
        self.net.set_submodule(self.core, self.depths[depth])
        try:
            yield
        finally:
            self.net.set_submodule(self.core, self.depths[""])

    def started(self, step: int) -> None:
        for method in dict.fromkeys(self.methods.values()):
            method.started(step)

    def loss(self, player: str, batch: Batch) -> Losses:
        # Followers also change depth, as they need samples of every depth.
        index = int(torch.randint(len(self.depths), (), generator=batch.shared))
        name = list(self.depths)[index]
        with self._at(name):
            losses = self.methods[name].loss(player, batch)
        if player != "student":
            return losses
        label = f"loss_{name}" if name else "loss_whole"
        return Losses(losses.total, {**losses.logs, label: losses.total.detach()})
