"""An adapter that adds the guidance to a frozen network.

Hsiao et al. 2024, "Plug-and-Play Diffusion Distillation" (arXiv 2406.01954): the network is
frozen, and a small one learns what guidance adds to its output, so that it also works with the
network's fine-tuned variants. As in Golnari 2023, "LoRA-Enhanced Distillation on Guided Diffusion
Models" (arXiv 2312.06899), the small one is a LoRA, for one scale. The student folder holds it
fused, and alone in lora/, which any variant of the teacher can load.
"""

from __future__ import annotations

import torch

from edgedistill.diffusion.denoiser import Guided
from edgedistill.diffusion.distances import Distance, distance
from edgedistill.diffusion.times import TimeSampling, sample_times
from edgedistill.networks.adapters import Role
from edgedistill.objectives.base import Batch, Losses, Objective, Player, Settings, Setup
from edgedistill.objectives.trajectory.progressive import WEIGHTS

__all__ = ["GuideAdapter"]


class GuideAdapter(Objective):
    """Trains an adapter with which one call of the network gives the guided result of two."""

    class Config(Settings):
        """Hyperparameters of the guidance adapter."""

        distance: Distance = Distance()
        times: TimeSampling = TimeSampling(low=0.001)

    name = "guide-adapter"

    def __init__(self, config: GuideAdapter.Config, setup: Setup) -> None:
        if not isinstance(setup.teacher, Guided) or setup.teacher.scale == 1:
            raise ValueError(
                "method 'guide-adapter' needs a teacher with a null condition and a scale to "
                "keep; choose teacher.guidance above 1"
            )
        if not isinstance(setup.student.net, Role):
            raise ValueError(
                "train.roles=copies: guide-adapter trains an adapter beside the frozen network; "
                "choose train.roles=adapters"
            )
        self.config, self.optim = config, setup.optim
        self.teacher, self.student = setup.teacher, setup.student

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.optim)]

    def loss(self, player: str, batch: Batch) -> Losses:
        config, schedule, count = self.config, self.student.schedule, len(batch.x0)
        t = schedule.snap(sample_times(config.times, schedule, count, batch.generator))
        t = t.to(batch.x0.device)
        x_t = self.student.noised(batch.x0, t, batch.noise())
        with torch.no_grad():
            wanted = self.teacher(x_t, t, batch.cond)
        apart = distance(config.distance, self.student(x_t, t, batch.cond), wanted)
        # This is the weight of x0 in `guidance`.
        weight = WEIGHTS["truncated-snr"](schedule.log_snr(t).exp()).to(apart)
        return Losses((weight * apart).mean(), {"apart": apart.detach().mean()})
