"""A step table as a policy, and a base class of methods that learn from preferences.

A row of the table that draws noise chooses its landing point at random.

Black et al. 2023, "Training Diffusion Models with Reinforcement Learning" (arXiv 2305.13301), Sec.
4: the denoising of one sample is an episode, each of its steps is a Gaussian action around the
network's result, and the reward is that of the final sample.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedistill.diffusion.denoiser import Condition, take
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.objectives.base import (
    Batch,
    Losses,
    Objective,
    Player,
    Setup,
    table_of_init,
)

__all__ = ["Preferring", "actions", "check_random", "grouped", "log_prob", "preference", "walk"]


def check_random(what: str, table: TorchStepTable) -> None:
    """Raise a ValueError if no row of the table draws noise, so that nothing is random."""
    if table.draws == 1:
        raise ValueError(
            f"{what}: no step of this student draws noise to learn from; it takes "
            "student.sampler=renoise and student.steps=2 or more"
        )


@torch.no_grad()
def walk(net: nn.Module, table: TorchStepTable, cond: Condition, batch: Batch) -> list[Tensor]:
    """Return the start of each row of the table, and the end of the last one: (N, ...) each."""
    places = [table.init_scale * batch.noise()]
    for row in table.rows:
        x = row.mean(net, places[-1], cond)
        places.append(x + row.c * batch.noise() if row.c else x)
    return places


def grouped(batch: Batch, group: int) -> Batch:
    """Return a batch with each of the first N // group rows `group` times in a row."""
    rows = torch.arange(len(batch.x0) // group).repeat_interleave(group)
    prompts = [batch.prompts[i] for i in rows.tolist()] if batch.prompts else ()
    index = rows.to(batch.x0.device)
    return replace(batch, x0=batch.x0[index], cond=take(batch.cond, index), prompts=prompts)


def actions(table: TorchStepTable) -> list[int]:
    """Return the rows that draw noise."""
    return [i for i, row in enumerate(table.rows) if row.c]


def log_prob(
    net: nn.Module, table: TorchStepTable, index: int, places: Sequence[Tensor], cond: Condition
) -> Tensor:
    """Return the log-density of row `index`'s landing point, (N,), up to a constant.

    It is the mean over the sample's elements instead of their sum, as in every implementation
    (DDPO, D3PO, PSO, RTDMD), so that step sizes do not depend on the resolution.
    """
    row = table.rows[index]
    gap = (places[index + 1] - row.mean(net, places[index], cond)).float() / row.c
    return -0.5 * gap.square().flatten(1).mean(1)


def preference(margin: Tensor, beta: float) -> Tensor:
    """Return -log sigmoid(beta margin), a scalar; margin (N,) is the winner's, 0 without one.

    This is the Bradley-Terry model with log-ratios as rewards (DPO, Rafailov et al. 2023, arXiv
    2305.18290, Eq. 7). Where nothing is preferred it is log 2, without a gradient.
    """
    return -F.logsigmoid(beta * margin).mean()


class Preferring(Objective):
    """Base class of methods that train a distilled student by comparing two samples.

    Attributes:
        reference: The student at the start of the run.

    Raises:
        ValueError: If there is no student to start from, or no reward.
    """

    needs_reward = True
    learns_from_start = True

    def __init__(self, setup: Setup) -> None:
        self._table = table_of_init(self.name, setup)
        if setup.reward is None:
            raise ValueError(f"method {self.name!r} learns from a reward: set reward.name")
        self.optim, self.student, self.reward = setup.optim, setup.student, setup.reward
        net = copy.deepcopy(setup.student.net).requires_grad_(False)
        self.reference = setup.student.with_net(net)

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.optim)]

    def table(self) -> TorchStepTable:
        return self._table

    def walks(self, batch: Batch) -> list[list[Tensor]]:
        """Return two walks of the student for each prompt."""
        return [walk(self.student.net, self._table, batch.cond, batch) for _ in range(2)]

    @torch.no_grad()
    def compared(self, walks: Sequence[list[Tensor]], batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the rewards of both walks' ends, (2, N), and the sign of the difference, (N,)."""
        rewards = torch.stack([self.reward(places[-1], batch.prompts) for places in walks])
        return rewards, (rewards[0] - rewards[1]).sign()

    @staticmethod
    def preferred(margin: Tensor, rewards: Tensor, beta: float) -> Losses:
        """Return the loss of a margin, logged with the mean reward."""
        logs = {"reward": rewards.mean(), "margin": margin.detach().mean()}
        return Losses(preference(margin, beta), logs)
