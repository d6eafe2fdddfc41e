"""Consistency distillation and training on a Gaussian, whose consistency function is known."""

import pytest
import torch
from oracles import Affine, Gaussian, consistency_student

from edgedistill.diffusion.boundary import noise_boundary, plain
from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import VE, Rectified, Trig
from edgedistill.diffusion.solvers import time_grid
from edgedistill.diffusion.times import (
    TimeSampling,
    doubling,
    interval_masses,
    sample_times,
    with_edges,
)
from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.objectives.consistency.consistency import (
    CD,
    CT,
    PATHS,
    WEIGHTS,
    SCott,
    posterior_mean,
)

DATA = Gaussian([0.7, -0.4], 0.5, Trig())
BOUNDARY = noise_boundary(Trig(), 0.5)
SMOOTH = {"kind": "pseudo-huber", "c": 1.0}


def exact(gain: float = 1.0, shift: float = 0.0) -> Denoiser:
    return consistency_student(DATA, BOUNDARY, gain, shift)


def method(kind: type[CD], student: Denoiser, **config) -> CD:
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
    return kind(kind.Config(**config), setup)


def batch(count: int = 4096, seed: int = 0, step: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x0 = DATA.draw(count, generator).double()
    return Batch(x0, {}, generator, torch.Generator().manual_seed(seed), step)


def gradient(objective: CD, drawn: Batch) -> tuple[float, float]:
    """(loss, norm of its gradient)."""
    losses = objective.loss("student", drawn)
    found = torch.autograd.grad(losses.total, list(objective.student.parameters()))
    return losses.total.item(), torch.stack(found).norm().item()


def test_the_exact_function_has_no_loss_and_no_gradient():
    config = {"first_intervals": 1000, "last_intervals": 1000, "distance": SMOOTH}
    loss, slope = gradient(method(CD, exact(), **config), batch())
    off_loss, off_slope = gradient(method(CD, exact(0.7, 0.1), **config), batch())
    assert loss < 1e-7
    assert slope < 1e-4
    assert off_loss > 100 * loss
    assert off_slope > 5 * slope


def test_without_a_teacher_the_mean_gradient_vanishes_at_the_exact_function():
    config = {
        "first_intervals": 40,
        "last_intervals": 40,
        "distance": {"kind": "l2"},
        "times": {"kind": "uniform"},
        "weighting": "uniform",
    }
    slopes = [
        gradient(method(CT, student, **config), batch(200_000))[1]
        for student in (exact(), exact(0.7, 0.1))
    ]
    assert slopes[0] < 0.2 * slopes[1]


def test_the_mean_over_a_batch_is_that_of_each_datum_by_its_likelihood():
    data = torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 0.5]], dtype=torch.float64)
    x_t, t = torch.tensor([[0.3, 0.2], [1.0, -0.4]]).double(), torch.tensor([0.4, 0.8]).double()
    found = posterior_mean(Trig(), x_t, t, data)
    for row in range(2):
        law = torch.distributions.Normal(Trig().alpha(t[row]) * data, Trig().sigma(t[row]))
        weights = law.log_prob(x_t[row]).sum(1).exp()
        torch.testing.assert_close(found[row], weights @ data / weights.sum())


def test_over_many_data_the_mean_is_the_teachers_x0():
    drawn = batch(20_000)
    x_t, t = (
        torch.randn(50, 2, generator=drawn.generator).double(),
        torch.full((50,), 0.7).double(),
    )
    found = posterior_mean(Trig(), x_t, t, drawn.x0)
    torch.testing.assert_close(found, DATA.posterior(x_t, t), atol=0.06, rtol=0)
    shaped = posterior_mean(Trig(), x_t.reshape(50, 1, 2), t, drawn.x0.reshape(-1, 1, 2))
    torch.testing.assert_close(shaped[:, 0], found)


def test_the_mean_of_a_batch_is_of_no_condition():
    given = Setup(
        teacher=DATA.denoiser(),
        student=exact(),
        spawn=exact,
        times=time_grid(Trig(), 4),
        sampler="renoise",
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 2), {"label": torch.zeros(2)}),
    )
    with pytest.raises(ValueError, match=r"objective\.path=batch-mean averages over data of all"):
        CT(CT.Config(path="batch-mean"), given)


@pytest.mark.parametrize("kind", [CD, CT])
def test_descent_finds_the_function(kind: type[CD]):
    student = exact(0.6, 0.2)
    config = {"first_intervals": 4, "last_intervals": 8, "ema": 0.0, "distance": SMOOTH}
    objective = method(kind, student, **config, times={}, weighting="uniform")
    optim = torch.optim.Adam(student.parameters(), 0.03)
    for step in range(200):
        optim.zero_grad()
        torch.autograd.backward(objective.loss("student", batch(128, step, 4 * step)).total)
        optim.step()
        objective.updated("student")
    assert student.net.gain.item() == pytest.approx(1, abs=0.15)
    assert student.net.shift.item() == pytest.approx(0, abs=0.08)


def points(count: int) -> tuple[Batch, torch.Tensor, ...]:
    drawn = batch(count)
    t = torch.full((count,), 0.6, dtype=torch.float64)
    s = torch.full((count,), 0.5, dtype=torch.float64)
    eps = drawn.noise()
    return drawn, eps, DATA.denoiser().noised(drawn.x0, t, eps), t, s


