"""Loss arithmetic: pure functions of tensors."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "gan_accuracy",
    "gan_discriminator",
    "gan_generator",
    "gan_relative",
    "matching_gradient",
    "matching_scale",
    "surrogate_loss",
]


def matching_scale(x0: Tensor, real: Tensor) -> Tensor:
    """Return DMD's normaliser, mean|x0 - real| per sample, (N, 1, ...), without a gradient.

    It is computed in float32 and kept from zero (DMD, Yin et al. 2023, arXiv 2311.18828, Eq. 8).

    Args:
        x0: The student's samples (N, ...).
        real: The teacher's x0 of the noised samples.
    """
    dims = tuple(range(1, x0.ndim))
    return (x0 - real).detach().float().abs().mean(dims, keepdim=True).clamp(min=1e-3)


def matching_gradient(x0: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """Return the direction (N, ...) that moves x0's distribution towards the teacher's.

    (fake - real) / mean|x0 - real| per sample (DMD, Yin et al. 2023, arXiv 2311.18828, Eq. 7-8),
    where real and fake are the x0-predictions of teacher and fake score on the same x_t.
    """
    return (fake - real) / matching_scale(x0, real)


def surrogate_loss(x0: Tensor, gradient: Tensor) -> Tensor:
    """Return a loss whose gradient in x0 is `gradient` / x0.numel(), a scalar (DMD2, Alg. 1).

    It is half the mean squared distance of x0 from x0 - gradient, which is detached.
    """
    target = (x0 - gradient).detach()
    return 0.5 * F.mse_loss(x0.float(), target.float())


def gan_generator(fake_logits: Tensor) -> Tensor:
    """Return the non-saturating generator loss, softplus(-D(fake)) (Goodfellow et al. 2014)."""
    return F.softplus(-fake_logits.float()).mean()


def gan_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return the non-saturating discriminator loss, softplus(D(fake)) + softplus(-D(real))."""
    return F.softplus(fake_logits.float()).mean() + F.softplus(-real_logits.float()).mean()


def gan_accuracy(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return the share of logits whose sign tells real from fake, a scalar; 0.5 is chance."""
    return 0.5 * ((real_logits > 0).float().mean() + (fake_logits < 0).float().mean())


def gan_relative(wanted_logits: Tensor, other_logits: Tensor) -> Tensor:
    """Return the relativistic loss softplus(D(other) - D(wanted)) of logits paired by row.

    The discriminator passes the real logits as wanted, the generator its own (Huang et al. 2025,
    "The GAN is dead; long live the GAN!", arXiv 2501.05441).
    """
    return F.softplus(other_logits.float() - wanted_logits.float()).mean()
