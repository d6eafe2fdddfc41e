"""Continuous-time consistency on a Gaussian: tangents against the known consistency function."""

import pytest
import torch
from oracles import Affine, Gaussian

from edgedistill.diffusion.boundary import consistency_function, noise_boundary
from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.schedules import VE, Discrete, Linear, Rectified, Trig
from edgedistill.diffusion.solvers import time_grid
from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.objectives.consistency.scm import SCM, Points, RunningLoss
from edgedistill.objectives.consistency.tbcm import TBCM

SCHEDULES = [
    Trig(),
    Linear(),
    Rectified(shift=3.0),
    VE(),
    Discrete((1 - 0.01 * torch.arange(1, 90)).cumprod(0)),
]


def data(schedule: Schedule) -> Gaussian:
    return Gaussian([0.7, -0.4], 0.5, schedule)


def student(
    schedule: Schedule, gain: float = 1.0, shift: float = 0.0, sigma_data: float = 0.5
) -> Denoiser:
    """Its consistency function is the exact one at gain 1 and shift 0, in float64."""
    boundary = noise_boundary(schedule, sigma_data)

    class Exact(Denoiser):
        def output(self, x_t, t, cond, net_time=None):
            return self.net(x_t, t.expand(len(x_t)))

    def x0(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        skip, out = (c[:, None] for c in boundary(t))
        return (data(schedule).consistency(x_t, t) - skip * x_t) / out

    return Exact(Affine(x0, gain, shift), schedule, Prediction.X0)


class Timed(torch.nn.Module):
    """As a step table calls a network."""

    def __init__(self, net: Affine) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.net(x.double(), t.double()).to(x)


def method(kind: type[SCM], net: Denoiser, **config) -> SCM:
    schedule = net.schedule

    class Posterior(Denoiser):
        def forward(self, x_t: torch.Tensor, t: torch.Tensor, cond: dict) -> torch.Tensor:
            return data(schedule).posterior(x_t, t.expand(len(x_t)))

    setup = Setup(
        teacher=Posterior(torch.nn.Identity(), schedule, Prediction.X0),
        student=net,
        spawn=lambda: net,
        times=time_grid(Trig(), 4),
        sampler="renoise",
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 2), {}),
        train_steps=800,
    )
    return kind(kind.Config(**config), setup)


