"""DMD2 on Gaussians, whose scores and reverse KL are closed forms."""

from dataclasses import replace

import pytest
import torch
from oracles import Affine, Gaussian
from torch import Tensor, nn

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.losses import matching_gradient, surrogate_loss
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.solvers import time_grid
from edgedistill.networks.planar import PlanarNet
from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.objectives.matching.dmd2 import DMD2

DATA = Gaussian([0.7, -0.4], 0.5, Trig())


class Located(nn.Module):
    """One-step student: mean + scale x, both trainable; remembers its inputs."""

    def __init__(self, mean: list[float], scale: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean))
        self.scale = nn.Parameter(torch.tensor(scale))
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.inputs.append(x.detach())
        return self.mean + self.scale * x


def method(
    student: Denoiser,
    fake: Denoiser,
    *,
    steps: int = 1,
    sampler: str = "renoise",
    tap: str = "",
    **config,
) -> DMD2:
    setup = Setup(
        teacher=DATA.denoiser(),
        student=student,
        spawn=lambda: fake,
        times=time_grid(Trig(), steps),
        sampler=sampler,
        optim=Optim(),
        tap=tap,
        example=(torch.zeros(2, 2), {}),
    )
    return DMD2(DMD2.Config(**{"gan_weight": 0.0, **config}), setup)


def one_step(mean: list[float], scale: float, **config) -> tuple[DMD2, Located]:
    """A student of N(mean, scale^2) in one step, with its exact fake score."""
    net = Located(mean, scale)
    fake = Gaussian(mean, scale, Trig()).denoiser()
    return method(Denoiser(net, Trig(), Prediction.X0), fake, **config), net


def batch(count: int = 4096, seed: int = 0, shared: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x0 = DATA.draw(count, generator)
    return Batch(x0, {}, generator, torch.Generator().manual_seed(shared))


def test_the_matching_gradient_is_the_difference_of_scores():
    """x0-predictions differ by sigma^2 / alpha (score_fake - score_real)."""
    student = Gaussian([-0.3, 0.2], 0.9, Trig())
    generator = torch.Generator().manual_seed(0)
    x0 = student.draw(64, generator).double()
    t = torch.rand(64, generator=generator, dtype=torch.float64) * 0.9 + 0.05
    alpha, sigma = Trig().at(t, like=x0)
    x_t = alpha * x0 + sigma * torch.randn(64, 2, generator=generator, dtype=torch.float64)
    x_t.requires_grad_(True)
    ratio = (student.log_density(x_t, t) - DATA.log_density(x_t, t)).sum()
    (scores,) = torch.autograd.grad(ratio, x_t)
    real, fake = DATA.posterior(x_t, t), student.posterior(x_t, t)
    norm = (x0 - real).abs().mean(1, keepdim=True).clamp(min=1e-3)
    expected = sigma**2 / alpha * scores / norm
    torch.testing.assert_close(matching_gradient(x0, real, fake), expected, rtol=1e-5, atol=1e-7)


def test_the_surrogate_loss_hands_its_gradient_to_x0():
    x0 = torch.randn(4, 3, requires_grad=True)
    gradient = torch.randn(4, 3)
    (found,) = torch.autograd.grad(surrogate_loss(x0, gradient), x0)
    torch.testing.assert_close(found, gradient / 12)


def test_the_students_gradient_is_that_of_the_reverse_kl_in_its_mean():
    """With equal scales it points exactly from the teacher's mean to the student's."""
    objective, net = one_step([1.5, -1.0], DATA.scale)
    torch.autograd.backward(objective.loss("student", batch()).total)
    away = torch.tensor([1.5, -1.0]) - DATA.mean
    cosine = torch.nn.functional.cosine_similarity(net.mean.grad, away, dim=0).item()
    assert cosine == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("scale", "sign"), [(1.0, 1), (0.25, -1)])
def test_the_students_gradient_shrinks_what_is_wide_and_widens_what_is_narrow(scale, sign):
    objective, net = one_step(DATA.mean.tolist(), scale)
    torch.autograd.backward(objective.loss("student", batch()).total)
    assert net.scale.grad.item() * sign > 0.02
    assert net.mean.grad.norm() < 0.05 * net.scale.grad.abs()


