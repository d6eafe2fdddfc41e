"""Reflow, InstaFlow and SlimFlow on a Gaussian, whose straightened flow is a closed form."""

import copy
from itertools import pairwise

import pytest
import torch
from oracles import Affine, Gaussian

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.distances import Distance
from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.schedules import VE, Cosine, Discrete, Rectified, Trig
from edgedistill.diffusion.solvers import init_scale, time_grid
from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.objectives.trajectory.instaflow import InstaFlow
from edgedistill.objectives.trajectory.reflow import (
    MARGIN,
    Reflow,
    flow_loss,
    straight_time,
    velocity,
)
from edgedistill.objectives.trajectory.slimflow import ANNEALINGS, SlimFlow
from edgedistill.recipes.loading import load
from edgedistill.runs.run_dir import open_run
from edgedistill.students.folder import load_student

MEAN, SCALE = torch.tensor([0.7, -0.4]).double(), 0.5
TRIG = Gaussian([0.7, -0.4], SCALE, Trig())


def plain(schedule: Schedule) -> Schedule:
    """A schedule whose networks read x_t and t as they are, as closed forms do."""
    schedule = copy.copy(schedule)
    schedule.net_time = lambda t: t
    schedule.input_scale = lambda t: torch.ones_like(t, dtype=torch.float64)
    return schedule


def straightened(schedule: Schedule, gain: float = 1.0) -> Denoiser:
    """The exact reflow: every point of the line from eps to mean + scale eps knows both ends."""

    def x0(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = schedule.at(t, like=x)
        mean = MEAN.to(x)
        return mean + SCALE * (x - alpha * mean) / (alpha * SCALE + sigma)

    return Denoiser(Affine(x0, gain), plain(schedule), Prediction.X0)


def setup_of(student: Denoiser, steps: int, sampler: str = "ddim", train_steps: int = 10) -> Setup:
    return Setup(
        teacher=TRIG.denoiser(),
        student=student,
        spawn=lambda: student,
        times=time_grid(student.schedule, steps),
        sampler=sampler,
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 2), {}),
        train_steps=train_steps,
    )


def batch(schedule: Schedule, count: int = 512, step: int = 0) -> Batch:
    """Pairs whose line is that of eps and mean + scale eps, from where a table starts."""
    generator = torch.Generator().manual_seed(step)
    first = time_grid(schedule, 1)[:1]
    start = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    start = start * init_scale(schedule, first)
    alpha, sigma = schedule.at(first, like=start)
    eps = (start - alpha * MEAN) / (alpha * SCALE + sigma)
    path = torch.stack([start, MEAN + SCALE * eps], 1)
    return Batch(path[:, -1], {}, generator, generator, step, path)


SCHEDULES = [Trig(), Cosine(), Rectified(), VE(), Discrete(torch.linspace(0.999, 0.01, 100))]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
def test_the_exact_straight_flow_has_no_loss_and_no_gradient(schedule):
    found = []
    for gain in (1.0, 0.9):
        student = straightened(schedule, gain)
        objective = Reflow(Reflow.Config(), setup_of(student, 4))
        losses = objective.loss("student", batch(schedule))
        gradient = torch.autograd.grad(losses.total, list(student.parameters()))
        found.append((losses.total.item(), torch.stack(gradient).norm().item()))
    assert found[0][0] < 1e-9
    assert found[0][1] < 1e-4
    assert found[1][0] > 1e-3
    assert found[1][1] > 1e-2


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
def test_any_number_of_steps_of_a_straight_flow_is_exact(schedule, steps):
    student = straightened(schedule).requires_grad_(False)
    times = time_grid(schedule, steps)
    table = few_step_table(student.schedule, Prediction.X0, times, "ddim")
    given = batch(schedule, 64)
    noise = given.path[:, 0] / table.init_scale
    drawn = table.sample(student.net, [noise], {})
    torch.testing.assert_close(
        drawn, given.x0, atol=2e-3 if schedule.name == "ve" else 1e-5, rtol=0
    )


def test_a_rectified_flow_regresses_its_own_output():
    """With alpha = 1 - t and sigma = t the loss is that of the paper, Eq. 1, in t and flow."""
    schedule = plain(Rectified())
    net = Affine(lambda x, t: x.sin() + t[:, None].to(x), 0.8, 0.1)
    student = Denoiser(net, schedule, Prediction.FLOW)
    given = batch(schedule)
    x_1, x0 = given.path[:, 0], given.path[:, 1]
    loss = flow_loss(student, Distance(), given.path, torch.ones(()), given)
    generator = batch(schedule).generator
    u = torch.randperm(512, generator=generator)
    jitter = torch.rand(512, generator=generator, dtype=torch.float64)
    t = (MARGIN + (1 - MARGIN) * (u + jitter) / 512)[:, None]
    wanted = (net((1 - t) * x0 + t * x_1, t[:, 0].float()) - (x_1 - x0)).square().mean()
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)


def test_straight_time_is_the_share_of_noise():
    u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    for schedule in (Trig(), Cosine(), Rectified(shift=3.0)):
        t = straight_time(schedule, u)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        torch.testing.assert_close(sigma / (alpha + sigma), u)


def test_velocity_is_the_difference_of_noise_and_data():
    student = straightened(Trig())
    given = batch(Trig(), 16)
    eps, t = given.path[:, 0], torch.full((16,), 0.3)
    value = velocity(student, student.noised(given.x0, t, eps), t, {})
    torch.testing.assert_close(value, eps - given.x0, atol=1e-6, rtol=0)


