"""BOOT on a Gaussian, whose signal along the ODE is a closed form."""

import pytest
import torch
from oracles import Affine, Gaussian

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.solvers import time_grid
from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.objectives.trajectory.boot import BOOT

DATA = Gaussian([0.7, -0.4], 0.5, Trig())


def signal(eps: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """(x_s - sigma_s eps) / alpha_s of the exact path; its limit, the mean, at time 1."""
    alpha, sigma = Trig().at(s, like=eps)
    deviation = (alpha**2 * DATA.scale**2 + sigma**2).sqrt()
    # (deviation - sigma) / alpha without the division of 0 by 0.
    return DATA.mean.to(eps) + alpha * DATA.scale**2 / (deviation + sigma) * eps


def student_of(gain: float = 1.0, shift: float = 0.0) -> Denoiser:
    """The exact signal, by the time gone by."""

    def x0(x: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        return signal(x, 1 - read.double())

    return Denoiser(Affine(x0, gain, shift), Trig(), Prediction.X0)


def method(student: Denoiser, steps: int = 1, **config) -> BOOT:
    setup = Setup(
        teacher=DATA.denoiser(),
        student=student,
        spawn=lambda: student,
        times=time_grid(Trig(), steps),
        sampler="ddim",
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 2), {}),
    )
    return BOOT(BOOT.Config(**config), setup)


def batch(count: int = 2048, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.zeros(count, 2, dtype=torch.float64), {}, generator, generator)


def loss_and_gradient(student: Denoiser, **config) -> tuple[float, float]:
    losses = method(student, **config).loss("student", batch())
    gradient = torch.autograd.grad(losses.total, list(student.parameters()))
    return losses.total.item(), torch.stack(gradient).norm().item()


def test_the_exact_signal_has_no_loss_and_no_gradient():
    loss, gradient = loss_and_gradient(student_of(), solver_steps=1000)
    assert loss < 1e-9
    assert gradient < 1e-4
    off_loss, off_gradient = loss_and_gradient(student_of(0.9), solver_steps=1000)
    assert off_loss > 1e-3
    assert off_gradient > 1e-2


def test_the_error_of_its_steps_falls_with_their_number():
    losses = [
        loss_and_gradient(student_of(), solver_steps=n, boundary_weight=0)[0] for n in (10, 20, 40)
    ]
    # A step's error is second order and the loss its square.
    assert losses[0] > 8 * losses[1] > 64 * losses[2]


def test_the_boundary_is_the_teachers_x0_of_pure_noise():
    student = student_of(shift=0.3)
    logs = method(student).loss("student", batch()).logs
    assert logs["boundary"].item() == pytest.approx(0.09, rel=1e-5)
    assert "boundary" not in method(student, boundary_weight=0).loss("student", batch()).logs


def test_descent_finds_the_signal_from_noise_alone():
    student = student_of(0.5, 0.2)
    objective = method(student, solver_steps=25)
    optim = torch.optim.Adam(student.parameters(), 0.03)
    for step in range(300):
        optim.zero_grad()
        torch.autograd.backward(objective.loss("student", batch(64, step)).total)
        optim.step()
    assert student.net.gain.item() == pytest.approx(1, abs=0.03)
    assert student.net.shift.item() == pytest.approx(0, abs=0.03)


def test_its_last_word_is_that_of_an_ordinary_step():
    student = student_of().requires_grad_(False)
    table = few_step_table(Trig(), student.prediction, time_grid(Trig(), 1), "ddim")
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = DATA.consistency(noise, torch.ones(1))
    torch.testing.assert_close(table.sample(student.net, [noise], {}), exact)
    ours = method(student).signal(noise, torch.zeros(64).double(), {})
    torch.testing.assert_close(ours, exact)
