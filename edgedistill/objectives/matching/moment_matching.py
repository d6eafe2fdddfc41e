"""Moment matching: the student's x0 has the teacher's expectation given where it leads.

Salimans et al. 2024, "Multistep Distillation of Diffusion Models via Moment Matching"
(arXiv 2406.04103). A step from x_t makes x0, and with it a point x_s of the way to the student's
next time; matched is E[x0 | x_s], at every s the step may lead to. The paper's step is the
ancestral one; here it is the student's own, which lands by its sampler.

`moment-matching` (Alg. 2) alternates: an auxiliary network, called fake_score here, learns the
student's x0 and the teacher's at once, and the student descends x0 times its difference from the
teacher. `moment-matching-gradient` (Alg. 3) needs no second network that trains: the gradient that
the teacher's own loss has on the student's samples is made to vanish, half the batch supplying the
direction and the other half following it. The paper scales that gradient by Adam's moments of the
teacher; here it is scaled to unit length.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.func import functional_call, jvp
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from edgedistill.diffusion.compiling import as_they_are
from edgedistill.diffusion.denoiser import Condition, Denoiser, Guided, take
from edgedistill.diffusion.losses import surrogate_loss
from edgedistill.objectives.base import Batch, Losses, Setup
from edgedistill.objectives.matching.parts import FakeScore, Matching, ScoreConfig, Scored, moved
from edgedistill.objectives.matching.rollout import Noised, Rollout, Sample

__all__ = ["MomentMatching", "MomentMatchingGradient"]


class Between:
    """Points of the student's own step, in place of noise: x_s, s and x0.

    Args:
        rollout: The student's steps.
    """

    def __init__(self, rollout: Rollout) -> None:
        self.rollout = rollout

    def __call__(self, sample: Sample, t: Tensor, batch: Batch) -> Noised:
        """The time at a share t (N,) of the way back up from a step."""
        rollout, x0 = self.rollout, sample.x0
        first, s = rollout.times[sample.index], rollout.times[sample.index + 1]
        level = rollout.student.schedule.snap(s + (first - s) * t).to(x0.device)
        x_s = rollout.land(sample.x_t, x0, first.expand(len(x0)), level, batch)
        return Noised(x_s, level, x0, eps_of(rollout.student, x_s, x0, level))


def eps_of(student: Denoiser, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """The eps that goes with x0 in x_t, (N, ...)."""
    alpha, sigma = student.schedule.at(t, like=x_t)
    return (x_t - alpha * x0) / sigma.clamp(min=1e-6)


class Auxiliary(FakeScore):
    """The auxiliary network: it learns the student's x0 and the teacher's at once.

    Args:
        setup: The run's.
        head: Whether there is a head.
    """

    def __init__(self, setup: Setup, head: bool) -> None:
        super().__init__(setup, head)
        self.teacher = setup.teacher

    def denoising(self, noised: Noised, cond: Condition) -> Tensor:
        x_t, t = noised.x_t, noised.t
        with torch.no_grad():
            real = self.teacher(x_t, t, cond)
            theirs = self.denoiser.target(real, t, eps_of(self.student, x_t, real, t))
        output = self.output(x_t, t, cond)
        ours = self.denoiser.target(noised.x0, t, noised.eps)
        return F.mse_loss(output, ours) + F.mse_loss(output, theirs)


class MomentMatching(Matching):
    """x0 descends the auxiliary network's x0 less the teacher's."""

    class Config(Matching.Config):
        """Hyperparameters; `times` are shares of the way back up a step."""

        rollout: Literal["simulate", "data"] = "data"

    name = "moment-matching"
    chooses_levels = True

    def __init__(self, config: MomentMatching.Config, setup: Setup) -> None:
        super().__init__(config, setup, fake_score=Auxiliary)
        self.noising = Between(self.rollout)

    def student_loss(self, batch: Batch) -> Losses:
        sample = self.rollout(batch)
        view = self.view(sample, batch)
        return self.descent(sample, view, view.fake - view.real, batch)


class MomentMatchingGradient(Scored):
    """x0 descends the change of the teacher's x0 that training on other samples would bring."""

    class Config(ScoreConfig):
        """Hyperparameters; `times` are shares of the way back up a step."""

        rollout: Literal["simulate", "data"] = "data"

    name = "moment-matching-gradient"

    def __init__(self, config: MomentMatchingGradient.Config, setup: Setup) -> None:
        if isinstance(setup.teacher, Guided):
            raise ValueError(
                f"teacher.guidance={setup.teacher.scale:g}: {self.name} differentiates the "
                "unguided teacher; choose teacher.guidance=1, or moment-matching"
            )
        super().__init__(config, setup)
        self.noising = Between(self.rollout)
        self.copy = setup.spawn()
        """The teacher, with weights to differentiate by; it never trains."""

    def student_loss(self, batch: Batch) -> Losses:
        sample = self.rollout(batch)
        x0, half = sample.x0, len(sample.x0) // 2
        with torch.no_grad():
            noised = self.noising(sample, self.levels(batch), batch)
        halves = slice(half), slice(half, None)
        directions = [self.direction(rows_of(noised, h), take(batch.cond, h)) for h in halves]
        with torch.no_grad():
            changes = [
                self.change(rows_of(noised, h), take(batch.cond, h), direction)
                for h, direction in zip(halves, reversed(directions), strict=True)
            ]
            gradient = torch.nan_to_num(-torch.cat(changes))
        losses = Losses(surrogate_loss(x0, gradient), moved(x0, gradient, batch.x0))
        return self.regressed(losses, batch)

    def direction(self, noised: Noised, cond: Condition) -> dict[str, Tensor]:
        """Return the gradient of the teacher's loss on these samples, of unit length."""
        params = dict(self.copy.named_parameters())
        with torch.enable_grad():
            output = self.copy.output(noised.x_t, noised.t, cond)
            loss = F.mse_loss(output, self.copy.target(noised.x0, noised.t, noised.eps))
            grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        known = {name: g for name, g in zip(params, grads, strict=True) if g is not None}
        length = torch.stack([g.square().sum() for g in known.values()]).sum().sqrt()
        return {name: g / length.clamp(min=1e-12) for name, g in known.items()}

    def change(self, noised: Noised, cond: Condition, direction: dict[str, Tensor]) -> Tensor:
        """Return the derivative of the teacher's x0 along `direction` of its weights, (N, ...)."""
        params = {
            name: p.detach() for name, p in self.copy.named_parameters() if name in direction
        }

        def x0(weights: dict[str, Tensor]) -> Tensor:
            found: Tensor = functional_call(self.copy, weights, (noised.x_t, noised.t, cond))
            return found

        # Fused attention kernels and compiled networks have no forward derivative.
        with sdpa_kernel(SDPBackend.MATH), as_they_are():
            found: Tensor = jvp(x0, (params,), (direction,))[1]
        return found


def rows_of(noised: Noised, rows: slice) -> Noised:
    """Some of the samples."""
    return Noised(noised.x_t[rows], noised.t[rows], noised.x0[rows], noised.eps[rows])
