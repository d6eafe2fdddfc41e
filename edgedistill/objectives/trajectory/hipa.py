"""HiPA: a LoRA that gives the teacher's one step its missing high frequencies.

Zhang & Hooi 2023, "HiPA: Enabling One-Step Text-to-Image Diffusion Models via
High-Frequency-Promoting Adaptation" (arXiv 2311.18158). One step of a frozen network has the low
frequencies of its many-step picture and lacks the high ones. A LoRA is trained on pairs of noise
and the teacher's picture with

    loss = spatial loss + high-frequency loss,

where the high-frequency loss compares Fourier components without the low frequencies, and edges.
The paper's losses are of pictures and its spatial one is perceptual; here they are of x0, which
may be latents. The cutoff, the weights and the edge filter are this project's. The student folder
holds the LoRA fused, and alone in lora/.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from edgedistill.diffusion.distances import distance
from edgedistill.networks.adapters import Role
from edgedistill.objectives.base import Batch, Losses, Setup
from edgedistill.objectives.trajectory.kd import KD

__all__ = ["HiPA", "edges", "high_pass"]


def high_pass(pictures: Tensor, cutoff: float) -> Tensor:
    """Return pictures (N, C, H, W) without their low frequencies.

    Args:
        pictures: Pictures or latents.
        cutoff: Length of the frequency vector up to which components are removed, as a share of
            the highest frequency of a row; 0 removes the mean only.
    """
    spectrum = torch.fft.fft2(pictures.to(torch.promote_types(pictures.dtype, torch.float32)))
    down, across = (torch.fft.fftfreq(n, device=pictures.device) for n in pictures.shape[-2:])
    high = torch.hypot(down[:, None], across) > cutoff / 2
    kept: Tensor = torch.fft.ifft2(spectrum * high).real
    return kept.to(pictures)


def edges(pictures: Tensor) -> Tensor:
    """Return the slopes down and across (N, 2C, H, W) of pictures (N, C, H, W), by Sobel's filter.

    A ramp that rises by 1 from pixel to pixel has slope 1. Beyond the border are its own pixels.
    """
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]).to(pictures) / 8
    count = pictures.shape[1]
    kernel = torch.stack([across.T, across])[:, None].repeat(count, 1, 1, 1)
    return F.conv2d(F.pad(pictures, (1, 1, 1, 1), "replicate"), kernel, groups=count)


class HiPA(KD):
    """Trains a LoRA's one step to land on the teacher's picture, and on its details twice."""

    class Config(KD.Config):
        """Hyperparameters of HiPA; `distance` is that of all three terms."""

        frequency_weight: float = Field(1.0, ge=0)
        """Weight of the distance of the high-pass filtered x0."""
        edge_weight: float = Field(1.0, ge=0)
        """Weight of the distance of the edges."""
        cutoff_share: float = Field(0.25, ge=0, le=1)
        """Frequencies up to this share of a row's highest are low."""

    name = "hipa"
    single_step = True
    config: HiPA.Config

    def __init__(self, config: HiPA.Config, setup: Setup) -> None:
        shape = tuple(setup.example[0].shape[1:])
        if len(shape) != 3:
            raise ValueError(
                f"method 'hipa' needs pictures or latents of height and width; x0 here is {shape}"
            )
        if not isinstance(setup.student.net, Role):
            raise ValueError(
                "train.roles=copies: hipa trains an adapter of the frozen network; choose "
                "train.roles=adapters"
            )
        super().__init__(config, setup)

    def loss(self, player: str, batch: Batch) -> Losses:
        config = self.config
        ours, wanted = self.landing(batch)
        spatial, frequency, edge = (
            distance(config.distance, f(ours), f(wanted)).mean()
            for f in (lambda x: x, lambda x: high_pass(x, config.cutoff_share), edges)
        )
        losses = Losses(spatial, {"spatial": spatial.detach()})
        losses = losses.plus("frequency", config.frequency_weight, frequency)
        return losses.plus("edge", config.edge_weight, edge)
