"""Diffusion-DPO of a student that is distilled already.

Wallace et al. 2023, "Diffusion Model Alignment Using Direct Preference Optimization" (arXiv
2311.12908), as the authors' code tunes SDXL-Turbo: at the student's own times alone, both samples
of a pair under the same noise. Here the pairs are drawn online from the student, and the one that
earns more is preferred:

    -log sigmoid(-beta / 2 ((e_won - r_won) - (e_lost - r_lost)))

e is the mean square error of the x0 that the student sees in a noised sample, r that of the
student as the run began: their difference is a bound on how much likelier the sample has become.
The paper's errors are those of eps, which at pure noise, where a student of few steps begins, tell
nothing of the sample.

No step has to draw noise, so that students of one step, and deterministic ones, learn too, which
those of `pso` cannot. Where the preferences are noisy, as Bradley and Terry's, the best answer to
pure noise is the old one moved by D / beta times the gradient of a linear reward, D being the
size of a sample; where they never err, nothing but the run's length ends the move.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from edgedistill.diffusion.denoiser import Denoiser, cat
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.objectives.base import Batch, Losses, Settings, Setup
from edgedistill.objectives.preference.policy import Preferring

__all__ = ["DiffusionDPO", "times_of"]


def times_of(table: TorchStepTable, schedule: Schedule) -> Tensor:
    """At which times the rows of a table set out, (rows,), from what they tell the network."""
    told = torch.tensor([row.t for row in table.rows], dtype=torch.float64)
    return schedule.snap(schedule.time_of_net_time(told).clamp(0, 1))


class DiffusionDPO(Preferring):
    """The student sees the better of two samples for a prompt more clearly in noise."""

    class Config(Settings):
        """Hyperparameters (the authors' code, launchers/turbo.sh)."""

        beta: float = Field(5000.0, gt=0)
        """How far from the reference a preference is worth going: less goes farther."""

    name = "diffusion-dpo"
    config: Config

    def __init__(self, config: DiffusionDPO.Config, setup: Setup) -> None:
        super().__init__(setup)
        self.config = config
        self.times = times_of(self._table, setup.student.schedule)

    def loss(self, player: str, batch: Batch) -> Losses:
        walks = self.walks(batch)
        rewards, won = self.compared(walks, batch)
        pair = [places[-1] for places in walks]
        index = torch.randint(len(self.times), (len(batch.x0),), generator=batch.generator)
        t, eps = self.times[index].to(batch.x0.device), batch.noise()
        ours = self.errors(self.student, pair, t, eps, batch)
        with torch.no_grad():
            theirs = self.errors(self.reference, pair, t, eps, batch)
        first, second = 0.5 * (theirs - ours)
        return self.preferred(won * (first - second), rewards, self.config.beta)

    def errors(
        self, denoiser: Denoiser, pair: list[Tensor], t: Tensor, eps: Tensor, batch: Batch
    ) -> Tensor:
        """Errors of the x0 that `denoiser` sees in both samples noised by eps to t, (2, N)."""
        x0, twice = torch.cat(pair), torch.cat([t, t])
        x_t = denoiser.noised(x0, twice, torch.cat([eps, eps]))
        gap = denoiser(x_t, twice, cat(batch.cond, batch.cond)).float() - x0.float()
        found: Tensor = gap.square().flatten(1).mean(1).reshape(2, -1)
        return found
