"""Reward loss, added to any method: samples get better while the method keeps them true.

    loss + weight L_reward

The method's own loss is the regulariser. Where it is a reverse KL (vsd, dmd2, tdm), the optimum is
the teacher's distribution tilted by the reward, p(x) exp(b r(x)), where b grows with the weight
(Jiang et al. 2025, "Distribution Matching Distillation Meets Reinforcement Learning" (DMDR), arXiv
2511.13649; Huang et al. 2026, "Reinforcing Few-step Generators via Reward-Tilted Distribution
Matching" (RTDMD), arXiv 2605.26108).

- differentiable: L = -E[r(x0)], x0 the student's at one of its steps, with that step's gradient:
  ReFL (Xu et al. 2023, arXiv 2304.05977) as DMDR's code adds it to DMD, and Hyper-SD (Ren et al.
  2024, arXiv 2404.13686, Sec. 3.2) to consistency. Both cut the reward off above a threshold,
  which the cosines of CLIP in DMDR's code (0.7) hardly reach; there is none here.
- black-box: no gradient of the reward is asked for. L = E[A |x_s - m(x_t)|^2 / (2 c^2)] over the
  steps that land at random, x_s ~ N(m, c^2): the per-sample loss of the step, weighted by the
  advantage A = (r - mean) / std of the sample among those of its prompt. It is the gradient of
  GRPO (Shao et al. 2024, arXiv 2402.03300, Eq. 3) with one update a sample, when the ratios that
  it clips are 1; normalisation and bounds as in RTDMD's code. The last step draws no noise and
  learns from the method alone.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.objectives.added.on_samples import Beside
from edgedistill.objectives.base import Batch, Losses, Objective, RewardOf, Settings, Setup
from edgedistill.objectives.preference.policy import actions, check_random, grouped, log_prob, walk

__all__ = ["Reward", "Rewarded", "advantages"]

MAX_ADVANTAGE = 5.0


class Reward(Settings):
    """The `reward` section of a recipe."""

    name: str
    """The reward: clip (text and picture), linear (points of a mixture), or one that another
    package adds."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the reward, of its class `Config`."""
    weight: float = Field(0.3, gt=0)
    """Weight of the reward's loss, added to the method's own (DMDR's code, for the cosine of
    CLIP)."""
    kind: Literal["differentiable", "black-box"] = "differentiable"
    """Whether the loss follows the reward's gradient, or uses its values alone."""
    group: int = Field(8, ge=2, le=1_024)
    """Number of samples of one prompt over which a black-box reward is normalised (RTDMD: 24)."""
    start: int = Field(0, ge=0)
    """Number of first steps without the reward (DMDR's code: half of the run)."""


def advantages(rewards: Tensor, group: int) -> Tensor:
    """Return (r - mean) / (std + 1e-4) within each `group` of neighbours, clipped to 5, (N,).

    Equal rewards have advantage 0.
    """
    groups = rewards.reshape(-1, group)
    std, mean = torch.std_mean(groups, 1, correction=0, keepdim=True)
    return ((groups - mean) / (std + 1e-4)).clamp(-MAX_ADVANTAGE, MAX_ADVANTAGE).flatten()


class Rewarded(Beside):
    """A method whose student's samples are also trained by a reward.

    Raises:
        ValueError: If the method has no samples of the student's own steps, or the reward is
            black-box and none of the steps draws noise.
    """

    name = "rewarded"

    def __init__(self, method: Objective, config: Reward, setup: Setup) -> None:
        super().__init__("reward", method, setup)
        assert setup.reward is not None
        self.config, self.sampler = config, setup.sampler
        self.reward: RewardOf = setup.reward
        if config.kind == "black-box":
            check_random("reward.kind=black-box", self._table())

    def loss(self, player: str, batch: Batch) -> Losses:
        losses = super().loss(player, batch)
        if player != "student" or batch.step < self.config.start:
            return losses
        term = self.by_gradient if self.config.kind == "differentiable" else self.by_advantage
        loss, reward = term(batch)
        return Losses(losses.total + self.config.weight * loss, {**losses.logs, "reward": reward})

    def by_gradient(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return (the loss, the mean reward), with the gradient of the reward."""
        rewards = self.reward(self.sample(batch), batch.prompts)
        if not rewards.requires_grad:
            raise ValueError(
                f"reward.kind=differentiable: reward {self.config.name!r} has no gradient; "
                "choose reward.kind=black-box"
            )
        reward = rewards.mean()
        return -reward, reward.detach()

    def by_advantage(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return (the loss, the mean reward), from the reward's values alone.

        The batch's first prompts get `group` samples each.
        """
        net, table, batch = self.student.net, self._table(), grouped(batch, self.config.group)
        places = walk(net, table, batch.cond, batch)
        with torch.no_grad():
            rewards = self.reward(places[-1], batch.prompts)
        weights = advantages(rewards, self.config.group)
        # The negative log-density of a step is its squared error.
        errors = [-log_prob(net, table, i, places, batch.cond) for i in actions(table)]
        return (weights * torch.stack(errors)).mean(), rewards.mean()

    def _table(self) -> TorchStepTable:
        own, student = self.method.table(), self.student
        return own or few_step_table(
            student.schedule,
            student.prediction,
            self.times,
            self.sampler,
            self.method.boundary(),
        )