def test_a_student_that_has_the_teachers_law_has_no_gradient():
    objective, net = one_step(DATA.mean.tolist(), DATA.scale)
    losses = objective.loss("student", batch())
    torch.autograd.backward(losses.total)
    assert losses.total.item() < 1e-12
    assert net.mean.grad.norm() < 1e-6
    assert net.scale.grad.abs() < 1e-6


def test_descent_with_the_exact_fake_score_finds_the_teachers_law():
    objective, net = one_step([-1.0, 1.0], 1.2)
    optim = torch.optim.Adam(net.parameters(), 0.03)
    for step in range(200):
        law = Gaussian(net.mean.tolist(), net.scale.item(), Trig())
        objective.fake_score.denoiser = law.denoiser()
        optim.zero_grad()
        torch.autograd.backward(objective.loss("student", batch(128, step)).total)
        optim.step()
    torch.testing.assert_close(net.mean.detach(), DATA.mean, atol=0.08, rtol=0)
    assert net.scale.item() == pytest.approx(DATA.scale, abs=0.08)


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_backward_simulation_of_a_perfect_student_has_the_teachers_marginals(index):
    student = Denoiser(Affine(DATA.consistency), Trig(), Prediction.X0)
    objective = method(student, student, steps=4)
    with torch.no_grad():
        x_t = objective.rollout.simulate(index, batch(40000))
    t = objective.times[index : index + 1]
    alpha, deviation = DATA.deviation(t, x_t)
    torch.testing.assert_close(x_t.mean(0), alpha[0] * DATA.mean, atol=0.02, rtol=0)
    torch.testing.assert_close(x_t.std(0), deviation[0].expand(2), atol=0.02, rtol=0)


@pytest.mark.parametrize("sampler", ["renoise", "ddim"])
def test_backward_simulation_walks_the_students_own_step_table(sampler):
    student = Denoiser(Affine(lambda x, t: torch.tanh(x)), Trig(), Prediction.V)
    objective = method(student, student, steps=3, sampler=sampler)
    table = few_step_table(Trig(), Prediction.V, objective.times, sampler)
    given = batch(16, seed=7)
    with torch.no_grad():
        x0 = student(objective.rollout.simulate(2, given), objective.times[2], {})
    generator = torch.Generator().manual_seed(7)
    DATA.draw(16, generator)
    drawn = table.sample(student.net, table.draw((16, 2), generator), {})
    torch.testing.assert_close(x0, drawn.detach(), atol=1e-5, rtol=1e-5)


def late_step(objective: DMD2) -> int:
    """A shared seed for which the student is asked at its last step."""
    last = len(objective.times) - 2
    return next(
        seed
        for seed in range(100)
        if torch.randint(last + 1, (), generator=torch.Generator().manual_seed(seed)) == last
    )


@pytest.mark.parametrize(("rollout", "calls"), [("simulate", 4), ("data", 1)])
def test_rollout_decides_whose_samples_later_steps_see(rollout, calls):
    net = Located([5.0, 5.0], 0.01)  # a student far from the data
    student = Denoiser(net, Trig(), Prediction.X0)
    objective = method(student, DATA.denoiser(), steps=4, rollout=rollout)
    objective.loss("student", batch(512, shared=late_step(objective)))
    assert len(net.inputs) == calls
    alpha = Trig().alpha(objective.times[3]).item()
    mean = {"simulate": 5.0 * torch.ones(2), "data": DATA.mean}[rollout]
    torch.testing.assert_close(net.inputs[-1].mean(0), alpha * mean, atol=0.1, rtol=0)


def with_head(**config) -> tuple[DMD2, Denoiser]:
    torch.manual_seed(0)
    fake = Denoiser(PlanarNet(width=16, depth=2), Trig(), Prediction.V)
    student = Denoiser(Located([0.0, 0.0], 1.0), Trig(), Prediction.X0)
    config = {"gan_weight": 0.5, "classify_weight": 0.5, **config}
    return method(student, fake, tap="blocks.1", **config), student


def test_the_gan_term_reaches_the_student_through_a_frozen_head():
    objective, student = with_head()
    fake_score, turn = (player.net for player in objective.players())
    assert turn is student
    fake_score.requires_grad_(False)  # as the trainer does for everyone not playing
    losses = objective.loss("student", batch(64))
    torch.autograd.backward(losses.total)
    assert student.net.mean.grad.norm() > 0
    assert all(p.grad is None for p in fake_score.parameters())
    plain, _ = with_head(gan_weight=0.0)
    assert "gan" in losses.logs
    assert "gan" not in plain.loss("student", batch(64)).logs


