"""f-divergences: weights and gradients in closed form."""

import pytest
import torch
from oracles import Gaussian
from scored import DATA, FAR, Blocks, batch, located, method, setup_of, stepped

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.objectives.matching.dmd2 import DMD2
from edgedistill.objectives.matching.f_distill import WEIGHTS, FDistill, density_ratio
from edgedistill.objectives.matching.parts import FakeScore

DIVERGENCES = {
    "reverse-kl": lambda r: -r.log(),
    "softened-reverse-kl": lambda r: (r + 1) * (0.5 / r + 0.5).log(),
    "jensen-shannon": lambda r: r * r.log() - (r + 1) * (0.5 * r + 0.5).log(),
    "hellinger": lambda r: (1 - r.sqrt()).square(),
    "forward-kl": lambda r: r * r.log(),
    "jeffreys": lambda r: (r - 1) * r.log(),
    "neyman": lambda r: (1 - r).square() / r,
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_weight_is_the_squared_ratio_times_the_second_derivative(name):
    r = torch.linspace(0.1, 8, 50).double().requires_grad_(True)
    (first,) = torch.autograd.grad(DIVERGENCES[name](r).sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    torch.testing.assert_close(WEIGHTS[name](r), r.square() * second)


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_weighted_score_difference_is_the_gradient_of_the_divergence(name):
    """Of two Gaussians at distance d in units of their deviation, by quadrature over the student:
    E[h(r)] d against the derivative of E[f(r)], log r = d (x - d / 2) at x standard normal."""
    x = torch.linspace(-12, 12, 200_001).double()
    density = (-0.5 * x.square()).exp() / (2 * torch.pi) ** 0.5
    d = torch.tensor(1.3).double().requires_grad_(True)
    r = (d * x - 0.5 * d.square()).exp()
    divergence = torch.trapezoid(density * DIVERGENCES[name](r), x)
    (wanted,) = torch.autograd.grad(divergence, d)
    found = torch.trapezoid(density * WEIGHTS[name](r), x) * d
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)


class Exact(FakeScore):
    """With the true log-ratio of two Gaussians in place of the head's."""

    def x0_and_logits(self, x_t, t, cond):
        student = Gaussian(FAR, 0.5, Trig())
        wide = x_t.double()
        return self.x0(x_t, t, cond), DATA.log_density(wide, t) - student.log_density(wide, t)


@pytest.mark.parametrize(("divergence", "sign"), [("forward-kl", 1), ("neyman", -1)])
def test_samples_count_as_the_divergence_says(divergence, sign):
    """Forward KL cares for samples that the teacher likes, Neyman's for those it does not."""
    fake = Denoiser(Blocks(Gaussian(FAR, 0.5, Trig())), Trig(), Prediction.X0)
    given = batch(512)
    objective = method(FDistill, located(FAR, 0.5), fake, divergence=divergence, max_ratio=1e30)
    objective.fake_score = exact = Exact(setup_of(objective.student, fake), head=False)
    view, weight = objective.weighted(objective.rollout(given), given)
    weight = weight.flatten()
    assert weight.mean().item() == pytest.approx(1, rel=1e-4)
    ratio = exact.x0_and_logits(view.x_t, view.t, {})[1].exp()
    order = torch.corrcoef(torch.stack([weight.double().log(), ratio.log()]))[0, 1]
    assert sign * order > 0.99


def test_f_distills_ratio_is_the_heads():
    fake = Denoiser(Blocks(DATA), Trig(), Prediction.X0)
    objective = method(FDistill, located(FAR, 0.5), fake, max_ratio=3.0)
    given = batch(64)
    view, weight = objective.weighted(objective.rollout(given), given)
    logits = objective.fake_score.head(fake.net.blocks[1](view.x_t))
    ratio = density_ratio(logits, 3.0)
    torch.testing.assert_close(ratio, logits.flatten().exp().clamp(1 / 3, 3))
    wanted = WEIGHTS["jensen-shannon"](ratio)
    torch.testing.assert_close(weight.flatten(), wanted / wanted.mean())


def test_the_weighted_gradient_is_dmd2s_times_the_weight():
    """The student's turn, with every weight 1 and without the GAN term, is that of dmd2."""
    found = []
    for kind, config in ((FDistill, {"divergence": "reverse-kl"}), (DMD2, {})):
        fake = Denoiser(Blocks(Gaussian(FAR, 0.5, Trig())), Trig(), Prediction.X0)
        objective = method(kind, located(FAR, 0.5), fake, **config)
        objective.config = objective.config.model_copy(update={"gan_weight": 0.0})
        found.append(stepped(objective, batch(512)))
    assert torch.equal(*found)
