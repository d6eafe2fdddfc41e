"""A conditional GAN from stored paths of the teacher.

Kang et al. 2024, "Distilling Diffusion Models into Conditional GANs" (arXiv 2405.05967): the
student is regressed on the teacher's pairs of noise and sample under a perceptual distance of
latents, made an ensemble by random augmentations of both (E-LatentLPIPS, `ensembled`), and a
discriminator on a diffusion network sees its sample beside the noise. With several steps the pairs
are the ends of each. The distance is taken in a network with random weights, which fits any x0, or
in one that was trained on latents (`distance.kind=latent-lpips`), without LPIPS's learnt weights
of layers. The discriminator has a head a tap where the paper has one a resolution, and R1 is not
restricted to single samples.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from edgedistill.diffusion.distances import Ensemble, ensembled
from edgedistill.diffusion.solvers import ddim_step
from edgedistill.objectives.adversarial.parts import GAN, Round
from edgedistill.objectives.base import Batch, Setup, check_deterministic
from edgedistill.objectives.trajectory.kd import stored_step

__all__ = ["Diffusion2GAN"]


class Diffusion2GAN(GAN):
    """The student's step lands near the path's next point, and is as likely beside x_t."""

    class Config(GAN.Config):
        """Hyperparameters."""

        loss: Literal["hinge", "non-saturating", "lsgan", "relativistic"] = "non-saturating"
        gan_weight: float = Field(0.5, gt=0)
        r1_weight: float = Field(1e-4, ge=0)
        distance: Ensemble = Ensemble()

    config: Diffusion2GAN.Config
    name = "diffusion2gan"
    needs_paths = True
    frozen = False
    places = 2

    def __init__(self, config: Diffusion2GAN.Config, setup: Setup) -> None:
        check_deterministic(self.name, setup)
        super().__init__(config, setup)

    def round(self, batch: Batch) -> Round:
        step = stored_step(batch, self.times)
        x_t, t, seen = step.x_t, step.t, self.seen(step.s)
        x0 = self.student(x_t, t, batch.cond)
        landing = ddim_step(self.student.schedule, x_t, x0, t, step.s)
        return Round(x_t, t, x0, [(landing, seen), (x_t, t)], [(step.x_s, seen), (x_t, t)])

    def others(self, made: Round, batch: Batch) -> dict[str, Tensor]:
        landing, truth = made.fake[0][0], made.real[0][0]
        apart = ensembled(self.config.distance, landing, truth, batch.generator)
        return {"landing": apart.mean()}
