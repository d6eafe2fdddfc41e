"""Diffusion-DPO of a student that is already distilled.

Wallace et al. 2023, "Diffusion Model Alignment Using Direct Preference Optimization" (arXiv
2311.12908), as the authors' code tunes SDXL-Turbo: only at the student's own times, with the same
noise for both samples of a pair. Here the pairs are drawn online from the student, and the sample
with the higher reward is preferred:

    -log sigmoid(-beta / 2 ((e_won - r_won) - (e_lost - r_lost)))

e is the mean squared error of the x0 that the student predicts for a noised sample, r that of the
student at the start of the run: their difference is a bound on how much likelier the sample has
become. The paper's errors are those of eps, which give no information on the sample at pure noise,
where a few-step student starts.

No step has to draw noise, so one-step and deterministic students can also be trained, which `pso`
cannot do. With noisy preferences, as Bradley and Terry's, the optimal answer to pure noise is the
old one moved by D / beta times the gradient of a linear reward, D being the size of a sample; with
noiseless preferences, only the run's length limits the move.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from edgedistill.diffusion.denoiser import Denoiser, cat
from edgedistill.diffusion.few_step import row_times
from edgedistill.objectives.base import Batch, Losses, Settings, Setup
from edgedistill.objectives.preference.policy import Preferring

__all__ = ["DiffusionDPO"]


class DiffusionDPO(Preferring):
    """Trains the student to denoise the better one of two samples for a prompt more accurately."""

    class Config(Settings):
        """Hyperparameters (of the authors' code, launchers/turbo.sh)."""

        beta: float = Field(5000.0, gt=0)
        """Strength of the tie to the reference: smaller values allow larger changes."""

    name = "diffusion-dpo"
    config: Config

    def __init__(self, config: DiffusionDPO.Config, setup: Setup) -> None:
        super().__init__(setup)
        self.config = config
        self.times = row_times(self._table, setup.student.schedule)

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
        """Return errors of `denoiser`'s x0 of both samples, each noised by eps to t, (2, N)."""
        x0, twice = torch.cat(pair), torch.cat([t, t])
        x_t = denoiser.noised(x0, twice, torch.cat([eps, eps]))
        gap = denoiser(x_t, twice, cat(batch.cond, batch.cond)).float() - x0.float()
        found: Tensor = gap.square().flatten(1).mean(1).reshape(2, -1)
        return found
