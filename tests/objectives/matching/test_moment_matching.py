"""Moment matching: at rest at the teacher's law, and each form by its own algebra."""

import pytest
import torch
from oracles import Affine, Gaussian
from scored import DATA, FAR, batch, exact_steps, guided, located, method, seed_of, stepped

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.solvers import ddim_step
from edgedistill.networks.planar import PlanarNet
from edgedistill.objectives.matching.moment_matching import MomentMatching, MomentMatchingGradient
from edgedistill.objectives.matching.rollout import renoised


def test_moment_matching_is_at_rest_at_the_teachers_law():
    objective = method(MomentMatching, located(DATA.mean.tolist(), 0.5), DATA.denoiser())
    losses = objective.loss("student", batch())
    assert losses.total.abs() < 1e-10
    objective = method(MomentMatching, located(FAR, 0.5), Gaussian(FAR, 0.5, Trig()).denoiser())
    assert objective.loss("student", batch()).total > 1e-3


def test_the_auxiliary_network_learns_the_mean_of_students_and_teachers_moments():
    """So that its difference from the teacher is half of the moments'."""
    student = Gaussian(FAR, 0.8, Trig())

    def blend(share: float) -> Denoiser:
        def x0(x, t):
            return torch.lerp(student.posterior(x, t), DATA.posterior(x, t), share)

        return Denoiser(Affine(x0), Trig(), Prediction.X0)

    losses = {}
    for share in (0.3, 0.5, 0.7):
        objective = method(MomentMatching, located(FAR, 0.8), blend(share))
        losses[share] = objective.loss("fake_score", batch(20_000)).total.item()
    assert losses[0.5] < min(losses[0.3], losses[0.7])


def test_moments_are_matched_on_the_students_own_step():
    objective = method(MomentMatching, exact_steps(), steps=2, sampler="ddim")
    given = batch(20_000, shared=seed_of(1, 2))
    sample = objective.rollout(given)
    noised = objective.noising(sample, torch.full((20_000,), 0.5).double(), given)
    half, quarter = torch.tensor(0.5), torch.tensor(0.25)
    assert (noised.t == 0.25).all()
    x_s = ddim_step(Trig(), sample.x_t, sample.x0, half, quarter)
    torch.testing.assert_close(noised.x_t, x_s, atol=1e-5, rtol=1e-5)
    x_0 = DATA.flow(sample.x_t, half[None], torch.zeros(1).double())
    torch.testing.assert_close(noised.x0, x_0, atol=1e-5, rtol=1e-5)


def test_the_gradient_form_refuses_a_guidance_that_it_would_ignore():
    with pytest.raises(ValueError, match=r"teacher\.guidance=3: .*gradient differentiates"):
        method(MomentMatchingGradient, located(FAR, 0.5), teacher=guided(3.0))


def test_the_gradient_form_follows_the_teachers_own_gradient():
    """Away from the solution all halves agree on the way; at it they have no way in common."""
    for mean, low, high in ((FAR, 0.9, 1.1), (DATA.mean.tolist(), -0.1, 0.6)):
        found = []
        for seed in range(12):
            teacher = Denoiser(Affine(DATA.posterior), Trig(), Prediction.X0)
            objective = method(MomentMatchingGradient, located(mean, 0.5), teacher)
            found.append(stepped(objective, batch(2000, seed)).clone())
        mean_gradient = torch.stack(found).mean(0)
        typical = torch.stack(found).norm(dim=1).mean()
        assert low < mean_gradient.norm() / typical < high
        if low > 0:
            away = torch.tensor(FAR) - DATA.mean
            assert torch.nn.functional.cosine_similarity(mean_gradient, away, dim=0) > 0.5


def test_the_change_along_a_direction_is_that_of_a_small_step():
    torch.manual_seed(0)
    net = PlanarNet(width=16, depth=2)
    torch.nn.init.normal_(net.head.weight)
    teacher = Denoiser(net, Trig(), Prediction.V)
    objective = method(MomentMatchingGradient, located(FAR, 0.5), teacher)
    given = batch(32)
    noised = renoised(objective.student, given.x0, objective.levels(given), given)
    direction = objective.direction(noised, {})
    change = objective.change(noised, {}, direction)
    with torch.no_grad():
        before = teacher(noised.x_t, noised.t, {})
        for name, part in direction.items():
            teacher.get_parameter(name).add_(1e-3 * part)
        after = teacher(noised.x_t, noised.t, {})
    torch.testing.assert_close(change, (after - before) / 1e-3, atol=5e-3, rtol=5e-2)
