"""LCM on a Gaussian, whose consistency function is a closed form."""

import pytest
import torch
from oracles import Affine, Gaussian, consistency_student
from torch import nn

from edgedistill.diffusion.boundary import lcm_boundary
from edgedistill.diffusion.denoiser import Denoiser, Guided
from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.solvers import time_grid
from edgedistill.networks.planar import PlanarNet
from edgedistill.networks.two_times import TwoTimes
from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.objectives.consistency.lcm import LCM

DATA = Gaussian([0.7, -0.4], 0.5, Trig())
PLAIN = Gaussian([0.0, 0.0], 0.5, Trig())
BOUNDARY = lcm_boundary(10.0)


def method(student: Denoiser, **config) -> LCM:
    setup = Setup(
        teacher=DATA.denoiser(),
        student=student,
        spawn=lambda: student,
        times=time_grid(Trig(), 4),
        sampler="renoise",
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 2), {}),
    )
    return LCM(LCM.Config(**config), setup)


def batch(count: int = 4096, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x0 = DATA.draw(count, generator).double()
    return Batch(x0, {}, generator, torch.Generator().manual_seed(seed))


def loss_and_gradient(student: Denoiser, **config) -> tuple[float, float]:
    losses = method(student, **config).loss("student", batch())
    gradient = torch.autograd.grad(losses.total, list(student.parameters()))
    return losses.total.item(), torch.stack(gradient).norm().item()


def test_the_exact_consistency_function_has_no_loss_and_no_gradient():
    config = {"solver_steps": 1000, "huber_c": 1.0}
    loss, gradient = loss_and_gradient(consistency_student(DATA, BOUNDARY), **config)
    assert loss < 1e-7
    assert gradient < 1e-4
    off_loss, off_gradient = loss_and_gradient(
        consistency_student(DATA, BOUNDARY, gain=0.7, shift=0.1), **config
    )
    # Wrong everywhere alike, it disagrees with itself only at the last step, which has the data.
    assert off_loss > 100 * loss
    assert off_gradient > 1.0e-4


def test_the_error_of_the_teachers_step_falls_with_the_solver_steps():
    losses = [
        loss_and_gradient(consistency_student(DATA, BOUNDARY), solver_steps=n, huber_c=1.0)[0]
        for n in (10, 20, 40)
    ]
    # The local error of DDIM is second order and the loss here its square.
    assert losses[0] > 8 * losses[1] > 64 * losses[2]


def test_the_last_step_pulls_towards_the_data_and_descent_finds_the_map():
    """From a wrong gain, gradient descent on the loss finds gain 1 and shift 0."""
    student = consistency_student(DATA, BOUNDARY, gain=0.6, shift=0.2)
    objective = method(student, solver_steps=8, ema=0.0, huber_c=1.0)
    optim = torch.optim.Adam(student.parameters(), 0.03)
    for step in range(200):
        optim.zero_grad()
        torch.autograd.backward(objective.loss("student", batch(64, step)).total)
        optim.step()
        objective.updated("student")
    assert student.net.gain.item() == pytest.approx(1, abs=0.12)
    assert student.net.shift.item() == pytest.approx(0, abs=0.08)


def test_at_time_zero_the_consistency_function_is_the_identity():
    wild = Denoiser(Affine(lambda x, t: x.exp(), 3.0, 5.0), Trig(), Prediction.V)
    objective = method(wild)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    skip, out = BOUNDARY(torch.zeros(1))
    assert (skip.item(), out.item()) == (1.0, 0.0)
    torch.testing.assert_close(objective.consistency(wild, x, torch.zeros(5), {}), x)


def test_the_boundary_is_that_of_diffusers():
    from diffusers import LCMScheduler

    peer = LCMScheduler()
    for k in (0, 1, 19, 999):
        skip, out = peer.get_scalings_for_boundary_condition_discrete(k)
        ours = BOUNDARY(torch.tensor(k / 1000))
        assert ours[0].item() == pytest.approx(skip, rel=1e-6)
        assert ours[1].item() == pytest.approx(out, rel=1e-6)


def test_the_target_follows_the_student_and_never_trains():
    student = consistency_student(DATA, BOUNDARY, gain=1.0)
    objective = method(student, ema=0.9)
    target = objective.followers()["target"]
    with torch.no_grad():
        student.net.gain.fill_(2.0)
    objective.updated("student")
    assert target.net.gain.item() == pytest.approx(1.1)
    torch.autograd.backward(objective.loss("student", batch(8)).total)
    assert target.net.gain.grad is None
    assert student.net.gain.grad is not None


def test_its_step_table_draws_the_data():
    student = consistency_student(DATA, BOUNDARY).requires_grad_(False)
    table = few_step_table(
        Trig(), student.prediction, time_grid(Trig(), 4), "renoise", method(student).boundary()
    )
    noise = table.draw((20000, 2), torch.Generator().manual_seed(0))
    drawn = table.sample(student.net, noise, {})
    torch.testing.assert_close(drawn.mean(0), DATA.mean, atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.std(0), torch.full((2,), DATA.scale), atol=0.02, rtol=0)


def test_a_batch_decides_the_loss_to_the_bit():
    student = consistency_student(DATA, BOUNDARY, gain=0.9)
    objective = method(student)
    assert (
        objective.loss("student", batch(64, 3)).total
        == objective.loss("student", batch(64, 3)).total
    )


class TimeConditioned(nn.Module):
    """The exact consistency function of each scale's guided Gaussian, as LCM's network."""

    def __init__(self, low: float, high: float, gain: float = 1.0) -> None:
        super().__init__()
        self.low, self.high, self.gain = low, high, nn.Parameter(torch.tensor(gain))

    def forward(self, x, t, c, s):
        scale = (self.low + (self.high - self.low) * s).reshape(-1, 1).to(x)
        skip, out = (part.reshape(-1, 1).to(x) for part in BOUNDARY(t))
        plain, moved = (data.consistency(x, t) for data in (PLAIN, DATA))
        return self.gain * (torch.lerp(plain, moved, scale) - skip * x) / out


class Conditional(nn.Module):
    """x0 of the plain data, or of the moved where the condition is 1."""

    def forward(self, x, t, c):
        return torch.lerp(PLAIN.posterior(x, t), DATA.posterior(x, t), c)


def guided(gain: float = 1.0, scale: float = 3.0, **config) -> tuple[LCM, Batch]:
    """Guidance of two Gaussians that differ by their means moves the mean, and nothing else."""
    student = Denoiser(PlanarNet(width=16), Trig(), Prediction.X0)
    null = {"c": torch.zeros(1, 1, dtype=torch.float64)}
    setup = Setup(
        teacher=Guided(Denoiser(Conditional(), Trig(), Prediction.X0), null, scale),
        student=student,
        spawn=lambda: student,
        times=time_grid(Trig(), 4),
        sampler="renoise",
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 2), {}),
        time_layer="embed_time.2",
    )
    objective = LCM(LCM.Config(guidance=(1, 6), **config), setup)
    objective.student.net = objective.target.net = TimeConditioned(1, 6, gain)
    plain = batch()
    cond = {"c": torch.ones(len(plain.x0), 1).double()}
    return objective, Batch(plain.x0, cond, plain.generator, plain.shared)


