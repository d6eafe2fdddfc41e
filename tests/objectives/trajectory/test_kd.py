"""KD and SFD on a Gaussian, whose ODE's every step is a closed form."""

import pytest
import torch
from oracles import Affine, Gaussian

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.solvers import ddim_step, time_grid
from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.objectives.trajectory.kd import KD
from edgedistill.objectives.trajectory.sfd import SFD

DATA = Gaussian([0.7, -0.4], 0.5, Trig())


def quantile(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Where the ODE of `DATA` is at t, started from z at time 1."""
    alpha, deviation = DATA.deviation(t, z)
    return alpha * DATA.mean.to(z) + deviation * z


def stepper(times: torch.Tensor, gain: float = 1.0) -> Denoiser:
    """A student each of whose DDIM steps lands on the exact path."""

    def x0(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        t = t.double()
        s = torch.stack([times[(times < now - 1e-6).nonzero()[0, 0]] for now in t])
        alpha, deviation = DATA.deviation(t, x)
        x_s = quantile((x - alpha * DATA.mean.to(x)) / deviation, s)
        alpha_t, sigma_t = Trig().at(t, like=x)
        alpha_s, sigma_s = Trig().at(s, like=x)
        ratio = sigma_s / sigma_t
        return (x_s - ratio * x) / (alpha_s - ratio * alpha_t)

    return Denoiser(Affine(x0, gain), Trig(), Prediction.X0)


def method(student: Denoiser, steps: int, sampler: str = "ddim", kind=KD, **config) -> KD:
    setup = Setup(
        teacher=DATA.denoiser(),
        student=student,
        spawn=lambda: student,
        times=time_grid(Trig(), steps),
        sampler=sampler,
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 2), {}),
    )
    return kind(kind.Config(**config), setup)


def batch(steps: int, count: int = 512) -> Batch:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    path = torch.stack([quantile(z, t[None]) for t in time_grid(Trig(), steps)], 1)
    return Batch(path[:, -1], {}, generator, generator, path=path)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("kind", ["l2", "pseudo-huber"])
def test_the_exact_steps_have_no_loss_and_no_gradient(steps, kind):
    student = stepper(time_grid(Trig(), steps))
    losses = method(student, steps, distance={"kind": kind}).loss("student", batch(steps))
    gradient = torch.autograd.grad(losses.total, list(student.parameters()))
    assert losses.total.item() < 1e-9
    assert torch.stack(gradient).norm().item() < 1e-5
    off = stepper(time_grid(Trig(), steps), gain=0.9)
    losses = method(off, steps, distance={"kind": kind}).loss("student", batch(steps))
    gradient = torch.autograd.grad(losses.total, list(off.parameters()))
    assert losses.total.item() > 5e-4
    assert torch.stack(gradient).norm().item() > 5e-3


def test_one_step_is_regression_on_pairs_of_noise_and_sample():
    student = stepper(time_grid(Trig(), 1), gain=0.5)
    given = batch(1)
    noise, x0 = given.path[:, 0], given.path[:, 1]
    loss = method(student, 1).loss("student", given).total
    ours = student(noise, torch.ones(len(noise)), {})
    torch.testing.assert_close(loss, (ours - x0).square().mean())


def test_its_table_follows_the_ode():
    times = time_grid(Trig(), 4)
    student = stepper(times).requires_grad_(False)
    table = few_step_table(Trig(), student.prediction, times, "ddim")
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = table.sample(student.net, [noise], {})
    exact = DATA.consistency(noise, torch.ones(1))
    torch.testing.assert_close(drawn, exact, atol=1e-5, rtol=0)


def test_steps_that_draw_noise_are_refused():
    with pytest.raises(ValueError, match="sampler=renoise: the steps of kd draw no noise"):
        method(stepper(time_grid(Trig(), 4)), 4, "renoise")
    method(stepper(time_grid(Trig(), 1)), 1, "renoise")


# --- SFD ----------------------------------------------------------------------------------------


def test_sfd_has_no_loss_and_no_gradient_at_the_exact_steps():
    found, times = [], time_grid(Trig(), 4)
    for gain in (1.0, 0.9):
        student = stepper(times, gain)
        objective = method(student, 4, kind=SFD, distance={"kind": "l2"})  # l1 has no slope of 0
        losses = objective.loss("student", batch(4))
        gradient = torch.autograd.grad(losses.total, list(student.parameters()))
        found.append((losses.total.item(), torch.stack(gradient).norm().item()))
    assert found[0][0] < 1e-9
    assert found[0][1] < 1e-4
    assert found[1][0] > 1e-3
    assert found[1][1] > 1e-2


def test_a_step_of_sfd_starts_where_the_last_one_landed_and_leaves_it_alone():
    student = Denoiser(Affine(lambda x, t: x.tanh(), 0.5), Trig(), Prediction.X0)
    gain, given, times = student.net.gain, batch(4), time_grid(Trig(), 4)
    x, wanted = given.path[:, 0], []
    for i in range(4):
        landing = ddim_step(Trig(), x, gain * x.tanh(), times[i], times[i + 1])
        wanted.append((landing - given.path[:, i + 1]).abs().mean())
        x = landing.detach()
    total = torch.stack(wanted).mean()
    losses = method(student, 4, kind=SFD).loss("student", given)
    torch.testing.assert_close(losses.total, total)
    torch.testing.assert_close(losses.logs["first"], wanted[0].detach())
    torch.testing.assert_close(losses.logs["last"], wanted[-1].detach())
    ours, theirs = (torch.autograd.grad(loss, [gain])[0] for loss in (losses.total, total))
    torch.testing.assert_close(ours, theirs)
