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

import math

import torch
from pydantic import Field
from torch import Tensor

from edgedistill.objectives.base import Batch, Losses, Settings, Setup
from edgedistill.objectives.preference.policy import Preferring, actions, check_random, log_prob

__all__ = ["PSO"]


class PSO(Preferring):
    """Trains the student to make the better one of two samples for a prompt more often."""

    class Config(Settings):
        """Hyperparameters (of the authors' code, human_preference_tuning)."""

        beta: float = Field(50.0, gt=0)
        """Strength of the tie to the reference: smaller values allow larger changes."""
        clip: float = Field(0.1, ge=0, lt=1)
        """Ratios are clipped to 1 - clip and 1 + clip, beyond which they have no gradient; 0 does
        not clip."""

    name = "pso"
    config: Config

    def __init__(self, config: PSO.Config, setup: Setup) -> None:
        super().__init__(setup)
        check_random("student.init", self._table)
        self.config = config

    def loss(self, player: str, batch: Batch) -> Losses:
        walks = self.walks(batch)
        rewards, won = self.compared(walks, batch)
        margins = []
        for index in actions(self._table):
            first, second = (self.odds(index, places, batch) for places in walks)
            margins.append(won * (first - second))
        return self.preferred(torch.stack(margins), rewards, self.config.beta)

    def odds(self, index: int, places: list[Tensor], batch: Batch) -> Tensor:
        """Return the clipped log-ratio of a walk's step for student and reference, (N,)."""
        table, clip = self._table, self.config.clip
        now = log_prob(self.student.net, table, index, places, batch.cond)
        with torch.no_grad():
            before = log_prob(self.reference.net, table, index, places, batch.cond)
        ratio = now - before
        return ratio.clamp(math.log1p(-clip), math.log1p(clip)) if clip else ratio
