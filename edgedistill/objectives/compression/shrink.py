"""Train a smaller network by a larger one's outputs and features.

Kim et al. 2023, "BK-SDM: A Lightweight, Fast, and Cheap Version of Stable Diffusion" (arXiv
2305.15798), Eq. 1-4: task, output and feature terms. Features of self-attention in place of blocks
follow Lee et al. 2023, "KOALA" (arXiv 2312.04005), Sec. 3.3. Each feature's error is divided by
its own size, so that no term dominates, as in Zhang et al. 2024, "LAPTOP-Diff" (arXiv 2404.11098),
Sec. 3.3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from edgedistill.common.plugins import unknown
from edgedistill.common.settings import renamed
from edgedistill.compress.pruned import Pruned
from edgedistill.diffusion.denoiser import Condition, Denoiser, Guided, expand
from edgedistill.diffusion.times import stratified
from edgedistill.networks.taps import Taps
from edgedistill.objectives.base import (
    Batch,
    Losses,
    Objective,
    Player,
    Settings,
    Setup,
)
from edgedistill.objectives.prelude import Prelude

__all__ = ["TAPS", "Shrink", "SizeFirst", "feature_loss", "tap_paths"]

TAPS = {
    "blocks": re.compile(
        r"(down_blocks|up_blocks|(single_)?transformer_blocks|blocks)\.\d+|mid_block"
    ),
    "attention": re.compile(r".*\.attn1"),
}
"""Patterns of module paths whose outputs are features: whole blocks (BK-SDM), self-attention
(KOALA)."""


def tap_paths(net: nn.Module, taps: str | Sequence[str]) -> list[str]:
    """Return module paths in `net`, by a kind in `TAPS` or as they are given.

    Raises:
        ValueError: If the kind is unknown, or `net` has no module of it.
    """
    if not isinstance(taps, str):
        return list(taps)
    if taps not in TAPS:
        raise unknown("taps", taps, TAPS)
    paths = [path for path, _ in net.named_modules() if TAPS[taps].fullmatch(path)]
    if not paths:
        raise ValueError(f"{type(net).__name__} has no modules of the kind {taps!r} to tap")
    return paths


def facing(ours: nn.Module, theirs: nn.Module, path: str, origin: str) -> tuple[str, str]:
    """Return where two networks are compared: (path in `ours`, path in `theirs`).

    These are the modules themselves. If only one of two blocks changes the resolution at its end
    (the innermost that BK-SDM tiny leaves), they are their last layers before that, as in BK-SDM.
    """
    pair = (ours.get_submodule(path), theirs.get_submodule(origin))
    one, other = (any(getattr(block, name, None) for name in SAMPLERS) for block in pair)
    if one == other:
        return path, origin
    return f"{path}.{_last_layer(pair[0])}", f"{origin}.{_last_layer(pair[1])}"


def _last_layer(block: nn.Module) -> str:
    kind = "attentions" if hasattr(block, "attentions") else "resnets"
    return f"{kind}.{len(getattr(block, kind)) - 1}"


SAMPLERS = ("downsamplers", "upsamplers")


def feature_loss(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Return the mean over features of |ours - theirs|^2 / |theirs|^2 (LAPTOP-Diff, Eq. 9).

    Args:
        ours: The student's features, any shapes.
        theirs: The teacher's features, in the same order.
    """
    terms = [
        F.mse_loss(a.float(), b.float()) / b.float().square().mean().clamp(min=1e-12)
        for a, b in zip(ours, theirs, strict=True)
    ]
    return torch.stack(terms).mean()


