"""Improved distribution matching distillation.

Yin et al. 2024, "Improved Distribution Matching Distillation for Fast Image Synthesis"
(arXiv 2405.14867): a fake score trained several turns to the student's one, a GAN head on its
features, and multi-step students trained on their own backward simulation.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from edgedistill.diffusion.losses import matching_gradient
from edgedistill.objectives.base import Batch
from edgedistill.objectives.matching.parts import Matching, View

__all__ = ["DMD2"]


class DMD2(Matching):
    """Moves the student's samples from their own distribution to the teacher's."""

    class Config(Matching.Config):
        """Hyperparameters (defaults: the paper's SDXL 4-step run)."""

        turns: int = Field(5, ge=1, le=1_000)
        """Updates of fake_score to one of the student (two time-scale rule, Sec. 4.2)."""
        gan_weight: float = Field(5e-3, ge=0)
        """Weight of the GAN term in the student's loss (Sec. 4.3); 0 builds no head."""

    name = "dmd2"

    def gradient(self, view: View, batch: Batch) -> Tensor:
        return matching_gradient(view.x0, view.real, view.fake)