def test_told_the_scale_the_exact_function_of_each_has_no_loss_and_no_gradient():
    found = []
    for gain in (1.0, 0.8):
        objective, drawn = guided(gain, solver_steps=1000, huber_c=1.0)
        loss = objective.loss("student", drawn).total
        (slope,) = torch.autograd.grad(loss, [objective.student.net.gain])
        found.append((loss.item(), abs(slope.item())))
    assert found[0][0] < 1e-5
    assert found[0][1] < 1e-4
    assert found[1][0] > 20 * found[0][0]


def test_of_the_scales_told_the_teachers_is_kept():
    student = Denoiser(PlanarNet(width=16), Trig(), Prediction.X0)
    net = student.net
    objective, _ = guided(scale=3.5)
    assert objective.scales is not None
    told = TwoTimes(net, "embed_time.2", torch.tensor([[1.0, 0.5], [0.5, 0.5]]))
    nn.init.normal_(told.time_layer.embed[-1].weight, generator=torch.Generator().manual_seed(0))
    kept = objective.scales.kept(student.with_net(told)).net
    assert isinstance(kept, PlanarNet)
    x, half = torch.randn(3, 2), torch.full((3,), 0.5)
    torch.testing.assert_close(kept(x, half), told(x, half, half), atol=1e-4, rtol=1e-4)
    assert objective.scales.normalized(torch.tensor(3.5)).item() == 0.5


def test_scales_in_the_wrong_order_are_named():
    with pytest.raises(ValueError, match="guidance: 6 to 1; the first must be the less"):
        LCM.Config(guidance=(6, 1))
    with pytest.raises(ValueError, match=r"teacher.guidance=9: .*1 to 6"):
        guided(scale=9.0)


def test_the_distance_may_be_another():
    assert method(consistency_student(DATA, BOUNDARY)).distance.kind == "pseudo-huber"
    other = method(consistency_student(DATA, BOUNDARY), distance={"kind": "l1"})
    assert other.distance.kind == "l1"
