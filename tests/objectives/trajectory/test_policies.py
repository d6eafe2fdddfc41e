"""Policies: their closed forms against their own velocities, and against a Gaussian's flow."""

import pytest
import torch
from oracles import Gaussian
from torch import nn

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Cosine, Rectified, Trig
from edgedistill.diffusion.solvers import ddim_step, time_grid
from edgedistill.networks.extra_heads import Headed
from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.objectives.trajectory.arcflow import ArcFlow, Momenta
from edgedistill.objectives.trajectory.flow_map import tau_of, time_at
from edgedistill.objectives.trajectory.pi_flow import Lines, PiFlow
from edgedistill.recipes.loading import load
from edgedistill.runs.run_dir import open_run
from edgedistill.students.folder import load_student

TIMES = time_grid(Trig(), 4)
STEPS = [(1.0, 0.75), (0.5, 0.25), (0.25, 0.0)]


def double(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def policy_on(kind, schedule, t, s, seed=0):
    """A random policy; (itself, x_t, x0)."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    x_t, x0 = draw(5, 2), draw(5, 2)
    t, s = double(t)[0], double(s)[0]
    tau, end = tau_of(schedule, t), tau_of(schedule, s) * (s > 0)
    y = x_t / (schedule.alpha(t) + schedule.sigma(t))
    if kind == "lines":
        return Lines(x0, draw(6, 5, 2), y, tau, end), x_t, x0
    rates = 2 * draw(3, 5, 2)
    rates[0, 0] = 0
    return Momenta((y - x0) / tau, draw(3, 5, 2), rates, y, tau, end), x_t, x0


@pytest.mark.parametrize("kind", ["lines", "momenta"])
@pytest.mark.parametrize("schedule", [Trig(), Cosine(), Rectified()])
@pytest.mark.parametrize(("t", "s"), STEPS)
def test_a_policy_lands_by_the_ddim_step_of_the_networks_output(kind, schedule, t, s):
    policy, x_t, x0 = policy_on(kind, schedule, t, s)
    (t,), (s,) = double(t), double(s)
    end = tau_of(schedule, s) * (s > 0)
    wanted = ddim_step(schedule, x_t, x0, t, s) / (schedule.alpha(s) + schedule.sigma(s))
    # Below its margin a line stays at its last point, whose closed form holds down to there.
    landed = policy.points[0] if kind == "lines" and s == 0 else policy.at(end.expand(5))
    torch.testing.assert_close(landed, wanted, atol=2e-4 if s == 0 else 1e-9, rtol=0)


@pytest.mark.parametrize("kind", ["lines", "momenta"])
@pytest.mark.parametrize(("t", "s"), STEPS)
def test_a_policys_path_moves_at_its_velocity(kind, t, s):
    policy, x_t, _ = policy_on(kind, Trig(), t, s)
    tau = tau_of(Trig(), double(t)[0])
    begin = x_t / (Trig().alpha(double(t)) + Trig().sigma(double(t)))
    torch.testing.assert_close(policy.at(tau.expand(5)), begin)
    low = max(float(tau_of(Trig(), double(s)[0])), 0.02)
    when, step = torch.linspace(low + 1e-3, float(tau) - 1e-3, 5, dtype=torch.float64), 1e-6
    slope = (policy.at(when + step) - policy.at(when - step)) / (2 * step)
    torch.testing.assert_close(policy.velocity(policy.at(when), when), slope, atol=1e-4, rtol=1e-4)


def test_lines_through_a_gaussians_x0_land_where_its_flow_does():
    data, (t, s) = Gaussian([0.5, -0.3], 0.4, Trig()), double(0.75, 0.25)
    tau, end = tau_of(Trig(), t), tau_of(Trig(), s)
    x_t = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors = []
    for points in (5, 40):
        nodes = torch.lerp(end, tau, torch.linspace(0, 1, points, dtype=torch.float64))
        times = time_at(Trig(), nodes)
        x0 = torch.stack(
            [data.posterior(data.flow(x_t, t.expand(5), u.expand(5)), u.expand(5)) for u in times]
        )
        y = x_t / (Trig().alpha(t) + Trig().sigma(t))
        policy = Lines(torch.zeros_like(x_t), x0, y, tau, end)
        # The mean that makes the points those of the flow.
        policy.points = x0
        landed = policy.at(end.expand(5)) * (Trig().alpha(s) + Trig().sigma(s))
        errors.append((landed - data.flow(x_t, t.expand(5), s.expand(5))).abs().max())
    assert errors[0] < 5e-3
    assert errors[1] < errors[0] / 30


class Still(nn.Module):
    """Any x -> the same x0, through a last layer."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.inside, self.last = nn.Linear(2, 8), nn.Linear(8, 2)
        nn.init.zeros_(self.last.weight)
        nn.init.constant_(self.last.bias, value)

    def forward(self, x, t):
        return self.last(self.inside(x))


def setup_of(student: Denoiser, teacher: Denoiser, **other) -> Setup:
    given = {
        "teacher": teacher,
        "student": student,
        "spawn": lambda: student,
        "times": TIMES,
        "sampler": "ddim",
        "optim": Optim(),
        "tap": "",
        "example": (torch.randn(2, 2, generator=torch.Generator().manual_seed(1)), {}),
    }
    return Setup(**{**given, **other})


def batch(count: int = 64) -> Batch:
    g, shared = (torch.Generator().manual_seed(seed) for seed in (0, 1))
    return Batch(torch.zeros(count, 2), {}, g, shared)


@pytest.mark.parametrize("components", [2, 3, 5, 16])
def test_no_momentum_starts_where_it_has_no_gradient(components):
    student, teacher = (Denoiser(Still(0.7), Trig(), Prediction.X0) for _ in range(2))
    objective = ArcFlow(ArcFlow.Config(components=components), setup_of(student, teacher))
    assert len(objective.spread) == components - 1
    assert objective.spread.abs().min() > 0.1
    assert objective.spread.abs().max() == 4


@pytest.mark.parametrize("kind", [PiFlow, ArcFlow])
def test_no_loss_where_the_teachers_path_is_straight(kind):
    teacher = Denoiser(Still(0.7), Trig(), Prediction.X0)
    for value, zero in ((0.7, True), (0.6, False)):
        student = Denoiser(Still(value), Trig(), Prediction.X0)
        objective = kind(kind.Config(), setup_of(student, teacher))
        loss = objective.loss("student", batch()).total
        assert loss < 1e-8 if zero else loss > 5e-3
        loss.backward()
        assert objective.headed.heads.weight.grad is not None


@pytest.mark.parametrize("kind", [PiFlow, ArcFlow])
def test_errors_compared_as_x0_weigh_the_same_at_all_times(kind):
    """Off by d in x0 everywhere, the velocity is off by d / tau, which tau takes back."""
    teacher = Denoiser(Still(0.7), Trig(), Prediction.X0)
    student = Denoiser(Still(0.6), Trig(), Prediction.X0)
    for states in (1, 3):
        config = kind.Config(compare="x0", states=states)
        loss = kind(config, setup_of(student, teacher)).loss("student", batch())
        assert loss.total.item() == pytest.approx(0.1**2, rel=1e-4)
        plain = kind(kind.Config(states=states), setup_of(student, teacher))
        assert plain.loss("student", batch()).total > 1.2 * loss.total


@pytest.mark.parametrize("kind", [PiFlow, ArcFlow])
def test_the_student_that_is_done_is_the_network_without_its_heads(kind):
    torch.manual_seed(0)
    student = Denoiser(Still(0.5), Trig(), Prediction.X0)
    objective = kind(kind.Config(), setup_of(student, student))
    nn.init.normal_(objective.headed.heads.weight)
    done = objective.finished(objective.student)
    assert isinstance(done.net, Still)
    x, t = torch.randn(3, 2), double(0.5).expand(3)
    torch.testing.assert_close(done(x, t, {}), objective.student(x, t, {}))


def test_networks_without_a_last_layer_are_refused():
    class Scaled(Still):
        def forward(self, x, t):
            return 2 * super().forward(x, t)

    x = torch.ones(2, 2)
    assert Headed(Still(0.5), 3, x, torch.ones(2), {}).path == "last"
    with pytest.raises(ValueError, match="Scaled is not its last layer's"):
        Headed(Scaled(0.5), 3, x, torch.ones(2), {})


@pytest.mark.parametrize("method", ["pi-flow", "arcflow"])
def test_a_short_run_saves_a_plain_student(method, two_modes, quick_fit, tmp_path):
    words = [f"teacher.path={two_modes}", "train.batch_size=16", "train.steps=3"]
    recipe = load(f"mixture-{method}", words)
    run = open_run(recipe, str(tmp_path / "run"), False, tmp_path)
    student = load_student(run.train(lambda step, figures: None))
    denoiser = student.teacher.denoiser
    assert student.table == few_step_table(denoiser.schedule, Prediction.V, run.times, "ddim")


def test_heads_beside_a_convolution(tiny_sd, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("red\nblue\n", encoding="utf-8")
    words = [f"teacher.path={tiny_sd}", "train.steps=2", "train.batch_size=2", "train.lr_warmup=0"]
    words += ["objective.states=1", "teacher.steps=2", f"data.prompts={prompts}"]
    recipe = load("emoji-pi-flow", words)
    run = open_run(recipe, str(tmp_path / "run"), False, tmp_path)
    student = load_student(run.train(lambda step, figures: None))
    assert len(student.table.rows) == recipe.student.steps
