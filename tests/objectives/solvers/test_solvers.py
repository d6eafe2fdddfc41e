"""Fitted and learned solvers, where the exact step is a multiple of x."""

import pytest
import torch
from oracles import Gaussian

from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.multistep import multistep_table, solver_table
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.solvers import init_scale, solve, time_grid
from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.objectives.solvers.d_ode import DODE, best_lambdas, corrected
from edgedistill.objectives.solvers.gas import GAS, Solver, walk
from edgedistill.recipes.loading import load
from edgedistill.runs.run_dir import open_run
from edgedistill.students.folder import load_student

DATA = Gaussian([0.0, 0.0], 0.6, Trig())
TIMES = time_grid(Trig(), 3)
NETWORK = DATA.denoiser()


def setup_of(**other) -> Setup:
    given = {
        "teacher": DATA.denoiser(),
        "student": DATA.denoiser(),
        "spawn": DATA.denoiser,
        "times": TIMES,
        "sampler": "ddim",
        "optim": Optim(),
        "tap": "function",
        "example": (torch.zeros(2, 2), {}),
    }
    return Setup(**{**given, **other})


def batch(count: int = 64, path: torch.Tensor | None = None) -> Batch:
    generator = torch.Generator().manual_seed(0)
    zeros = torch.zeros(count, 2, dtype=torch.float64)
    return Batch(zeros, {}, generator, generator, path=path)


def exact_path(times: torch.Tensor) -> torch.Tensor:
    x = batch().noise()
    return torch.stack([DATA.flow(x, times[:1].expand(len(x)), s) for s in times[:, None]], 1)


def test_ddims_moves_make_ddims_table():
    schedule, prediction = NETWORK.schedule, NETWORK.prediction
    ours = solver_table(
        schedule, prediction, TIMES, corrected(schedule, prediction, TIMES, torch.zeros(3))
    )
    theirs = few_step_table(schedule, prediction, TIMES, "ddim")
    for row, other in zip(ours.rows, theirs.rows, strict=True):
        ours, theirs = ((x.t, x.scale, x.a, x.b, x.c) for x in (row, other))
        assert ours == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("keeps", [Prediction.X0, Prediction.V, Prediction.FLOW])
def test_fitted_coefficients_reach_a_gaussian_exactly(keeps: Prediction):
    path = exact_path(TIMES)
    lambdas = best_lambdas(NETWORK, path, TIMES, {}, keeps)
    assert lambdas[0] == 0
    moves = corrected(Trig(), keeps, TIMES, lambdas)
    table = solver_table(Trig(), NETWORK.prediction, TIMES, moves, keeps=keeps)
    torch.testing.assert_close(table.sample(NETWORK.net, [path[:, 0]], {}), path[:, -1])
    equal = few_step_table(Trig(), NETWORK.prediction, TIMES, "ddim")
    assert (equal.sample(NETWORK.net, [path[:, 0]], {}) - path[:, -1]).abs().max() > 0.1


@pytest.mark.parametrize("keeps", [None, "x0", "eps", "flow"])
def test_the_table_takes_the_fitted_steps(keeps: str | None):
    """On a path that no factors reach exactly, the first steps are as near as they can be."""
    times = 0.95 * time_grid(Trig(), 4)
    objective = DODE(DODE.Config(estimate=keeps), setup_of(times=times))
    objective.search(batch())
    assert objective.lambdas[0] == 0
    assert objective.lambdas[1:].abs().min() > 1e-3
    assert objective.table().reach == 1
    noise = batch().noise() * init_scale(Trig(), times[0])
    plain = few_step_table(Trig(), NETWORK.prediction, times, "ddim").sample(
        NETWORK.net, [noise], {}
    )
    ours = objective.table().sample(NETWORK.net, [noise], {})
    exact = DATA.flow(noise, times[:1].expand(len(noise)), times[-1])
    assert (ours - exact).square().mean() < (plain - exact).square().mean() / 10


def test_noise_without_signal_gives_no_x0():
    with pytest.raises(ValueError, match=r"objective\.estimate=eps.*choose x0"):
        DODE(DODE.Config(estimate="eps"), setup_of())


def test_a_network_that_predicts_noise_cannot_begin_without_signal():
    """It was fitted, and its table had numbers of 1e16."""
    student = DATA.denoiser()
    student.prediction = Prediction.EPS
    for keeps in (None, "x0", "eps"):
        with pytest.raises(ValueError, match=r"network predicts eps.*student\.spacing=leading"):
            DODE(DODE.Config(estimate=keeps), setup_of(student=student))
    DODE(DODE.Config(), setup_of(student=student, times=TIMES[1:]))