class Shrink(Objective):
    """Trains a smaller student by eps, the teacher's output and its features, on noisy data."""

    class Config(Settings):
        """Weights of the terms (BK-SDM: all 1, features not normalised)."""

        old_keys = renamed(
            task="task_weight",
            output="output_weight",
            features="features_weight",
            drop="drop_share",
        )

        task_weight: float = Field(1.0, ge=0)
        """Weight of the distance to the training target of the network's output."""
        output_weight: float = Field(1.0, ge=0)
        """Weight of the distance to the teacher's output."""
        features_weight: float = Field(1.0, ge=0)
        """Weight of the distance of the features."""
        taps: str | tuple[str, ...] = "blocks"
        """Modules whose features are compared: blocks, attention, or module paths in the
        student."""
        drop_share: float = Field(0.1, ge=0, le=1)
        """Share of conditions replaced by the null condition, if the teacher is guided."""

    name = "shrink"

    def __init__(self, config: Shrink.Config, setup: Setup) -> None:
        self.config, self.student, self.optim = config, setup.student, setup.optim
        guided = isinstance(setup.teacher, Guided)
        self.teacher = (
            setup.teacher.denoiser if isinstance(setup.teacher, Guided) else setup.teacher
        )
        self.null = setup.teacher.null if isinstance(setup.teacher, Guided) else None
        self.drop = config.drop_share if guided else 0.0
        self.ours: Taps | None = None
        if config.features_weight > 0:
            self._tap(setup)

    def _tap(self, setup: Setup) -> None:
        ours = setup.student.net.get_submodule(setup.core)
        theirs = self.teacher.net.get_submodule(setup.core)
        pruned = setup.pruned or Pruned(ours, ())
        paths = tap_paths(ours, self.config.taps)
        pairs = [facing(ours, theirs, path, pruned.origin(path)) for path in paths]
        paths = [path for path, _ in pairs]
        self.ours = Taps(ours, paths)
        self.theirs = Taps(theirs, [path for _, path in pairs])
        device = next(ours.parameters()).device
        self.channels = [
            None if index is None else torch.tensor(index, device=device)
            for index in (pruned.channels(path) for path in paths)
        ]

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.optim)]

    def loss(self, player: str, batch: Batch) -> Losses:
        schedule, n = self.student.schedule, len(batch.x0)
        t = schedule.snap(stratified(n, batch.generator)).to(batch.x0.device)
        eps = batch.noise()
        x_t = self.student.noised(batch.x0, t, eps)
        cond = batch.cond
        if self.drop and self.null is not None:
            null = expand(self.null, n)
            keep = (torch.rand(n, generator=batch.generator) >= self.drop).to(x_t.device)
            cond = {
                name: torch.where(keep.reshape((n,) + (1,) * (value.ndim - 1)), value, null[name])
                for name, value in cond.items()
            }
        with torch.no_grad():
            truth, theirs = self._call(self.teacher, "theirs", x_t, t, cond)
        found, ours = self._call(self.student, "ours", x_t, t, cond)
        task = F.mse_loss(found, self.student.target(batch.x0, t, eps))
        output = F.mse_loss(found, truth)
        total = self.config.task_weight * task + self.config.output_weight * output
        logs = {"task": task.detach(), "output": output.detach()}
        if self.ours is not None:
            features = feature_loss(ours, self._cut(theirs))
            total = total + self.config.features_weight * features
            logs["features"] = features.detach()
        return Losses(total, logs)

    def _call(
        self, denoiser: Denoiser, side: str, x_t: Tensor, t: Tensor, cond: Condition
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the raw output, and features where there are any."""
        if self.ours is None:
            return denoiser.output(x_t, t, cond), []
        taps = self.ours if side == "ours" else self.theirs
        with taps:
            output = denoiser.output(x_t, t, cond)
        return output, taps.take()

    def _cut(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Cut the teacher's features to the channels that the student has."""
        return [
            feature
            if index is None
            else feature.index_select(1 if feature.ndim == 4 else -1, index)
            for feature, index in zip(features, self.channels, strict=True)
        ]


class SizeFirst(Prelude):
    """A method, preceded by steps in which the smaller student learns the teacher's outputs.

    Args:
        method: The method that follows.
        shrink: The loss of the first steps, on the same student.
        first: Number of first steps.
        auxiliary: Loss that is added to the method's loss of the student afterwards; None adds
            nothing.
    """

    name = "size_first"

    def __init__(
        self, method: Objective, shrink: Objective, first: int, auxiliary: Shrink | None
    ) -> None:
        super().__init__(method, shrink, first)
        self.auxiliary = auxiliary

    def loss(self, player: str, batch: Batch) -> Losses:
        losses = super().loss(player, batch)
        if batch.step < self.first or player != "student" or self.auxiliary is None:
            return losses
        size = self.auxiliary.loss(player, batch)
        return Losses(losses.total + size.total, {**losses.logs, **size.logs})
