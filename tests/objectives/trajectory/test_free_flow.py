"""FreeFlow on a Gaussian, whose path from noise is a closed form."""

import pytest
import torch
from oracles import Gaussian
from scored import located
from torch import nn

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Cosine, Linear, Trig
from edgedistill.diffusion.solvers import time_grid
from edgedistill.networks.planar import PlanarNet
from edgedistill.networks.two_times import TwoTimes
from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.objectives.trajectory.flow_map import over
from edgedistill.objectives.trajectory.free_flow import FreeFlow

DATA = Gaussian([0.7, -0.4], 0.5, Trig())
INSIDE = {"low": 0.02, "high": 0.98}


class Exact(nn.Module):
    """gain * the x0 with which a step from t to s lands where the flow does, + shift."""

    def __init__(self, data, gain=1.0, shift=0.0):
        super().__init__()
        self.data = data
        self.gain, self.shift = nn.Parameter(torch.tensor(gain)), nn.Parameter(torch.tensor(shift))

    def forward(self, x, t, s=None):
        data, t = self.data, t.double()
        s = torch.zeros_like(t) if s is None else s.double()
        landed = data.flow(x.double(), t, s)
        alpha_t, _ = data.deviation(t, x.double())
        alpha_s, _ = data.deviation(s, x.double())
        ratio = over(data.schedule.sigma(s) / data.schedule.sigma(t), x.double())
        x0 = (landed - ratio * x) / (alpha_s - ratio * alpha_t)
        return (self.gain * x0 + self.shift).to(x)


def method(data=DATA, gain=1.0, shift=0.0, fake=None, **config):
    student = Denoiser(PlanarNet(width=16), data.schedule, Prediction.X0)
    setup = Setup(
        teacher=data.denoiser(),
        student=student,
        spawn=lambda: fake or data.denoiser(),
        times=time_grid(data.schedule, 1),
        sampler="ddim",
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 2), {}),
        time_layer="embed_time.2",
    )
    made = FreeFlow(FreeFlow.Config(**config), setup)
    assert isinstance(student.net, TwoTimes)
    student.net = Exact(data, gain, shift)
    return made


def batch(count=512, seed=0, data=None):
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.zeros(count, 2, dtype=torch.float64) if data is None else data
    return Batch(x0, {}, generator, torch.Generator().manual_seed(seed))


def loss_and_gradient(objective):
    losses = objective.loss("student", batch())
    gradient = torch.autograd.grad(losses.total, list(objective.student.parameters()))
    return losses.total.item(), torch.stack(gradient).norm().item()


@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("schedule", [Trig(), Cosine(), Linear()])
def test_the_exact_flow_map_has_no_loss_and_no_gradient(schedule, weight):
    """With a fake score that knows the exact samples, the correction vanishes as well."""
    data = Gaussian([0.7, -0.4], 0.5, schedule)
    given = {"times": INSIDE, "correction_weight": weight}
    loss, gradient = loss_and_gradient(method(data, **given))
    assert loss < 1e-8
    assert gradient < 1e-3
    off, off_gradient = loss_and_gradient(method(data, 0.8, 0.1, **given))
    assert off > 1e-3
    assert off_gradient > 1e-2


def test_no_loss_asks_for_data():
    """Only figures to log see them."""
    data = torch.full((512, 2), 7.0, dtype=torch.float64)
    for player in ("student", "fake_score"):
        objective = method(gain=0.8)
        found, other = (objective.loss(player, batch(data=x0)).total for x0 in (None, data))
        assert found.item() == other.item()


def test_a_difference_comes_to_the_forward_derivative():
    found = [
        method(gain=0.8, derivative=kind, times=INSIDE, correction_weight=0)
        .loss("student", batch())
        .total.item()
        for kind in ("jvp", "difference")
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_the_prediction_is_the_teachers_velocity_where_no_step_is_taken():
    objective = method(gain=0.8, shift=0.1, correction_weight=0)
    z, tau = objective.map.noise(batch())
    target = objective.target(z, tau, tau - 1e-6, batch())
    want = z - DATA.mean  # at tau = 1 the teacher's x0 is the mean
    torch.testing.assert_close(target, want, rtol=1e-3, atol=1e-3)


def test_the_correction_moves_samples_by_the_two_velocities():
    """Where the fake score knows samples that lie too far to the right, they go left."""
    far = Gaussian([1.7, -0.4], 0.5, Trig())
    objective = method(shift=1.0, fake=far.denoiser(), correction_times=INSIDE)
    correction, logs = objective.correction(objective.fake_score, batch())
    (gradient,) = torch.autograd.grad(correction, objective.student.net.shift)
    assert gradient > 0
    assert "scores/lag" in logs
    logs = objective.loss("student", batch()).logs
    assert {"prediction", "correction", "scores/matching"} <= set(logs)


def test_the_fake_score_learns_the_students_samples_and_does_not_move_it():
    fake = located([0.0, 0.0], 0.5)
    objective = method(fake=fake, turns=3)
    fake_score, student = objective.players()
    assert (fake_score.name, student.name, student.every) == ("fake_score", "student", 3)
    objective.loss("fake_score", batch(4096)).total.backward()
    assert objective.student.net.gain.grad is None
    assert fake.net.mean.grad[0] < 0  # towards 0.7
    assert fake.net.mean.grad[1] > 0


def test_without_correction_there_is_no_fake_score():
    objective = method(correction_weight=0)
    assert [player.name for player in objective.players()] == ["student"]
    assert set(objective.loss("student", batch()).logs) == {"prediction"}


def test_descent_finds_the_flow_map_from_noise_alone():
    objective = method(gain=0.5, shift=0.2, correction_weight=0, times=INSIDE)
    optim = torch.optim.Adam(objective.student.parameters(), 0.03)
    for step in range(300):
        optim.zero_grad()
        torch.autograd.backward(objective.loss("student", batch(64, step)).total)
        optim.step()
    net = objective.student.net
    assert net.gain.item() == pytest.approx(1, abs=0.05)
    assert net.shift.item() == pytest.approx(0, abs=0.05)


def test_a_finished_student_has_the_teachers_architecture():
    objective = method()
    torch.manual_seed(0)
    inside = PlanarNet(width=16)
    torch.nn.init.normal_(inside.head.weight)
    net = TwoTimes(inside, "embed_time.2", torch.tensor([[1.0, 0.0]]))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    student = objective.finished(objective.student.with_net(net))
    assert isinstance(student.net, PlanarNet)
    x, one = torch.randn(32, 2), torch.ones(32)
    torch.testing.assert_close(student.net(x, one), net(x, one, s=0 * one), rtol=1e-4, atol=1e-5)
