"""Scale-wise distillation: a student whose steps grow from small to full size.

Starodubcev et al. 2025, "Scale-wise Distillation of Diffusion Models" (arXiv 2503.16397), Sec. 3:
what a step adds at much noise is coarse, so that early steps run on small x, and each later one on
what the one before made, upscaled (bicubic) and noised to its time. In training, data at the size
before are upscaled in the same way and noised, the student predicts clean data at its own size,
and matching, GAN and patch losses compare it with data of that size. The teacher and the fake
score see small x as they are: a teacher that has learned nothing of small pictures says little of
them.

Small data are small pictures, encoded: their latents are not those of large pictures made small.
As in the paper's code, pictures are made small by the means of areas.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.sizes import check_sizes, reduced, resized, shape_at
from edgedistill.diffusion.solvers import init_scale
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.networks.scaling import latents_of, picture_of
from edgedistill.objectives.base import Batch, Losses, Setup
from edgedistill.objectives.matching.pdm import PDM
from edgedistill.objectives.matching.rollout import Rollout

__all__ = ["SWD"]

Small = Callable[[Batch, float], Tensor]
"""(batch, size) -> its data at that size, (N, ...)."""


@dataclass(frozen=True)
class Sized(Batch):
    """A batch whose x0 is at one of the sizes.

    Attributes:
        size: Which.
        whole: The batch at the full size.
    """

    size: float = 1.0
    whole: Batch | None = None


class MultiResolutionRollout(Rollout):
    """Samples of the student's own steps, each at its size; batches are `Sized`.

    Args:
        student: The student.
        times: The student's steps (steps + 1,).
        sampler: Rule by which a step lands.
        source: Inputs of later steps, as in `Rollout`.
        sizes: The size of each step.
        small: Function that makes data small.
    """

    def __init__(
        self,
        student: Denoiser,
        times: Tensor,
        sampler: str,
        source: Literal["simulate", "data"],
        sizes: Sequence[float],
        small: Small,
    ) -> None:
        super().__init__(student, times, sampler, source)
        self.sizes, self.small = list(sizes), small

    def index(self, batch: Batch) -> int:
        """Draw a step of the batch's size, the same on all ranks."""
        assert isinstance(batch, Sized)
        alike = [i for i, size in enumerate(self.sizes) if size == batch.size]
        return alike[int(torch.randint(len(alike), (), generator=batch.shared))]

    def clean(self, index: int, batch: Batch) -> Tensor:
        assert isinstance(batch, Sized)
        before = self.sizes[index - 1]
        if before == batch.size:
            return batch.x0
        assert batch.whole is not None
        return resized(self.small(batch.whole, before), *batch.x0.shape[-2:])

    def simulate(self, index: int, batch: Batch) -> Tensor:
        assert isinstance(batch, Sized)
        assert batch.whole is not None
        shapes = [shape_at(batch.whole.x0.shape, size) for size in self.sizes]
        start = replace(batch, x0=batch.x0.new_empty(shapes[0]))
        x_t = init_scale(self.student.schedule, self.times[0]) * start.noise()
        steps = zip(pairwise(self.times[: index + 1]), pairwise(shapes), strict=False)
        for (t, s), (here, there) in steps:
            x0: Tensor = self.student(x_t, t.to(x_t.device), batch.cond)
            if there != here:
                x0 = resized(x0, *there[-2:])
            x_t = self.land(x_t, x0, t, s, replace(batch, x0=x0))
        return x_t