def test_the_fake_scores_turn_trains_it_and_its_head_but_not_the_student():
    objective, student = with_head()
    losses = objective.loss("fake_score", batch(64))
    torch.autograd.backward(losses.total)
    assert all(p.grad is None for p in student.parameters())
    moved = [p.grad is not None for p in objective.players()[0].net.parameters()]
    assert all(moved)
    assert {"denoising", "gan", "accuracy"} <= set(losses.logs)


def test_the_exact_fake_score_minimises_the_denoising_loss():
    """E|x0 - E[x0|x_t]|^2 is the posterior variance; any other prediction adds to it."""
    mean, scale = [0.3, 0.1], 0.8
    truth = Gaussian(mean, scale, Trig())
    student = Denoiser(Located(mean, scale), Trig(), Prediction.X0)
    losses = {}
    for gain in (0.8, 1.0, 1.2):
        fake = Denoiser(Affine(truth.posterior, gain), Trig(), Prediction.X0)
        losses[gain] = method(student, fake).loss("fake_score", batch(20000)).total.item()
    assert losses[1.0] < min(losses[0.8], losses[1.2])
    # Mean over t in [0, 1] of scale^2 sigma^2 / (alpha^2 scale^2 + sigma^2).
    t = (torch.arange(1000).double() + 0.5) / 1000
    alpha, sigma = Trig().alpha(t), Trig().sigma(t)
    variance = (scale**2 * sigma**2 / (alpha**2 * scale**2 + sigma**2)).mean().item()
    assert losses[1.0] == pytest.approx(variance, rel=0.03)


def test_two_time_scales_are_the_players_turns():
    objective, _ = with_head(turns=3, warmup=4)
    fake_score, student = objective.players()
    assert [step for step in range(12) if student.plays(step)] == [5, 8, 11]
    assert all(fake_score.plays(step) for step in range(12))


def test_a_missing_tap_is_named():
    fake = Denoiser(PlanarNet(width=8, depth=1), Trig(), Prediction.V)
    with pytest.raises(ValueError, match=r"no module 'blocks\.7'"):
        method(fake, fake, tap="blocks.7", gan_weight=1.0)


def test_times_out_of_order_are_named():
    with pytest.raises(ValueError, match=r"low=0\.9 must be below high=0\.2"):
        one_step([0.0, 0.0], 1.0, min_time=0.9, max_time=0.2)


def test_the_regression_vanishes_at_the_teachers_ode_map_and_nowhere_else():
    """The exact map of a Gaussian teacher; 40 solver steps leave an error of about 1e-3."""
    for gain, low, high in ((1.0, 0.0, 1e-5), (1.2, 1e-3, 1.0)):
        student = Denoiser(Affine(DATA.consistency, gain), Trig(), Prediction.X0)
        objective = method(student, DATA.denoiser(), steps=3, regression=5, regression_steps=40)
        for shared in range(4):  # every step of the student
            given = batch(256, shared=shared)
            losses = objective.loss("student", given)
            assert set(losses.logs) == {"regression"}
            assert low <= losses.total.item() < high


def test_the_regression_comes_before_the_warm_up_and_the_warm_up_before_the_matching():
    objective, _ = one_step([0.0, 0.0], 1.0, turns=2, warmup=3, regression=4)
    fake_score, student = objective.players()
    assert [step for step in range(12) if student.plays(step)] == [0, 1, 2, 3, 7, 9, 11]
    assert [step for step in range(12) if fake_score.plays(step)] == list(range(4, 12))
    late = replace(batch(64), step=4)
    assert "matching" in objective.loss("student", late).logs


def test_the_regression_term_adds_to_the_matching_at_its_weight():
    def total(weight: float) -> dict[str, float]:
        student = Denoiser(Affine(DATA.consistency, 1.3), Trig(), Prediction.X0)
        objective = method(student, DATA.denoiser(), regression_weight=weight)
        losses = objective.loss("student", batch(256))
        return {"total": losses.total.item(), **{k: v.item() for k, v in losses.logs.items()}}

    plain, kept = total(0.0), total(0.5)
    assert "regression" not in plain
    assert kept["regression"] > 1e-3
    assert kept["total"] == pytest.approx(plain["total"] + 0.5 * kept["regression"], rel=1e-5)
