"""Distribution matching beside the knowledge of a student that is already distilled.

Hu et al. 2026, "SnapGen++: Unleashing Diffusion Transformers for Efficient High-Fidelity Image
Generation on Edge Devices" (arXiv 2601.08303): Knowledge-Guided Distribution Matching Distillation
(K-DMD) joins DMD's loss with knowledge transfer from a few-step teacher.

    loss = L_DMD2 + knowledge_weight |x0 - x0_few|^2 + features_weight |h - h_few|^2 / |h_few|^2

These are choices of this project: the few-step teacher is a folder of a student with the same
steps, it is asked where the student's own rollout has come to (the same x_t, t and condition), its
x0 is compared and not its raw output, features h are those at the teacher family's tap, and the
weights are not the paper's.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from edgedistill.diffusion.losses import matching_gradient
from edgedistill.networks.taps import Taps
from edgedistill.objectives.base import Batch, Losses, Setup
from edgedistill.objectives.compression.shrink import feature_loss
from edgedistill.objectives.matching.dmd2 import DMD2
from edgedistill.objectives.matching.parts import Matching
from edgedistill.objectives.matching.rollout import Sample

__all__ = ["KDMD"]


class KDMD(Matching):
    """DMD2 plus the distance from a frozen few-step student, at the student's own steps.

    Raises:
        ValueError: If there is no few-step student, or its features differ in shape from the
            student's and are asked for.
    """

    class Config(DMD2.Config):
        """Hyperparameters: DMD2's, and this project's weights of the knowledge."""

        knowledge: str | None = None
        """Folder of the distilled student to learn from, of the same teacher family, steps, times,
        sampler and prediction, and without a consistency function."""
        knowledge_weight: float = Field(1.0, ge=0)
        """Weight of the mean squared distance of x0 from the few-step student's."""
        features_weight: float = Field(0.0, ge=0)
        """Weight of the relative squared distance of the features at the teacher family's tap,
        which both students must have; 0 compares none."""

    name = "k-dmd"
    config: Config

    @classmethod
    def wants_knowledge(cls, config: Any) -> str | None:
        folder: str | None = config.knowledge
        return folder

    def __init__(self, config: KDMD.Config, setup: Setup) -> None:
        if setup.knowledge is None:
            raise ValueError(
                f"method {self.name!r} learns from a distilled student: set "
                "objective.knowledge=FOLDER"
            )
        super().__init__(config, setup)
        self.knowledge = setup.knowledge
        paths = [setup.tap] if config.features_weight > 0 else []
        try:
            self.ours = Taps(self.student.net, paths)
            self.theirs = Taps(self.knowledge.net, paths)
        except ValueError as error:
            raise ValueError(f"objective.features_weight: {error}") from None
        self._check_features(setup)

    def student_loss(self, batch: Batch) -> Losses:
        # DMD2's loss, and the features of the call that made the sample.
        with self.ours:
            sample = self.rollout(batch)
        ours = self.ours.take()
        view = self.view(sample, batch)
        gradient = matching_gradient(view.x0, view.real, view.fake)
        losses = self.descent(sample, view, gradient, batch)
        return self.taught(losses, sample, ours, batch)

    def taught(self, losses: Losses, sample: Sample, ours: list[Tensor], batch: Batch) -> Losses:
        """Return these losses with the distance from the few-step student added.

        Args:
            losses: DMD2's losses.
            sample: The student's sample at one of its steps.
            ours: The student's features there; none unless they are compared.
            batch: The batch.
        """
        config = self.config
        if config.knowledge_weight == config.features_weight == 0:
            return losses
        with torch.no_grad(), self.theirs:
            x0 = self.knowledge(sample.x_t, sample.t.to(sample.x_t.device), batch.cond)
        theirs = self.theirs.take()
        losses = losses.plus("knowledge", config.knowledge_weight, F.mse_loss(sample.x0, x0))
        if not ours:
            return losses
        return losses.plus("features", config.features_weight, feature_loss(ours, theirs))

    def _check_features(self, setup: Setup) -> None:
        """Raise a ValueError if the features of both students have other shapes."""
        x0, cond = setup.example
        t = torch.full((len(x0),), 0.5, device=x0.device)
        shapes = []
        for denoiser, taps in ((self.student, self.ours), (self.knowledge, self.theirs)):
            if not taps.paths:
                return
            with torch.no_grad(), taps:
                denoiser(x0, t, cond)
            shapes.append([tuple(feature.shape[1:]) for feature in taps.take()])
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"objective.features_weight: features at {setup.tap} are of {shapes[0][0]} in the "
                f"student and of {shapes[1][0]} in the distilled one; choose 0"
            )