class SWD(PDM):
    """PDM on a student whose steps grow."""

    class Config(PDM.Config):
        """Hyperparameters (the paper's on SD3.5 in 4 steps)."""

        sizes: tuple[float, ...] = (0.5, 0.625, 0.75, 1.0)
        """Fraction of the full height and width at each step."""
        small: Literal["pictures", "latents"] = "pictures"
        """Whether the pictures are made small and then encoded by the teacher's autoencoder (from
        `data.pictures`, or the teacher's own data), or x0 itself is."""
        rollout: Literal["simulate", "data"] = Field("data")
        """Inputs of later steps: noised data, upscaled from the size before, or the student's own
        samples, upscaled likewise."""

        @field_validator("sizes")
        @classmethod
        def _grow(cls, sizes: tuple[float, ...]) -> tuple[float, ...]:
            if not sizes:
                raise ValueError("one for each step")
            check_sizes(sizes)
            return sizes

    name = "swd"
    config: Config

    @classmethod
    def wants_originals(cls, config: Any) -> tuple[str, str] | None:
        asked = config.small == "pictures" and min(config.sizes) < 1
        return ("small=pictures", "small=latents") if asked else None

    def __init__(self, config: SWD.Config, setup: Setup) -> None:
        self.sizes, self.vae = config.sizes, setup.autoencoder
        self._check(config, setup)
        rollout = MultiResolutionRollout(
            setup.student, setup.times, setup.sampler, config.rollout, self.sizes, self.small
        )
        super().__init__(config, setup, rollout)

    def _check(self, config: SWD.Config, setup: Setup) -> None:
        """Raise a ValueError if such steps cannot be taken here."""
        steps, (x0, cond) = len(setup.times) - 1, setup.example
        if len(self.sizes) != steps:
            raise ValueError(
                f"objective.sizes: {len(self.sizes)} with student.steps={steps}; give one a step"
            )
        if min(self.sizes) == 1:
            return
        if setup.sampler != "renoise":
            raise ValueError(
                f"student.sampler={setup.sampler}: a step that grows draws noise, which makes the "
                "larger x right; choose student.sampler=renoise"
            )
        time = setup.times[0].to(x0.device)
        for size in sorted(set(self.sizes)):
            try:
                shape = shape_at(x0.shape[1:], size)
            except ValueError as error:
                raise ValueError(f"objective.sizes: {error}") from None
            try:
                with torch.no_grad():
                    found = setup.student(x0.new_zeros(len(x0), *shape), time, cond).shape[1:]
            except (RuntimeError, ValueError):
                found = None
            if found != shape:
                raise ValueError(
                    f"objective.sizes: size {size:g}: the teacher's network takes no x of "
                    f"{' x '.join(map(str, shape))}; choose 1 for every step"
                )
        if config.small == "latents":
            return
        if setup.autoencoder is None:
            raise ValueError(
                "objective.small=pictures: the teacher has no autoencoder; choose small=latents"
            )
        self.vae = setup.autoencoder.to(x0.device)  # where offloading left it elsewhere
        self.scaling = copy.deepcopy(setup.scaling).to(x0.device)

    def loss(self, player: str, batch: Batch) -> Losses:
        """Compute the loss on data of one of the sizes, each as often as it has steps."""
        size = 1.0  # and where the run is planned, the largest
        if min(self.sizes) < 1 and not batch.x0.is_meta:
            size = self.sizes[int(torch.randint(len(self.sizes), (), generator=batch.shared))]
        return super().loss(player, self.at(batch, size))

    def predictions(self, batch: Batch) -> dict[str, Tensor]:
        return super().predictions(self.at(batch, 1.0))

    def at(self, batch: Batch, size: float) -> Sized:
        """Return the batch at one of the sizes."""
        small = {**vars(batch), "x0": self.small(batch, size)}
        return Sized(**small, size=size, whole=batch)

    @torch.no_grad()
    def small(self, batch: Batch, size: float) -> Tensor:
        """Return the data of a whole batch at a size, (N, ...)."""
        if size == 1:
            return batch.x0
        if self.config.small == "latents":
            return reduced(batch.x0, size)
        pictures = batch.originals
        if pictures is None:  # planned, not run
            assert batch.x0.is_meta
            pictures = picture_of(self.vae, self.scaling, batch.x0)
        return latents_of(self.vae, self.scaling, reduced(pictures, size))

    def table(self) -> TorchStepTable:
        student, sampler = self.student, self.rollout.sampler
        kind, sizes = student.prediction, self.sizes
        return few_step_table(student.schedule, kind, self.times, sampler, sizes=sizes)
