"""Consistency inside segments on a Gaussian, whose flow between any two times is known."""

import pytest
import torch
from oracles import Affine, Gaussian

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.solvers import time_grid
from edgedistill.diffusion.times import below
from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.objectives.consistency.pcm import PCM, TDD
from edgedistill.objectives.consistency.tract import TRACT

DATA = Gaussian([0.7, -0.4], 0.5, Trig())
SMOOTH = {"kind": "pseudo-huber", "c": 1.0}


def exact(count: int, gain: float = 1.0, shift: float = 0.0) -> Denoiser:
    """The x0 whose DDIM step to the edge below t is the exact flow, for `count` segments."""
    edges = time_grid(Trig(), count)

    def x0(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        t = t.double()
        s = below(edges, t)
        alpha_t, sigma_t = Trig().at(t, like=x.double())
        alpha_s, sigma_s = Trig().at(s, like=x.double())
        ratio = sigma_s / sigma_t
        return ((DATA.flow(x.double(), t, s) - ratio * x) / (alpha_s - ratio * alpha_t)).to(x)

    return Denoiser(Affine(x0, gain, shift), Trig(), Prediction.X0)


def method(kind: type[PCM], student: Denoiser, steps=4, sampler="ddim", **config) -> PCM:
    setup = Setup(
        teacher=DATA.denoiser(),
        student=student,
        spawn=lambda: student,
        times=time_grid(Trig(), steps),
        sampler=sampler,
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


def gradient(objective: PCM, drawn: Batch) -> tuple[float, float]:
    """(loss, norm of its gradient)."""
    losses = objective.loss("student", drawn)
    found = torch.autograd.grad(losses.total, list(objective.student.parameters()))
    return losses.total.item(), torch.stack(found).norm().item()


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (PCM, {}),
        (PCM, {"segments": (8, 4)}),
        (TDD, {"segments": (4,)}),
        (TRACT, {"segments": (4,)}),
    ],
)
def test_the_exact_flow_has_no_loss_and_no_gradient(kind: type[PCM], config: dict):
    config = {**config, "solver_steps": 1000, "distance": SMOOTH}
    loss, slope = gradient(method(kind, exact(4), **config), batch(step=799))
    off_loss, off_slope = gradient(method(kind, exact(4, 0.7, 0.1), **config), batch(step=799))
    assert loss < 1e-6
    assert slope < 1e-4 * max(1, off_slope)  # of TRACT as of the SNR
    assert off_loss > 100 * loss
    assert off_slope > 10 * slope


def test_descent_finds_the_flow():
    student = exact(4, 0.6, 0.2)
    objective = method(PCM, student, solver_steps=16, ema=0.0, distance=SMOOTH)
    optim = torch.optim.Adam(student.parameters(), 0.03)
    for step in range(200):
        optim.zero_grad()
        torch.autograd.backward(objective.loss("student", batch(64, step)).total)
        optim.step()
        objective.updated("student")
    assert student.net.gain.item() == pytest.approx(1, abs=0.12)
    assert student.net.shift.item() == pytest.approx(0, abs=0.08)


def test_its_step_table_is_the_teachers_whole_path():
    student = exact(4).requires_grad_(False)
    assert method(PCM, student).boundary() is None
    table = few_step_table(Trig(), student.prediction, time_grid(Trig(), 4), "ddim")
    noise = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    whole = DATA.consistency(noise, torch.ones(100))
    torch.testing.assert_close(table.sample(student.net, [noise], {}), whole, atol=1e-5, rtol=0)


def test_fewer_segments_stage_by_stage():
    objective = method(PCM, exact(4), segments=(8, 4, 2, 1), steps=4, sampler="renoise")
    stages = [objective.stage(batch(1, step=step)) for step in (0, 199, 200, 599, 600, 900)]
    assert stages == [0, 0, 1, 2, 3, 3]
    assert [len(edges) - 1 for edges in objective.edges] == [8, 4, 2, 1]
    for stage in range(4):
        grid = objective.path(stage)[1].tolist()
        assert set(objective.edges[stage].tolist()) | set(objective.times.tolist()) <= set(grid)


def test_targets_are_drawn_from_what_all_ranks_share():
    objective = method(TDD, exact(4))
    drawn = [objective.stage(batch(1, seed)) for seed in range(60)]
    assert set(drawn) == {0, 1, 2, 3, 4}
    assert objective.stage(batch(1, 3)) == objective.stage(batch(1, 3))


def test_a_stage_of_tract_is_taught_by_the_student_of_the_last():
    student = exact(4, 0.9)
    objective = method(TRACT, student, segments=(8, 4), solver_steps=64, ema=0.0)
    teacher = objective.followers()["stage_teacher"]
    objective.started(399)
    assert objective.path(0)[0] is objective.teacher
    with torch.no_grad():
        student.net.gain.fill_(1.5)
    for _ in range(400):  # the first of two stages, of whose beginning a thousandth is left
        objective.updated("student")
    with torch.no_grad():
        student.net.gain.fill_(2.0)
    objective.started(400)
    taught = teacher.denoiser.net.gain.item()
    assert taught == pytest.approx(1.5 - 1e-3 * 0.6, abs=1e-5)
    objective.updated("student")
    objective.started(401)
    objective.loss("student", batch(8, step=401))
    assert (teacher.denoiser.net.gain.item(), int(teacher.stage)) == (taught, 1)
    guide, grid = objective.path(1)
    assert guide is teacher.denoiser
    assert grid.tolist() == time_grid(Trig(), 8).tolist()


def test_a_resumed_stage_keeps_its_teacher():
    objective = method(TRACT, exact(4, 0.9), segments=(8, 4))
    objective.started(400)
    again = method(TRACT, exact(4, 0.5), segments=(8, 4))
    again.stage_teacher.load_state_dict(objective.stage_teacher.state_dict())
    again.started(401)
    assert again.stage_teacher.denoiser.net.gain.item() == pytest.approx(0.9)


def test_a_target_of_its_own_follows():
    objective = method(PCM, exact(4), ema=0.9)
    with torch.no_grad():
        objective.student.net.gain.fill_(2.0)
    objective.updated("student")
    assert objective.followers()["target"].net.gain.item() == pytest.approx(1.1)
    assert method(PCM, exact(4), ema=0.0).followers() == {}


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (
            PCM,
            {"sampler": "renoise"},
            "student.sampler=renoise needs 1 segments in the end, not 4",
        ),
        (
            PCM,
            {"segments": (8, 4, 2)},
            "student.steps=4 with student.sampler=ddim needs 4 .*not 2",
        ),
        (TDD, {"steps": 3}, "student.steps=3 .*needs 3 segments in the end, not 4, 5, 6, 7, 8"),
        (TRACT, {"choice": "random"}, "choice=random: tract needs stages"),
        (TRACT, {"segments": (4, 4)}, "4 then 4; each must be below the last"),
        (PCM, {"segments": (0,)}, "segments"),
        (PCM, {"choice": "never"}, "choice"),
    ],
)
def test_a_wrong_choice_is_named(kind: type[PCM], arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        method(kind, exact(4), **arguments)


def test_tdd_has_the_papers_segments_of_250_steps():
    config = TDD.Config()
    assert config.segments == (4, 5, 6, 7, 8)
    assert config.solver_steps == 250