def test_the_paths():
    drawn, eps, x_t, t, s = points(100_000)
    with torch.no_grad():
        teacher = PATHS["teacher"](method(CD, exact()), drawn, eps, x_t, t, s)
        data = PATHS["data"](method(CT, exact()), drawn, eps, x_t, t, s)
        still = PATHS["random"](method(SCott, exact(), fresh=0.0), drawn, eps, x_t, t, s)
        fresh = PATHS["random"](method(SCott, exact(), fresh=1.0), drawn, eps, x_t, t, s)
        x0 = DATA.posterior(x_t, t)
    alpha, sigma = Trig().at(s, like=x_t)
    torch.testing.assert_close(data, alpha * drawn.x0 + sigma * eps)
    torch.testing.assert_close(still, teacher)
    noise = (fresh - alpha * x0) / sigma
    assert noise.std().item() == pytest.approx(1, abs=0.01)
    assert (noise * (x_t - x_t.mean(0))).mean().item() == pytest.approx(0, abs=0.01)


def test_an_interval_of_many_teacher_steps_ends_on_the_teachers_path():
    drawn, eps, x_t, t, s = points(100)
    want = DATA.flow(x_t, t, s)
    errors = []
    for count in (1, 2, 16):
        objective = method(CD, exact(), solver_steps=count)
        errors.append((PATHS["teacher"](objective, drawn, eps, x_t, t, s) - want).norm().item())
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.1)
    assert errors[2] == pytest.approx(errors[0] / 16, rel=0.1)


def test_the_intervals_double_to_the_last_number():
    counts = [doubling(step, 800, 10, 1280) for step in (0, 99, 100, 350, 700, 799)]
    assert counts == [10, 10, 20, 80, 1280, 1280]
    assert doubling(799, 800, 10, 50) == 50
    assert doubling(5, 6, 40, 40) == 40
    objective = method(CT, exact())
    assert len(objective.grid(0)) < len(objective.grid(799)) == 1281


def test_a_grid_holds_the_students_times_and_no_time_twice():
    edges = time_grid(Trig(), 3)
    grid = with_edges(time_grid(Trig(), 50), edges)
    assert set(edges.tolist()) < set(grid.tolist())
    assert bool((grid.diff() < -1e-6).all())
    near = torch.tensor([1.0, 0.5 + 1e-12, 0.0], dtype=torch.float64)
    assert with_edges(near, time_grid(Trig(), 2)).tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("kind", ["uniform", "logit-normal", "log-normal"])
def test_intervals_are_as_likely_as_their_times(kind: str):
    config = TimeSampling(kind=kind, low=0.1, high=0.9, mean=0.3, std=0.8)
    grid = time_grid(Trig(), 10)
    masses = interval_masses(config, Trig(), grid)
    drawn = sample_times(config, Trig(), 20_000, torch.Generator().manual_seed(0))
    # The ends, onto which a log-normal is cut, stand on the grid: a hair to the inside.
    counts = torch.histogram(drawn * 0.9999 + 0.00005, grid.flip(0)).hist.flip(0)
    torch.testing.assert_close(masses, counts / counts.sum(), atol=0.01, rtol=0)
    assert masses.sum().item() == pytest.approx(1)


def test_the_inverse_gap_is_that_of_the_noise_where_it_is_small():
    t, s = torch.tensor([0.02], dtype=torch.float64), torch.tensor([0.01], dtype=torch.float64)
    gap = (Rectified().sigma(t) - Rectified().sigma(s)).item()
    assert WEIGHTS["inverse-gap"](Rectified(), t, s).item() == pytest.approx(1 / gap, rel=0.04)
    top = torch.ones(1, dtype=torch.float64)
    assert WEIGHTS["inverse-gap"](Trig(), top, 0.9 * top).item() == pytest.approx(6.366, rel=1e-3)


def test_a_target_of_its_own_follows_and_without_one_it_is_the_student():
    objective = method(CD, exact(), ema=0.9)
    target = objective.followers()["target"]
    with torch.no_grad():
        objective.student.net.gain.fill_(2.0)
    objective.updated("student")
    assert target.net.gain.item() == pytest.approx(1.1)
    torch.autograd.backward(objective.loss("student", batch(8)).total)
    assert target.net.gain.grad is None
    alone = method(CT, exact())
    alone.updated("student")
    assert alone.target is alone.student
    assert alone.followers() == {}


def test_a_network_with_a_boundary_of_its_own_gets_no_other():
    def zero(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 0 * x

    x, t = torch.randn(5, 2, dtype=torch.float64), torch.zeros(5)
    for schedule in (Trig(), VE()):
        wild = Denoiser(Affine(zero, 1.0, 5.0), schedule, Prediction.V)
        objective = method(CD, wild)
        assert objective.boundary() is plain
        torch.testing.assert_close(objective.consistency(wild, x, t, {}), x)


def test_its_step_table_draws_the_data():
    student = exact().requires_grad_(False)
    boundary = method(CD, student).boundary()
    table = few_step_table(Trig(), student.prediction, time_grid(Trig(), 4), "renoise", boundary)
    noise = table.draw((20000, 2), torch.Generator().manual_seed(0))
    drawn = table.sample(student.net, noise, {})
    torch.testing.assert_close(drawn.mean(0), DATA.mean, atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.std(0), torch.full((2,), DATA.scale), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"first_intervals": 50, "last_intervals": 20}, "first_intervals=50.*last_intervals=20"),
        ({"fresh": 0.5}, "fresh=0.5 needs path=random, not teacher"),
        ({"solver_steps": 2, "path": "data"}, "solver_steps=2 needs path=teacher, not data"),
        ({"path": "sde"}, "path"),
        ({"weighting": "snr"}, "weighting"),
        ({"ema": 1.0}, "ema"),
        ({"distance": {"kind": "lpips"}}, "kind"),
        ({"times": {"low": 0.5, "high": 0.5}}, "low=0.5 must be below high=0.5"),
    ],
)
def test_a_wrong_choice_is_named(config: dict, message: str):
    with pytest.raises(ValueError, match=message):
        CD.Config(**config)
