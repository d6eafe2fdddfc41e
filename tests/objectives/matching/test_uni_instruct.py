"""Expanded f-divergences: the surrogate's gradient in closed form."""

import numpy as np
import pytest
import torch
from oracles import Gaussian
from scored import DATA, FAR, Blocks, batch, located, method, setup_of, stepped
from torch import Tensor

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.objectives.matching.f_distill import WEIGHTS
from edgedistill.objectives.matching.parts import FakeScore
from edgedistill.objectives.matching.uni_instruct import UniInstruct, expanded, with_rest

TEACHER, WIDTH = Gaussian([0.4], 0.8, Trig()), 0.7


def divergence(name: str, mean: Tensor, t: Tensor) -> Tensor:
    """E_student[h(r) |score difference|^2] at time t, by quadrature over x_t; N(mean, 0.7^2)."""
    alpha, sigma = Trig().alpha(t), Trig().sigma(t)
    wide = ((alpha * WIDTH).square() + sigma.square()).sqrt()
    z = torch.linspace(-9, 9, 40_001).double()
    x = alpha * mean + wide * z
    density = (-0.5 * z.square()).exp() / (2 * torch.pi) ** 0.5
    wide_, centre = ((alpha * 0.8).square() + sigma.square()).sqrt(), alpha * TEACHER.mean.double()
    log_ratio = -0.5 * ((x - centre) / wide_).square() - wide_.log() + 0.5 * z.square()
    apart = (x - centre) / wide_.square() - z / wide
    return torch.trapezoid(
        density * WEIGHTS[name]((log_ratio + wide.log()).exp()) * apart.square(), z
    )


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_surrogates_gradient_is_the_integrands(name):
    """Over x0 and eps by Gauss-Hermite quadrature, against the derivative in the mean."""
    t = torch.tensor(0.45).double()
    mean = torch.tensor(-0.1).double().requires_grad_(True)
    (wanted,) = torch.autograd.grad(divergence(name, mean, t), mean)

    points, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(80))
    weights = weights / weights.sum()
    z, eps = (grid.reshape(-1, 1) for grid in torch.meshgrid(points, points, indexing="ij"))
    x0 = mean + WIDTH * z
    alpha, sigma = Trig().alpha(t), Trig().sigma(t)
    x_t, times = alpha * x0 + sigma * eps, t.expand(len(z))
    student = Gaussian([-0.1], WIDTH, Trig())
    student.mean = student.mean.double()
    log_ratio = TEACHER.log_density(x_t, times) - student.log_density(x_t, times)
    weight, rest = (w[:, None] for w in with_rest(WEIGHTS[name], log_ratio.exp()))
    real, fake = (law.posterior(x_t, times) for law in (TEACHER, student))
    terms = expanded(x0, real, fake, weight, rest)
    total = (torch.outer(weights, weights).reshape(-1, 1) * terms).sum()
    (found,) = torch.autograd.grad(2 * alpha**2 / sigma**4 * total, mean)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)


class Exact(FakeScore):
    """With the true log-ratio of the student's law and the teacher's in place of the head's."""

    law = Gaussian(FAR, 0.5, Trig())

    def x0_and_logits(self, x_t, t, cond):
        ratio = DATA.log_density(x_t, t) - self.law.log_density(x_t, t)
        return self.x0(x_t, t, cond), ratio


def without_gan(objective: UniInstruct) -> UniInstruct:
    """The method without the GAN term of the student's loss, its head as it is."""
    objective.config = objective.config.model_copy(update={"gan_weight": 0.0})
    return objective


@pytest.mark.parametrize("name", ["forward-kl", "reverse-kl", "jensen-shannon"])
def test_x0_descends_towards_the_teacher(name):
    fake = Denoiser(Blocks(Exact.law), Trig(), Prediction.X0)
    student = located(FAR, 0.5)
    objective = method(UniInstruct, student, fake, divergence=name, max_ratio=1e30)
    objective.fake_score = Exact(setup_of(student, fake), head=False)
    grad = stepped(without_gan(objective), batch())
    away = torch.tensor(FAR) - DATA.mean
    assert torch.nn.functional.cosine_similarity(grad, away, dim=0) > 0.95


def test_uni_instruct_has_no_loss_and_no_gradient_at_the_teachers_law():
    fake = Denoiser(Blocks(DATA), Trig(), Prediction.X0)
    objective = without_gan(method(UniInstruct, located(DATA.mean.tolist(), 0.5), fake))
    losses = objective.loss("student", batch())
    torch.autograd.backward(losses.total)
    assert losses.total.abs() < 1e-6
    assert objective.student.net.mean.grad.norm() < 1e-5
