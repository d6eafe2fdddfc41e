"""Pairwise sample optimisation of a student that is already distilled.

Miao et al. 2024, "Tuning Timestep-Distilled Diffusion Model Using Pairwise Sample Optimization"
(arXiv 2410.03190), with samples drawn online. The student makes two walks for each prompt; one
ends at the higher reward. At each step that lands at random (`policy.log_prob`)

    -log sigmoid(beta (l_won - l_lost)),   l = log clip(p / p_reference, 1 - clip, 1 + clip)

raises the odds of the step that led to the better sample, against those that the student had when
the run began. No teacher is needed: the reference and the clipping preserve what was distilled.
Without clipping it is DPO on the steps (D3PO, Yang et al. 2023, arXiv 2311.13231).
"""

from __future__ import annotations

import copy
import math

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.objectives.base import (
    Batch,
    Losses,
    Objective,
    Player,
    Settings,
    Setup,
    table_of_init,
)
from edgedistill.objectives.preference.policy import actions, check_random, log_prob, walk

__all__ = ["PSO", "preference"]


def preference(margin: Tensor, beta: float) -> Tensor:
    """Return -log sigmoid(beta margin), a scalar; margin (N,) is the winner's, 0 without one.

    This is the Bradley-Terry model with log-ratios as rewards (DPO, Rafailov et al. 2023, arXiv
    2305.18290, Eq. 7). Where nothing is preferred it is log 2, without a gradient.
    """
    return -F.logsigmoid(beta * margin).mean()


class PSO(Objective):
    """Trains the student to make the better one of two samples for a prompt more often."""

    class Config(Settings):
        """Hyperparameters (of the authors' code, human_preference_tuning)."""

        beta: float = Field(50.0, gt=0)
        """Strength of the tie to the reference: smaller values allow larger changes."""
        clip: float = Field(0.1, ge=0, lt=1)
        """Ratios are clipped to 1 - clip and 1 + clip, beyond which they have no gradient; 0 does
        not clip."""

    name = "pso"
    needs_reward = True
    config: Config

    def __init__(self, config: PSO.Config, setup: Setup) -> None:
        self._table = table_of_init(self.name, setup)
        if setup.reward is None:
            raise ValueError("method 'pso' learns from a reward: set reward.name")
        check_random("student.init", self._table)
        self.config, self.optim = config, setup.optim
        self.student, self.reward = setup.student, setup.reward
        self.reference = copy.deepcopy(setup.student.net).requires_grad_(False)

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.optim)]

    def table(self) -> TorchStepTable:
        return self._table

    def loss(self, player: str, batch: Batch) -> Losses:
        net, table, cond = self.student.net, self._table, batch.cond
        walks = [walk(net, table, cond, batch) for _ in range(2)]
        with torch.no_grad():
            rewards = torch.stack([self.reward(places[-1], batch.prompts) for places in walks])
        won = (rewards[0] - rewards[1]).sign()
        margins = []
        for index in actions(table):
            first, second = (self.odds(index, places, batch) for places in walks)
            margins.append(won * (first - second))
        margin = torch.stack(margins)
        logs = {"reward": rewards.mean(), "margin": margin.detach().mean()}
        return Losses(preference(margin, self.config.beta), logs)

    def odds(self, index: int, places: list[Tensor], batch: Batch) -> Tensor:
        """Return the clipped log-ratio of a walk's step for student and reference, (N,)."""
        table, clip = self._table, self.config.clip
        now = log_prob(self.student.net, table, index, places, batch.cond)
        with torch.no_grad():
            before = log_prob(self.reference, table, index, places, batch.cond)
        ratio = now - before
        return ratio.clamp(math.log1p(-clip), math.log1p(clip)) if clip else ratio
