"""Guidance distillation of two Gaussians: where a condition moves the mean."""

import pytest
import torch
from oracles import Gaussian
from torch import nn

from edgedistill.denoiser import Denoiser, Guided
from edgedistill.networks.planar import PlanarNet
from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.objectives.guidance import Guidance
from edgedistill.prediction import Prediction
from edgedistill.sampling import time_grid
from edgedistill.schedule import Trig

PLAIN, MOVED = Gaussian([0.0, 0.0], 0.5, Trig()), Gaussian([0.7, -0.4], 0.5, Trig())


class Conditional(nn.Module):
    """x0 of the plain data, or of the moved where the condition is 1."""

    def forward(self, x, t, c):
        return torch.lerp(PLAIN.posterior(x, t), MOVED.posterior(x, t), c)


class Told(nn.Module):
    """The guided x0 at the scale told, times a gain."""

    def __init__(self, low, high, gain=1.0):
        super().__init__()
        self.low, self.high, self.gain = low, high, nn.Parameter(torch.tensor(gain))

    def forward(self, x, t, c, s):
        scale = (self.low + (self.high - self.low) * s).reshape(-1, 1).to(x)
        plain, moved = (Conditional()(x, t, k * torch.ones_like(c)) for k in (0, 1))
        return self.gain * torch.lerp(plain, moved, scale)


class Linear(PlanarNet):
    """A planar network that takes the condition and does nothing with it."""

    def forward(self, x, t, c):
        return super().forward(x, t)


def setup(scale=3.0, student=None):
    teacher = Denoiser(Conditional(), Trig(), Prediction.X0)
    student = Denoiser(student or Linear(width=16), Trig(), Prediction.X0)
    null = {"c": torch.zeros(1, 1, dtype=torch.float64)}
    return Setup(
        teacher=Guided(teacher, null, scale),
        student=student,
        spawn=lambda: student,
        times=time_grid(Trig(), 8),
        sampler="ddim",
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 2), {"c": torch.ones(2, 1)}),
        time_layer="embed_time.2",
    )


def batch(count=512):
    generator = torch.Generator().manual_seed(0)
    x0 = MOVED.draw(count, generator).double()
    return Batch(x0, {"c": torch.ones(count, 1).double()}, generator, generator)


@pytest.mark.parametrize(("gain", "zero"), [(1.0, True), (0.8, False)])
def test_the_guided_teacher_has_no_loss_and_no_gradient(gain, zero):
    method = Guidance(Guidance.Config(low=1, high=6), setup())
    method.student.net = Told(1, 6, gain)
    loss = method.loss("student", batch()).total
    (gradient,) = torch.autograd.grad(loss, [method.student.net.gain])
    assert (loss.item() < 1e-12) == zero
    assert (abs(gradient.item()) < 1e-6) == zero


def test_the_scale_that_is_kept_is_the_teachers():
    torch.manual_seed(0)
    method = Guidance(Guidance.Config(low=1, high=6), setup(scale=3.5))
    net = method.student.net
    assert net.steps[:, 1].tolist() == [0.5] * 8
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    folded = method.finished(method.student).net
    assert isinstance(folded, Linear)
    x, c = torch.randn(16, 2), torch.ones(16, 1)
    for time in net.steps[:, 0]:
        t = time.expand(16)
        told = net(x, t, s=torch.full((16,), 0.5), c=c)
        torch.testing.assert_close(folded(x, t, c=c), told, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("scale", "config", "message"),
    [
        (1.0, {}, "choose teacher.guidance above 1"),
        (9.0, {"high": 6}, "teacher.guidance=9: .* not among those trained, 1 to 6"),
    ],
)
def test_scales_that_cannot_be_kept(scale, config, message):
    with pytest.raises(ValueError, match=message):
        Guidance(Guidance.Config(**config), setup(scale))


def test_scales_in_the_wrong_order():
    with pytest.raises(ValueError, match="low=5 must be below high=2"):
        Guidance.Config(low=5, high=2)
