"""Score identity distillation: its fixed point, and where guidance goes."""

import pytest
import torch
from oracles import Gaussian
from scored import (
    DATA,
    FAR,
    Conditioned,
    TimeConditioned,
    batch,
    guided,
    judging,
    located,
    method,
    told,
)

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.networks.planar import PlanarNet
from edgedistill.objectives.matching.sid import SiD


def test_sid_has_no_loss_and_no_gradient_at_the_teachers_law():
    objective = method(SiD, located(DATA.mean.tolist(), 0.5), DATA.denoiser())
    losses = objective.loss("student", batch())
    torch.autograd.backward(losses.total)
    net = objective.student.net
    assert losses.total.abs() < 1e-6
    assert net.mean.grad.norm() < 1e-5
    assert net.scale.grad.abs() < 1e-5


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_sids_descent_with_the_exact_fake_score_finds_the_teachers_law(alpha):
    objective = method(SiD, located([-0.5, 0.8], 1.0), alpha=alpha)
    net = objective.student.net
    optim = torch.optim.Adam(net.parameters(), 0.03)
    for step in range(250):
        law = Gaussian(net.mean.tolist(), net.scale.item(), Trig())
        objective.fake_score.denoiser = law.denoiser()
        optim.zero_grad()
        torch.autograd.backward(objective.loss("student", batch(128, step)).total)
        optim.step()
    torch.testing.assert_close(net.mean.detach(), DATA.mean, atol=0.08, rtol=0)
    assert net.scale.item() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("guidance", "teacher", "fake"),
    [("teacher", 0.9, 0.3), ("long-short", 0.9, 0.9), ("zero", 0.3, 0.0), ("anti", 0.3, -0.3)],
)
def test_guidance_goes_where_sids_strategies_put_it(guidance, teacher, fake):
    """What both add to the exact denoiser for a condition that adds 0.3, at scale 3."""
    student = Denoiser(TimeConditioned(FAR, 0.5), Trig(), Prediction.X0)
    score = Denoiser(Conditioned(), Trig(), Prediction.X0)
    objective = method(SiD, student, score, teacher=guided(3.0), guidance=guidance)
    given, t = told(batch(8)), torch.full((8,), 0.5)
    exact = DATA.posterior(given.x0, t)
    scores = objective.teacher, objective.fake_score.x0
    for score, added in zip(scores, (teacher, fake), strict=True):
        x0 = score(given.x0, t, given.cond)
        torch.testing.assert_close(x0, exact + added, atol=1e-5, rtol=0)


def test_sids_guidance_wants_a_guided_teacher():
    with pytest.raises(ValueError, match=r"guidance=zero: teacher\.guidance=1"):
        method(SiD, located(FAR, 0.5), guidance="zero")


@pytest.mark.parametrize("guidance", ["teacher", "long-short", "zero", "anti"])
def test_the_discriminator_sees_samples_and_data_under_one_condition(guidance):
    objective = method(
        SiD,
        Denoiser(TimeConditioned(FAR, 0.5), Trig(), Prediction.X0),
        Denoiser(Conditioned(), Trig(), Prediction.X0),
        teacher=guided(3.0),
        guidance=guidance,
    )
    shown = judging(objective)
    given = told(batch(8))
    objective.loss("fake_score", given)
    objective.loss("student", given)
    assert len(shown) == 3
    assert all(torch.equal(y, given.cond["y"]) for y in shown)


def test_sid_takes_a_gan_as_well():
    fake = Denoiser(PlanarNet(width=16, depth=2), Trig(), Prediction.V)
    objective = method(SiD, located(FAR, 0.5), fake, gan_weight=0.1)
    assert "gan" in objective.loss("student", batch(16)).logs
    assert "accuracy" in objective.loss("fake_score", batch(16)).logs
