"""Adversarial losses by name, for both sides, and the gradient penalty R1.

Logits are (N, K) for K heads, or (N, 1); losses are means over all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from edgedistill.diffusion.losses import gan_discriminator, gan_generator, gan_relative

__all__ = ["GAN_LOSSES", "GanLoss", "accuracy", "r1", "r1_by_difference"]


@dataclass(frozen=True)
class GanLoss:
    """An adversarial loss: the losses of discriminator and generator.

    Attributes:
        discriminator: (real logits, fake logits) -> scalar.
        generator: (real logits, fake logits) -> scalar.
        relative: Whether the generator's loss depends on the real logits.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]
    relative: bool = False


def _hinge(real: Tensor, fake: Tensor) -> Tensor:
    return F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()


def _least_squares(real: Tensor, fake: Tensor) -> Tensor:
    return 0.5 * ((real.float() - 1).square().mean() + fake.float().square().mean())


GAN_LOSSES: dict[str, GanLoss] = {
    # Lim & Ye 2017, "Geometric GAN" (arXiv 1705.02894).
    "hinge": GanLoss(_hinge, lambda real, fake: -fake.float().mean()),
    # Goodfellow et al. 2014 (arXiv 1406.2661).
    "non-saturating": GanLoss(gan_discriminator, lambda real, fake: gan_generator(fake)),
    # Mao et al. 2017, "Least Squares GANs" (arXiv 1611.04076), with labels 0 and 1.
    "lsgan": GanLoss(_least_squares, lambda real, fake: 0.5 * (fake.float() - 1).square().mean()),
    # Huang et al. 2025, "The GAN is dead; long live the GAN!" (arXiv 2501.05441).
    "relativistic": GanLoss(
        gan_relative, lambda real, fake: gan_relative(fake, real), relative=True
    ),
}


def r1(logits: Tensor, x: Tensor) -> Tensor:
    """Return half the mean squared norm of the logits' gradient in x, a scalar with a gradient.

    Mescheder et al. 2018, "Which Training Methods for GANs do actually Converge?" (arXiv
    1801.04406), computed by differentiating twice.

    Args:
        logits: Logits of x, (N, K); the gradient is that of their mean over K.
        x: Real samples (N, ...), with requires_grad.
    """
    (gradient,) = torch.autograd.grad(logits.float().mean(1).sum(), x, create_graph=True)
    return 0.5 * gradient.flatten(1).square().sum(1).mean()


def r1_by_difference(logits: Tensor, moved: Tensor, step: float) -> Tensor:
    """Estimate `r1` from the logits of x and of x + step n, n standard normal.

    Lin et al. 2025, "Diffusion Adversarial Post-Training" (arXiv 2501.08316), divided by 2 step^2,
    so that its mean tends to `r1` as the step vanishes. No second derivative is needed.
    """
    apart = (moved.float() - logits.float()).mean(1) / step
    return 0.5 * apart.square().mean()


def accuracy(real: Tensor, fake: Tensor) -> Tensor:
    """Return the share of rows and heads whose real sample has the larger logit; 0.5 is chance."""
    return (real > fake).float().mean()