def test_steps_that_draw_noise_are_refused():
    with pytest.raises(ValueError, match="sampler=renoise: the steps of reflow draw no noise"):
        Reflow(Reflow.Config(), setup_of(straightened(Trig()), 4, "renoise"))


# --- InstaFlow ----------------------------------------------------------------------------------


def instaflow(student: Denoiser, **config) -> InstaFlow:
    return InstaFlow(InstaFlow.Config(**config), setup_of(student, 1))


def test_both_stages_have_no_loss_at_the_straight_flow():
    for gain in (1.0, 0.9):
        student = straightened(Trig(), gain)
        objective = instaflow(student)
        logs = []
        for step in (4, 6):
            objective.started(step)
            losses = objective.loss("student", batch(Trig(), step=step))
            gradient = torch.autograd.grad(losses.total, list(student.parameters()))
            logs += losses.logs
            if gain == 1:
                assert losses.total.item() < 1e-9
                assert torch.stack(gradient).norm().item() < 1e-4
            elif step == 4:
                assert losses.total.item() > 1e-3
        assert logs == ["velocity", "end"]


def test_the_one_step_learns_the_end_of_many_steps_of_the_flow():
    """Of the teacher's own curved flow, which the first stage here leaves alone."""
    student = Denoiser(Affine(TRIG.posterior), Trig(), Prediction.X0)
    objective = instaflow(student, solver_steps=200)
    given = batch(Trig(), step=7)
    loss = objective.loss("student", given).total
    noise = batch(Trig(), step=7).noise()
    ours = student(noise, torch.ones(1), {})
    wanted = (ours - TRIG.consistency(noise, torch.ones(1))).square().mean()
    assert loss.item() == pytest.approx(wanted.item(), rel=0.02)


def test_the_second_stage_starts_from_the_average_of_the_first():
    student = straightened(Trig())
    objective = instaflow(student, ema=0.9)
    assert set(objective.followers()) == {"flow"}
    objective.started(4)
    with torch.no_grad():
        student.net.gain.fill_(2.0)
    objective.updated("student")
    assert objective.flow.net.gain.item() == pytest.approx(1.1)
    objective.started(5)
    assert student.net.gain.item() == pytest.approx(1.1)
    with torch.no_grad():
        student.net.gain.fill_(2.0)
    objective.updated("student")
    objective.started(6)
    objective.loss("student", batch(Trig(), step=5))
    assert objective.flow.net.gain.item() == pytest.approx(1.1)
    assert student.net.gain.item() == 2.0


# --- SlimFlow


def slim(gain: float = 1.0, **config) -> SlimFlow:
    setup = setup_of(straightened(TRIG.schedule, gain), 1, train_steps=20)
    return SlimFlow(SlimFlow.Config(**config), setup)


@pytest.mark.parametrize("kind", sorted(ANNEALINGS))
def test_slimflow_pairs_come_in_from_independence(kind):
    objective = slim(annealing=kind, annealed=1.0)
    betas = [objective.beta(step) for step in range(11)]
    assert betas[0] == 1
    assert all(a > b for a, b in pairwise(betas))
    assert betas[10] < 0.37
    at_start, path = batch(TRIG.schedule, 4000), batch(TRIG.schedule, 4000).path
    mixed = objective.pairs(at_start)
    torch.testing.assert_close(mixed[:, 1], path[:, -1])
    assert torch.corrcoef(torch.stack([mixed[:, 0, 0], path[:, 0, 0]]))[0, 1].abs() < 0.05


def test_mixed_noise_keeps_its_variance():
    objective = slim(annealed=1.0)
    for step in (1, 3, 7):
        mixed = objective.pairs(batch(TRIG.schedule, 8000, step))[:, 0]
        assert mixed.std() == pytest.approx(1, abs=0.03)
        shared = torch.corrcoef(
            torch.stack([mixed[:, 0], batch(TRIG.schedule, 8000, step).path[:, 0, 0]])
        )
        assert shared[0, 1] == pytest.approx((1 - objective.beta(step) ** 2) ** 0.5, abs=0.03)


def test_pairs_and_flow_agree_on_the_exact_straight_flow():
    for gain, zero in ((1.0, True), (0.9, False)):
        objective = slim(gain)
        objective.flow = straightened(TRIG.schedule)
        losses = [objective.distil(batch(TRIG.schedule, step=step)).item() for step in range(4)]
        assert max(losses) < 1e-9 if zero else min(losses) > 1e-4


def test_the_flow_adds_to_the_pairs():
    only, both = slim(0.9, guided=0), slim(0.9, guided=2.0)
    for objective in (only, both):
        objective.flow = straightened(TRIG.schedule)
    pairs, total = (m.distil(batch(TRIG.schedule)).item() for m in (only, both))
    # One step is as wrong on fresh noise as on the pairs', in the mean.
    assert total == pytest.approx(3 * pairs, rel=0.2)


def test_a_short_run_of_slimflow(two_modes, quick_fit, tmp_path):
    words = [f"teacher.path={two_modes}", "train.batch_size=16", "train.steps=4"]
    recipe = load("mixture-slimflow", [*words, "data.samples=32"])
    run = open_run(recipe, str(tmp_path / "run"), False, tmp_path)
    assert len(load_student(run.train(lambda step, figures: None)).table.rows) == 1
