"""Distribution matching as a reward of samples, normalised in groups, beside its gradient.

Fan et al. 2026, "R_dm: Re-conceptualizing Distribution Matching as a Reward for Diffusion
Distillation" (arXiv 2603.28460). DMD's comparison of a real and a fake score is read as a reward
R_dm of the student's sample. So what reinforcement learning knows of rewards serves distillation:
the mean and deviation of a group of samples make R_dm an advantage (Group Normalized Distribution
Matching, GNDM), other rewards can be joined, and samples can be reweighted by their likelihoods.

That is the paper's abstract, all that was at hand when this was written. The following are choices
of this project:

- The value of R_dm is log p_real(x0) - log p_fake(x0), by the pointwise I-MMSE relation (Kong et
  al. 2023, "Information-Theoretic Diffusion", arXiv 2302.03792, Eq. 9), where snr is alpha^2 /
  sigma^2 and both scores see the same noise:

    R_dm(x0) = 1/2 integral of E[|x0 - fake(x_t)|^2 - |x0 - real(x_t)|^2] d snr

- Steps that draw noise are Gaussian actions, and R_dm of the final sample is the reward of each:
  loss = E[A |x_s - m(x_t)|^2 / (2 c^2)], A = (R_dm - mean) / deviation in the group of samples of
  one condition, as `reward.kind=black-box` has it. On average it descends the reverse KL of the
  student's final samples, so earlier steps learn what becomes of them.
- The gradient of R_dm in x0 is the difference of the two scores at all levels of noise: DMD's
  direction. Each step also follows it, as in `dmd2`, which is this method without the values.
- A further reward is the recipe's `reward` section, with a weight of its own. The paper's adaptive
  weights are left out. So is importance sampling: each sample has one update, whose ratio is 1.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from edgedistill.diffusion.denoiser import Condition, Denoiser, Guided
from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.times import TimeSampling, stratified
from edgedistill.objectives.added.reward import advantages
from edgedistill.objectives.base import Batch, Losses, Setup
from edgedistill.objectives.matching.dmd2 import DMD2
from edgedistill.objectives.preference.policy import actions, check_random, grouped, log_prob, walk

__all__ = ["RDM", "matching_reward"]


@torch.no_grad()
def matching_reward(
    real: Denoiser | Guided,
    fake: Denoiser,
    x0: Tensor,
    cond: Condition,
    times: Tensor,
    noise: Tensor,
) -> Tensor:
    """Return R_dm, an estimate of log p_real(x0) - log p_fake(x0), (N,), in float32.

    The integral over the signal-to-noise ratio is a trapezoid sum over `times`, with one draw of
    noise at each. Two samples with the same noise are compared with less variance than two with
    noise of their own.

    Args:
        real: Denoiser of the wanted distribution.
        fake: Denoiser of the samples' own distribution.
        x0: Samples (N, ...).
        cond: Condition of the samples.
        times: Decreasing times (K,), two or more, above 0.
        noise: Standard normal (K, N, ...).
    """
    schedule, heights = fake.schedule, []
    for t, eps in zip(times, noise, strict=True):
        t = t.to(x0.device).expand(len(x0))
        x_t = fake.noised(x0, t, eps)
        errors = [
            (x0 - score(x_t, t, cond)).float().square().flatten(1).sum(1) for score in (fake, real)
        ]
        heights.append(0.5 * (errors[0] - errors[1]))
    # d snr = snr d log snr, and log snr is what times are evenly spaced in.
    log_snr = schedule.log_snr(times).to(x0.device)
    integrand = torch.stack(heights) * log_snr.exp()[:, None].float()
    return torch.trapezoid(integrand, log_snr.float(), dim=0)


class RDM(DMD2):
    """`dmd2` plus `policy_weight` times the policy gradient of R_dm's advantage in its group.

    Raises:
        ValueError: If the policy gradient is asked for and no step draws noise.
    """

    class Config(DMD2.Config):
        """Hyperparameters of `dmd2`, and this project's of the reward."""

        policy_weight: float = Field(0.1, ge=0)
        """Weight of the policy gradient of R_dm; 0 is `dmd2`."""
        group: int = Field(16, ge=2, le=1_024)
        """Number of samples of one condition over which R_dm is normalised."""
        levels: int = Field(8, ge=2, le=1_000)
        """Number of noise levels at which R_dm is estimated, the same for a whole batch: evenly
        spaced in log snr between those of `times.low` and `times.high`, moved at random."""
        gan_weight: float = Field(0, ge=0)
        """Weight of DMD2's GAN term against data, which is not of this paper; 0 builds no head."""

    name = "r-dm"
    config: RDM.Config

    def __init__(self, config: RDM.Config, setup: Setup) -> None:
        super().__init__(config, setup)
        student = setup.student
        self._table = few_step_table(
            student.schedule, student.prediction, setup.times, setup.sampler
        )
        if config.policy_weight > 0:
            check_random("objective.policy_weight", self._table)

    def student_loss(self, batch: Batch) -> Losses:
        # DMD's direction, the gradient of R_dm, at one of the student's steps.
        losses = super().student_loss(batch)
        if self.config.policy_weight == 0:
            return losses

        # Groups of whole samples, and R_dm of each.
        group = self.config.group
        if len(batch.x0) < group:
            raise ValueError(
                f"train.batch_size={len(batch.x0)} of one process and part is below "
                f"objective.group={group}; choose a smaller group"
            )
        several = grouped(batch, group)
        net, cond = self.student.net, several.cond
        places = walk(net, self._table, cond, several)
        rewards = self.reward(places[-1], several)

        # Actions become likelier by the advantage of what they led to in their group.
        rows = actions(self._table)
        errors = [-log_prob(net, self._table, row, places, cond) for row in rows]
        policy = (advantages(rewards, group) * torch.stack(errors)).mean()
        return losses.plus("policy", self.config.policy_weight, policy, reward=rewards.mean())

    def reward(self, x0: Tensor, batch: Batch) -> Tensor:
        """Return R_dm of samples x0 (N, ...), groups of neighbours sharing their noise, (N,)."""
        config = self.config
        times = levels(config.times, self.student, config.levels, batch.generator)
        first = torch.arange(len(x0)) // config.group * config.group
        noise = torch.stack([batch.noise()[first.to(x0.device)] for _ in times])
        fake = self.fake_score.denoiser
        return matching_reward(self.teacher, fake, x0, batch.cond, times, noise)


def levels(
    times: TimeSampling, denoiser: Denoiser, count: int, generator: torch.Generator
) -> Tensor:
    """Return decreasing times (count,), one in each of as many equal parts of log snr.

    Args:
        times: Settings, of which least and largest time are used.
        denoiser: Denoiser with the schedule.
        count: Number of times.
        generator: CPU randomness.
    """
    schedule = denoiser.schedule
    edges = torch.tensor([times.high, times.low], dtype=torch.float64).clamp(1e-3, 1 - 1e-3)
    noisiest, cleanest = schedule.log_snr(schedule.snap(edges)).tolist()
    log_snr = stratified(count, generator, noisiest, cleanest).sort().values
    return schedule.snap(schedule.time_of(log_snr))
