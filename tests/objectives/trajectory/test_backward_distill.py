"""Backward distillation on a Gaussian, whose flow between any two times is known."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from oracles import Affine, Gaussian
from torch import nn

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Linear, Trig
from edgedistill.diffusion.solvers import ddim_step, one_step_x0, time_grid
from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.objectives.trajectory.backward_distill import BackwardDistill, noise_corrected

DATA = Gaussian([0.7, -0.4], 0.5, Trig())
TIMES = time_grid(Trig(), 4)


def exact(gain=1.0, shift=0.0):
    """The path's end."""
    return Denoiser(Affine(DATA.consistency, gain, shift), Trig(), Prediction.X0)


def onward(x_t, t):
    """The x0 with which the DDIM step from x_t lands on the path at the next of TIMES."""
    s = TIMES[1 + int((TIMES - t[0]).abs().argmin())]
    if s == 0:
        return DATA.consistency(x_t, t)
    return one_step_x0(Trig(), x_t, DATA.flow(x_t, t, s.expand_as(t)), t[0], s)


def stepping(gain=1.0, shift=0.0):
    """What deterministic steps are to learn."""
    return Denoiser(Affine(onward, gain, shift), Trig(), Prediction.X0)


def method(student, sampler="ddim", **config):
    setup = Setup(
        teacher=DATA.denoiser(),
        student=student,
        spawn=lambda: student,
        times=TIMES,
        sampler=sampler,
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 2), {}),
    )
    return BackwardDistill(BackwardDistill.Config(**config), setup)


def batch(count=256, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.full((count, 2), torch.nan, dtype=torch.float64)  # no data is looked at
    return Batch(x0, {}, generator, torch.Generator().manual_seed(seed))


def gradient(student, seed, sampler="ddim", **config):
    """(loss, norm of its gradient)."""
    losses = method(student, sampler, **config).loss("student", batch(seed=seed))
    found = torch.autograd.grad(losses.total, list(student.parameters()))
    return losses.total.item(), torch.stack(found).norm().item()


@pytest.mark.parametrize(("sampler", "made"), [("ddim", stepping), ("renoise", exact)])
def test_the_teachers_map_has_no_loss_and_no_gradient_at_any_step(sampler, made):
    for seed in range(6):
        loss, slope = gradient(made(), seed, solver_steps=64, sampler=sampler)
        off_loss, off_slope = gradient(made(0.7, 0.1), seed, solver_steps=64, sampler=sampler)
        assert loss < 1e-5
        assert slope < 5e-3
        assert off_loss > 1e3 * loss
        assert off_slope > 20 * slope


def test_inputs_are_the_students_own_samples():
    student = exact(0.8, 0.1).requires_grad_(False)
    objective, drawn = method(student), batch()
    x = objective.own(3, drawn)
    want = torch.randn(256, 2, generator=torch.Generator().manual_seed(0)).double()
    for t, s in pairwise(TIMES[:4]):
        want = ddim_step(Trig(), want, student(want, t, {}), t, s)
    torch.testing.assert_close(x, want)
    assert method(student, "renoise").own(2, batch()).std() > 0


def test_shifted_the_teacher_sets_out_further_on():
    objective = method(exact(), "renoise", shift=0.5, solver_steps=64)
    x_t, t = torch.randn(100, 2, generator=torch.Generator().manual_seed(0)).double(), TIMES[1]
    x0 = torch.ones_like(x_t)
    found = objective.target(1, x_t, x0, batch(100))
    x_u = ddim_step(Trig(), x_t, x0, t, t / 2)
    want = DATA.consistency(x_u, (t / 2).expand(100))
    torch.testing.assert_close(found, want, atol=3e-3, rtol=0)


@pytest.mark.parametrize("schedule", [Trig(), Linear()])
def test_the_students_own_row_lands_where_the_target_says(schedule):
    """Of the first step, whose noise is corrected, and of a later one."""
    data = Gaussian([0.7, -0.4], 0.5, schedule)
    student = Denoiser(Affine(data.consistency), schedule, Prediction.X0).requires_grad_(False)
    setup = replace(method(exact()).setup, teacher=data.denoiser(), student=student)
    objective = BackwardDistill(BackwardDistill.Config(solver_steps=64), setup)
    x_t = torch.randn(100, 2, generator=torch.Generator().manual_seed(0)).double()
    for index in (0, 1):
        row, (t, s) = objective.steps.rows[index], TIMES[index : index + 2]
        x0 = objective.target(index, x_t, x_t, batch(100))  # of a network that predicts it
        landed = row.a * x_t + row.b * x0
        torch.testing.assert_close(
            landed, data.flow(x_t, t.expand(100), s.expand(100)), atol=3e-3, rtol=0
        )


@pytest.mark.parametrize("kind", list(Prediction))
def test_the_first_step_takes_its_start_for_its_noise(kind):
    schedule, times = Linear(), time_grid(Linear(), 3)
    net = Affine(lambda x, t: torch.full_like(x, 0.3))
    student = Denoiser(net, schedule, kind).requires_grad_(False)
    table = few_step_table(schedule, kind, times, "ddim")
    row = noise_corrected(table, student, times).rows[0]
    x_t = torch.randn(10, 2, generator=torch.Generator().manual_seed(0)).double()
    found = row.a * x_t + row.b * net(x_t, times[0])
    (alpha, sigma), t = schedule.at(times[1].expand(10), like=x_t), times[0]
    want = alpha * student(x_t, t, {}) + sigma * x_t / schedule.sigma(t)
    torch.testing.assert_close(found, want)
    assert noise_corrected(table, student, times).rows[1:] == table.rows[1:]


def test_without_signal_nothing_is_to_correct():
    student = Denoiser(nn.Identity(), Trig(), Prediction.V)
    table = few_step_table(Trig(), Prediction.V, TIMES, "ddim")
    first, plain = noise_corrected(table, student, TIMES).rows[0], table.rows[0]
    assert (first.a, first.b) == pytest.approx((plain.a, plain.b))
    assert method(exact(), noise_correction=False).table() == few_step_table(
        Trig(), Prediction.X0, TIMES, "ddim"
    )
