"""Sub-path linear approximation: where chords lie, and a Gaussian's consistency function."""

import pytest
import torch
from oracles import Gaussian, consistency_student

from edgedistill.diffusion.boundary import noise_boundary
from edgedistill.diffusion.schedules import Discrete, Rectified, Trig
from edgedistill.diffusion.solvers import ddim_step, time_grid
from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.objectives.consistency.slam import SLAM, between

DATA = Gaussian([0.7, -0.4], 0.5, Trig())
DISCRETE = Discrete(torch.cos(torch.linspace(0.05, 1.5, 1000, dtype=torch.float64)).square())


def method(student, **config):
    setup = Setup(
        teacher=DATA.denoiser(),
        student=student,
        spawn=lambda: student,
        times=time_grid(Trig(), 4),
        sampler="renoise",
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 2), {}),
        train_steps=800,
    )
    return SLAM(SLAM.Config(**config), setup)


def batch(count=4096, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x0 = DATA.draw(count, generator).double()
    return Batch(x0, {}, generator, torch.Generator().manual_seed(seed))


def points(schedule):
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(6, 2, generator=generator).double() for _ in range(2))
    t = torch.tensor([0.9, 0.9, 0.5, 0.5, 0.2, 0.2], dtype=torch.float64)
    s = torch.tensor([0.7, 0.7, 0.1, 0.1, 0.0, 0.0], dtype=torch.float64)
    gamma = torch.tensor([0.3, 1.0, 0.5, 0.9, 0.5, 0.1], dtype=torch.float64)

    def noised(time):
        alpha, sigma = schedule.at(time, like=x0)
        return alpha * x0 + sigma * (time > 0)[:, None] * eps

    return x0, eps, t, s, gamma, noised


@pytest.mark.parametrize("schedule", [Trig(), Rectified(shift=3.0), DISCRETE])
def test_between_is_the_same_data_and_noise_at_the_mean_of_the_ratios(schedule):
    _, _, t, s, gamma, noised = points(schedule)
    x_u, u = between(schedule, noised(t), t, noised(s), s, gamma)
    torch.testing.assert_close(x_u, noised(u))

    def ratio(time):
        return schedule.sigma(time) / schedule.alpha(time) * (time > 0)

    torch.testing.assert_close(ratio(u), (1 - gamma) * ratio(s) + gamma * ratio(t))


def test_between_lies_on_the_teachers_step():
    """DDIM's step is a chord, so any part of it is a step of its own."""
    x0, _, t, s, gamma, noised = points(Trig())
    x_t = noised(t) + 0.3
    x_u, u = between(Trig(), x_t, t, ddim_step(Trig(), x_t, x0, t, s), s, gamma)
    torch.testing.assert_close(x_u, ddim_step(Trig(), x_t, x0, t, u))


def test_without_signal_all_of_the_chord_is_noise():
    t, s = torch.ones(1, dtype=torch.float64), torch.full((1,), 0.9, dtype=torch.float64)
    x_t, x_s = torch.tensor([[1.0, -2.0]]).double(), torch.zeros(1, 2).double()
    x_u, u = between(Trig(), x_t, t, x_s, s, torch.full_like(t, 0.4))
    assert u.item() == pytest.approx(1)
    torch.testing.assert_close(x_u, x_t)


def gradient(objective, drawn):
    """(loss, norm of its gradient)."""
    losses = objective.loss("student", drawn)
    found = torch.autograd.grad(losses.total, list(objective.student.parameters()))
    return losses.total.item(), torch.stack(found).norm().item()


def test_the_exact_function_has_no_loss_and_no_gradient():
    smooth = {"kind": "pseudo-huber", "c": 1.0}
    config = {"first_intervals": 500, "last_intervals": 500, "distance": smooth}
    boundary = noise_boundary(Trig(), 0.5)
    exact = consistency_student(DATA, boundary)
    loss, slope = gradient(method(exact, **config), batch())
    off = consistency_student(DATA, boundary, 0.7, 0.1)
    off_loss, off_slope = gradient(method(off, **config), batch())
    assert loss < 1e-7
    assert slope < 1e-4
    assert off_loss > 50 * loss
    assert off_slope > 5 * slope


def test_the_student_sets_out_anywhere_on_the_interval():
    objective, seen = method(consistency_student(DATA, noise_boundary(Trig(), 0.5))), []
    objective.student.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    objective.loss("student", batch(2000))
    place = seen[0] * 50 % 1
    assert torch.histc(place.float(), 4, 0, 1).min() > 300
