"""A decoder trained as a flow from noise to pictures, then distilled to one step.

Vallaeys et al. 2025, "SSDD: Single-Step Diffusion Decoder for Efficient Image Tokenization" (arXiv
2510.04961): flow matching of pictures, conditioned on latents, with a perceptual distance of the
implied x0; then one step of the student is trained to equal several steps of the flow.
"""

from __future__ import annotations

import copy

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from edgedistill.diffusion.schedules import Rectified
from edgedistill.diffusion.times import TimeSampling, sample_times
from edgedistill.networks.diffusion_decoder import DiffusionDecoder
from edgedistill.networks.ema import follow
from edgedistill.objectives.base import Batch, Losses, Player, Setup
from edgedistill.objectives.compression.decoder import Decoding, Depth, Width, psnr
from edgedistill.objectives.stages import Stages

__all__ = ["OneStepDecoder"]


class OneStepDecoder(Decoding):
    """A decoder that learns the flow of pictures in half of the run, and one step in the other."""

    class Config(Decoding.Config):
        """Hyperparameters of the one-step decoder."""

        channels: tuple[Width, ...] = (128, 64, 0, 0)
        """Channels at each resolution, the last ones 0 where pixels are unfolded at once."""
        blocks: tuple[Depth, ...] = (2, 1, 0, 0)
        solver_steps: int = Field(8, ge=1, le=10_000)
        """Steps of the flow that one step of the student is trained to equal."""
        times: TimeSampling = TimeSampling(kind="logit-normal")
        """Noise levels of flow matching."""

    name = "diffusion-decoder"

    def __init__(self, config: OneStepDecoder.Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.config = config
        example = setup.example[0]
        self.student = DiffusionDecoder(example.shape[1], config.channels, config.blocks)
        self.student.to(example.device)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.stages = Stages(setup.train_steps, 2)

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.optim)]

    def followers(self) -> dict[str, nn.Module]:
        return {"teacher": self.teacher}

    def started(self, step: int) -> None:
        if self.stages.at(step) and self.stages.begins(step):
            follow(self.teacher, self.student, 0.0)

    def loss(self, player: str, batch: Batch) -> Losses:
        clean, truth = self._pairs(batch)
        z = clean + self.config.jitter * batch.noise()
        if self.stages.at(batch.step):
            return self._one_step(clean, z, truth)
        return self._flow(batch.generator, z, truth)

    def _flow(self, generator: torch.Generator, z: Tensor, truth: Tensor) -> Losses:
        eps = torch.randn(truth.shape, generator=generator).to(truth)
        t = sample_times(self.config.times, Rectified(), len(z), generator).to(truth)
        at = t.reshape(-1, 1, 1, 1)
        x_t = truth.lerp(eps, at)
        velocity = self.student(x_t, t, z)
        total = F.mse_loss(velocity, eps - truth)
        logs = {"flow": total.detach()}
        if self.taps is not None:
            perceptual = self._perceptual(x_t - at * velocity, truth)
            total = total + self.config.perceptual_weight * perceptual
            logs["perceptual"] = perceptual.detach()
        return Losses(total, logs)

    def _one_step(self, clean: Tensor, z: Tensor, truth: Tensor) -> Losses:
        with torch.no_grad():
            target = self.teacher.solve(clean, self.config.solver_steps)
        found = self.student.solve(z, 1)
        total = F.mse_loss(found, target)
        logs = {"one_step": total.detach()}
        logs["psnr"] = psnr(F.mse_loss(found.detach(), truth))
        if self.taps is not None:
            perceptual = self._perceptual(found, target)
            total = total + self.config.perceptual_weight * perceptual
            logs["perceptual"] = perceptual.detach()
        return Losses(total, logs)