def test_the_search_walks_the_many_steps():
    objective = DODE(DODE.Config(scale=40), setup_of())
    objective.search(batch())
    noise = batch().noise()
    ours = objective.table().sample(NETWORK.net, [noise], {})
    torch.testing.assert_close(ours, solve(NETWORK, noise, objective.grid, {}))


@pytest.mark.parametrize(("order", "base"), [(1, "ddim"), (2, "dpm++2m"), (4, "dpm++2m")])
def test_a_learned_solver_begins_as_a_known_one_and_its_table_is_its_walk(order, base):
    objective = GAS(GAS.Config(order=order), setup_of(times=time_grid(Trig(), 5)))
    solver, noise = objective.kept, batch().noise()
    torch.testing.assert_close(solver.times(), time_grid(Trig(), 5))
    known = multistep_table(Trig(), NETWORK.prediction, time_grid(Trig(), 5), base)
    known = known.sample(NETWORK.net, [noise], {})
    torch.testing.assert_close(objective.table().sample(NETWORK.net, [noise], {}), known)
    assert objective.table().reach == min(order, 2) - 1
    with torch.no_grad():
        solver.logits += 0.3
        solver.shifts -= 0.05
        solver.added += 0.1
    walked = walk(objective.student, noise, {})
    table = objective.table()
    torch.testing.assert_close(table.sample(NETWORK.net, [noise], {}), walked)
    assert not torch.allclose(walked, known, atol=0.05)
    assert table.reach == order - 1


def test_no_gradient_where_the_solver_is_exact():
    objective = GAS(GAS.Config(), setup_of())
    solver, path = objective.kept, exact_path(TIMES)
    own = solver.moves(objective.student).detach()
    lambdas = best_lambdas(NETWORK, path, TIMES, {}, NETWORK.prediction)
    fitted = corrected(Trig(), NETWORK.prediction, TIMES, lambdas)
    for added, zero in ((torch.zeros_like(own), False), (fitted - own, True)):
        solver.added.data = added
        loss = objective.loss("student", batch(path=path)).total
        gradients = torch.autograd.grad(loss, [solver.logits, solver.shifts, solver.added])
        largest = max(float(gradient.abs().max()) for gradient in gradients)
        assert largest < 1e-5 if zero else largest > 1e-2


def test_only_the_solver_trains_and_times_decrease_whatever_it_learns():
    objective = GAS(GAS.Config(), setup_of())
    names = {n for n, p in objective.student.named_parameters() if p.requires_grad}
    assert names == {"net.logits", "net.shifts", "net.added"}
    solver = Solver(torch.nn.Identity(), TIMES)
    solver.logits.data = torch.tensor([9.0, -9.0], dtype=torch.float64)
    times = solver.times()
    assert bool((times.diff() < 0).all())
    assert times[0] == 1
    assert times[-1] == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mixture-d-ode", ["objective.scale=3"]),
        ("mixture-gas", ["data.samples=64", "objective.adversarial=0.1", "train.optim.lr=0.1"]),
    ],
)
def test_a_run_keeps_the_network_and_saves_its_steps(name, words, two_modes, quick_fit, tmp_path):
    words = [f"teacher.path={two_modes}", "train.batch_size=64", "train.steps=3", *words]
    run = open_run(load(name, words), str(tmp_path / "run"), False, tmp_path)
    before = run.student.state_dict()
    weights = {k: v.clone() for k, v in before.items() if "blocks" in k}
    student = load_student(run.train(lambda step, figures: None))
    after = {f"net.net.{k}": v for k, v in student.net.state_dict().items()}
    plain = {f"net.{k}": v for k, v in student.net.state_dict().items()}
    assert weights
    for key, value in weights.items():
        torch.testing.assert_close({**after, **plain}[key], value)
    schedule = run.student.schedule
    ddim = few_step_table(schedule, student.teacher.denoiser.prediction, run.times, "ddim")
    assert student.table != ddim
    assert len(student.table.rows) == 4
    assert student.table.reach == 1
    assert student.info.schema_version == 3


@pytest.mark.parametrize("method", ["d-ode", "gas"])
def test_diffusers_pipelines_are_refused(method, tiny_sd):
    words = ["teacher.family=stable_diffusion", f"teacher.path={tiny_sd}"]
    with pytest.raises(ValueError, match=f"method '{method}': no diffusers scheduler"):
        load(f"mixture-{method}", words)