def batch(schedule: Schedule, count: int = 512, seed: int = 0, step: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x0 = data(schedule).draw(count, generator).double()
    return Batch(x0, {}, generator, torch.Generator().manual_seed(seed), step)


def tangent(objective: SCM, at: Points) -> torch.Tensor:
    with torch.no_grad():
        return objective.tangent(at, objective.flow(at.x_t, at.t, at.cond), 1.0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
@pytest.mark.parametrize("kind", [SCM, TBCM])
def test_the_exact_function_has_no_tangent(schedule: Schedule, kind: type[SCM]):
    objective = method(kind, student(schedule), warmup=0)
    with torch.no_grad():
        at = objective.points(batch(schedule))
    assert tangent(objective, at).abs().max() < 1e-7
    losses = objective.loss("student", batch(schedule))
    slopes = torch.autograd.grad(losses.total, list(objective.student.parameters()))
    assert losses.total.item() < 1e-9
    assert torch.stack(slopes).norm() < 1e-5
    wrong = method(kind, student(schedule, 0.7, 0.1), warmup=0)
    assert wrong.loss("student", batch(schedule)).total.item() > 1e-2


@pytest.mark.parametrize("schedule", SCHEDULES[:4], ids=lambda s: s.name)
def test_the_tangent_is_cos_times_the_change_of_the_function_along_the_path(schedule: Schedule):
    """f, followed to either side along the exact path, in units of sigma_data and angle."""
    net = student(schedule, 0.7, 0.1, sigma_data=0.8)
    objective = method(SCM, net, sigma_data=0.8)
    with torch.no_grad():
        at = objective.points(batch(schedule))
    h = 1e-5 * at.t * (1 - at.t)
    ends = []
    for s in (at.t + h, at.t - h):
        alpha, sigma = schedule.alpha(s), schedule.sigma(s)
        x_s = data(schedule).flow(at.x_t, at.t, s)
        clean = consistency_function(objective.boundary(), x_s, net(x_s, s, {}), s)
        ends.append((torch.atan2(sigma, 0.8 * alpha), clean / 0.8))
    slope = (ends[0][1] - ends[1][1]) / (ends[0][0] - ends[1][0])[:, None]
    cos = objective.trig(at.t, at.x_t)[0]
    torch.testing.assert_close(tangent(objective, at), cos * slope, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("schedule", SCHEDULES[:4], ids=lambda s: s.name)
def test_all_derivatives_agree(schedule: Schedule):
    net = student(schedule, 0.7, 0.1)
    jvp, central = (method(SCM, net, tangent=kind) for kind in ("jvp", "difference"))
    backward = method(SCM, net, tangent="backward", difference=1e-4)
    with torch.no_grad():
        at = jvp.points(batch(schedule))
    exact = tangent(jvp, at)
    torch.testing.assert_close(tangent(central, at), exact, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(tangent(backward, at), exact, atol=2e-3, rtol=2e-3)


def test_a_backward_step_compares_with_the_average_at_the_point_before():
    """At any length of the step: F moves to where f is the average's at x_s."""
    net = student(Trig(), 0.7, 0.1)
    objective = method(SCM, net, tangent="backward", difference=0.4, ema=0.5)
    with torch.no_grad():
        objective.target.net.shift += 0.3
        at = objective.points(batch(Trig()))
        cos, sin, size = objective.trig(at.t, at.x_t)
        clean = 0.5 * (cos * at.x_t / size - sin * objective.flow(at.x_t, at.t, {}))
        reach = 0.4 * torch.minimum(cos, sin)[:, 0]
        s = at.t - reach * objective.time_by_angle(at.t)
        alpha, sigma = Trig().at(s, like=at.x_t)
        x_s = alpha * at.x0 + sigma * at.eps
        before = consistency_function(objective.boundary(), x_s, objective.target(x_s, s, {}), s)
        angles = [torch.atan2(Trig().sigma(t), 0.5 * Trig().alpha(t)) for t in (at.t, s)]
        slope = (clean - before) / 0.5 / (angles[0] - angles[1])[:, None]
    torch.testing.assert_close(tangent(objective, at), cos * slope)


def test_the_average_follows_the_student():
    objective = method(SCM, student(Trig(), 0.7), tangent="backward", ema=0.75)
    assert set(objective.followers()) == {"running_loss", "target"}
    with torch.no_grad():
        objective.student.net.gain += 1
    objective.updated("student")
    assert objective.target.net.gain.item() == pytest.approx(0.7 + 0.25)
    assert set(method(SCM, student(Trig())).followers()) == {"running_loss"}


def test_the_step_of_the_difference_shrinks_by_equal_factors():
    objective = method(
        SCM, student(Trig()), tangent="backward", difference=0.5, last_difference=0.005
    )
    shares = [objective.share(step) for step in (0, 400, 800)]
    assert shares == pytest.approx([0.5, 0.05, 0.005])
    assert method(SCM, student(Trig()), tangent="difference", difference=0.3).share(500) == 0.3


def test_the_derivative_goes_through_attention_and_float32():
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    net = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=3,
        out_channels=3,
        num_layers=1,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
        norm_num_groups=1,
    )

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            label = torch.zeros(len(x), dtype=torch.long)
            return self.net(x, timestep=10 * t, class_labels=label).sample

    denoiser = Denoiser(Net().eval(), Trig(), Prediction.V)
    setup = Setup(
        teacher=denoiser,
        student=denoiser,
        spawn=lambda: denoiser,
        times=time_grid(Trig(), 4),
        sampler="renoise",
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 3, 8, 8), {}),
    )
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(4, 3, 8, 8, generator=generator)
    found = []
    for config in (SCM.Config(), SCM.Config(tangent="difference", difference=2e-3)):
        objective = SCM(config, setup)
        drawn = torch.Generator().manual_seed(1)
        with torch.no_grad():
            at = objective.points(Batch(x0, {}, drawn, drawn))
        found.append(tangent(objective, at))
    assert found[0].dtype == torch.float32
    assert (found[0] - found[1]).norm() < 0.03 * found[0].norm()


def test_warming_up_leaves_the_networks_derivative_out():
    objective = method(SCM, student(Trig(), 0.7))
    with torch.no_grad():
        at = objective.points(batch(Trig()))
        flow = objective.flow(at.x_t, at.t, at.cond)
        cold, half, warm = (objective.tangent(at, flow, r) for r in (0.0, 0.5, 1.0))
    cos, sin, _ = objective.trig(at.t, at.x_t)
    direction = cos * at.eps - sin * at.x0 / 0.5
    torch.testing.assert_close(cold, -cos.square() * (flow - direction))
    torch.testing.assert_close(half, (cold + warm) / 2)
    early = method(SCM, student(Trig(), 0.7), warmup=100).loss("student", batch(Trig())).logs
    late = method(SCM, student(Trig(), 0.7), warmup=100).loss("student", batch(Trig(), step=99))
    assert early["tangent"] != late.logs["tangent"]


def test_descent_finds_the_function():
    for kind in (SCM, TBCM):
        net = student(Trig(), 0.7, 0.2)
        times = {"kind": "log-normal", "mean": -1.5, "std": 1.0}
        objective = method(kind, net, warmup=0, times=times)
        optim = torch.optim.Adam(net.parameters(), 0.02)
        for step in range(150):
            optim.zero_grad()
            torch.autograd.backward(objective.loss("student", batch(Trig(), 128, step)).total)
            optim.step()
        assert net.net.gain.item() == pytest.approx(1, abs=0.1)
        assert net.net.shift.item() == pytest.approx(0, abs=0.1)


def test_from_data_the_path_is_straight_in_trigflow():
    objective = method(SCM, student(Trig()), path="data")
    drawn = batch(Trig())
    at = objective.points(drawn)
    assert at.x0 is drawn.x0
    torch.testing.assert_close(at.x_t, objective.student.noised(at.x0, at.t, at.eps))


def test_trajectories_come_from_noise_alone_and_have_the_teachers_distribution():
    schedule = Trig()
    objective = method(TBCM, student(schedule), solver_steps=64)
    drawn = batch(schedule, 64 * 2000)
    at = objective.points(drawn)
    other = Batch(0 * drawn.x0, {}, torch.Generator().manual_seed(9), torch.Generator())
    again = objective.points(
        Batch(drawn.x0 + 7, {}, torch.Generator().manual_seed(9), other.shared)
    )
    torch.testing.assert_close(again.x_t, objective.points(other).x_t)
    alpha, deviation = data(schedule).deviation(at.t, at.x_t)
    offset = (at.x_t - alpha * data(schedule).mean) / deviation
    assert offset.mean().item() == pytest.approx(0, abs=0.03)
    assert offset.std().item() == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(at.x_t, objective.student.noised(at.x0, at.t, at.eps))


def test_a_trajectory_keeps_its_condition():
    objective = method(TBCM, student(Trig()), solver_steps=3)
    seen = []

    class Spy(Denoiser):
        def forward(self, x_t: torch.Tensor, t: torch.Tensor, cond: dict) -> torch.Tensor:
            seen.append(cond["row"])
            return 0 * x_t

    objective.teacher = Spy(torch.nn.Identity(), Trig(), Prediction.X0)
    drawn = batch(Trig(), 7)
    rows = torch.arange(7)
    at = objective.points(Batch(drawn.x0, {"row": rows}, drawn.generator, drawn.shared))
    assert len(at.x_t) == len(at.t) == 6
    assert at.cond["row"].tolist() == [0, 1] * 3
    assert all(row.tolist() == [0, 1] for row in seen)


def test_the_weight_is_one_over_the_mean_loss_of_its_time():
    running = RunningLoss(2)
    loss, t = torch.tensor([4.0, 4.0, 0.25]), torch.tensor([0.1, 0.4, 1.0])
    for _ in range(1500):
        weight = running.weigh(loss, t)
    torch.testing.assert_close(weight, 1 / loss, rtol=1e-3, atol=0)
    still = running.mean[1].item()
    running.weigh(loss[:2], t[:2])
    assert running.mean[1].item() == still
    objective = method(SCM, student(Trig(), 0.7))
    assert objective.followers()["running_loss"] is objective.running


def test_its_step_table_draws_the_data():
    net = student(Trig()).requires_grad_(False)
    boundary = method(SCM, net).boundary()
    table = few_step_table(Trig(), net.prediction, time_grid(Trig(), 4), boundary=boundary)
    noise = table.draw((20000, 2), torch.Generator().manual_seed(0))
    drawn = table.sample(Timed(net.net), noise, {})
    torch.testing.assert_close(drawn.mean(0), torch.tensor([0.7, -0.4]), atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.std(0), torch.full((2,), 0.5), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        (SCM, {"tangent": "exact"}, "tangent"),
        (SCM, {"ema": 0.9}, "ema=0.9: not used with tangent=jvp.*=backward, or ema=0 "),
        (SCM, {"ema": 0.9, "tangent": "difference"}, "ema=0.9: not used with tangent=difference"),
        (
            SCM,
            {"tangent": "backward", "difference": 0.1, "last_difference": 0.2},
            "=0.2 must not be above",
        ),
        (SCM, {"constant": 0.0}, "constant"),
        (SCM, {"bins": 0}, "bins"),
        (SCM, {"difference": 1.0}, "difference"),
        (TBCM, {"path": "data"}, "path=data: tbcm has no data; choose path=teacher"),
        (TBCM, {"solver_steps": 1}, "solver_steps"),
    ],
)
def test_a_wrong_choice_is_named(kind: type[SCM], config: dict, message: str):
    with pytest.raises(ValueError, match=message):
        method(kind, student(Trig()), **config)
