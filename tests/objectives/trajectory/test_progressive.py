"""Progressive distillation on a Gaussian, whose two DDIM steps are a closed form."""

import pytest
import torch
from oracles import Affine, Gaussian

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Discrete, Trig
from edgedistill.diffusion.solvers import ddim_step, one_step_x0, solve, time_grid
from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.objectives.stages import Stages
from edgedistill.objectives.trajectory.progressive import WEIGHTS, Progressive

DATA = Gaussian([0.7, -0.4], 0.5, Trig())
STEPS = 4


def halved(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The x0 of one step of a quarter that lands where two exact steps of an eighth do."""
    t = t.double()
    middle, s = t - 1 / (2 * STEPS), (t - 1 / STEPS).clamp(min=0)
    x_m = ddim_step(Trig(), x, DATA.posterior(x, t), t, middle)
    x_s = ddim_step(Trig(), x_m, DATA.posterior(x_m, middle), middle, s)
    return one_step_x0(Trig(), x, x_s, t, s)


def student_of(gain: float = 1.0, function=halved) -> Denoiser:
    return Denoiser(Affine(function, gain), Trig(), Prediction.X0)


def method(student: Denoiser, sampler: str = "ddim", train_steps: int = 12, **config):
    schedule = student.schedule
    setup = Setup(
        teacher=DATA.denoiser(),
        student=student,
        spawn=lambda: student,
        times=time_grid(schedule, STEPS),
        sampler=sampler,
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 2), {}),
        train_steps=train_steps,
    )
    return Progressive(Progressive.Config(**{"stages": 1, **config}), setup)


def batch(step: int = 0, count: int = 512) -> Batch:
    generator = torch.Generator().manual_seed(step)
    x0 = DATA.draw(count, generator).double()
    return Batch(x0, {}, generator, generator, step)


def test_one_step_lands_where_two_do():
    generator = torch.Generator().manual_seed(0)
    x_t, x_s = torch.randn(2, 8, 3, 4, generator=generator, dtype=torch.float64)
    t, s = torch.linspace(0.2, 1, 8), torch.linspace(0, 0.7, 8)
    x0 = one_step_x0(Trig(), x_t, x_s, t, s)
    torch.testing.assert_close(ddim_step(Trig(), x_t, x0, t, s), x_s)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_halved_teacher_has_no_loss_and_no_gradient(weight):
    found = []
    for gain in (1.0, 0.9):
        student = student_of(gain)
        losses = method(student, weight=weight).loss("student", batch())
        gradient = torch.autograd.grad(losses.total, list(student.parameters()))
        found.append((losses.total.item(), torch.stack(gradient).norm().item()))
    assert found[0][0] < 1e-9
    assert found[0][1] < 1e-4
    assert found[1][0] > 1e-3
    assert found[1][1] > 1e-2


def test_the_weights_are_errors_of_the_other_predictions():
    snr = Trig().log_snr(torch.tensor([0.1, 0.5, 0.9])).exp()
    alpha_sigma = [Trig().at(torch.tensor([t]), torch.zeros(1, 1)) for t in (0.1, 0.5, 0.9)]
    # An error d of x0 at fixed x_t is -alpha / sigma d of eps and -1 / sigma d of v.
    of_eps = torch.stack([(a / s).square() for a, s in alpha_sigma]).flatten().double()
    of_v = torch.stack([1 / s.square() for _, s in alpha_sigma]).flatten().double()
    truncated, plus_one = (WEIGHTS[name](snr) for name in ("truncated-snr", "snr-plus-one"))
    torch.testing.assert_close(truncated, of_eps.clamp(min=1), rtol=1e-5, atol=0)
    torch.testing.assert_close(plus_one, of_v, rtol=1e-5, atol=0)


def test_stages_halve_down_to_the_students_times():
    objective = method(student_of(), stages=3)
    grids = objective.grids
    assert [len(grid) - 1 for grid in grids] == [32, 16, 8]
    for finer, coarser in zip(grids, [*grids[1:], time_grid(Trig(), STEPS)], strict=True):
        torch.testing.assert_close(finer[::2], coarser)


def test_a_stages_student_is_the_next_ones_teacher_and_start():
    student = student_of(function=DATA.posterior)
    objective = method(student, stages=3, ema=0.9)  # of four steps each
    assert set(objective.followers()) == {"average", "teacher"}
    for step in range(9):
        objective.started(step)
        assert objective.loss("student", batch(step)).total.isfinite()
        if step in (4, 8):
            assert student.net.gain.item() == objective.teacher.net.gain.item()
        with torch.no_grad():
            student.net.gain.mul_(0.9)
        objective.updated("student")
    average, gain, taught = 1.0, 1.0, []
    for step in range(9):
        if step in (4, 8):
            gain = average
            taught.append(average)
        gain *= 0.9
        average = 0.9 * average + 0.1 * gain
    assert objective.teacher.net.gain.item() == pytest.approx(taught[-1], rel=1e-5)
    assert objective.average.net.gain.item() == pytest.approx(average, rel=1e-5)


def test_a_stage_begins_before_its_first_step_and_no_loss_changes_it():
    student = student_of(function=DATA.posterior)
    objective = method(student, stages=3, ema=0.0)
    assert set(objective.followers()) == {"teacher"}
    with torch.no_grad():
        student.net.gain.fill_(0.5)
    objective.updated("student")
    objective.started(4)
    first = objective.loss("student", batch(4)).total
    assert first.item() > 0
    assert objective.teacher.net.gain.item() == 0.5
    assert torch.equal(objective.loss("student", batch(4)).total, first)
    with torch.no_grad():
        student.net.gain.fill_(0.25)
    objective.loss("student", batch(4))
    assert (objective.teacher.net.gain.item(), student.net.gain.item()) == (0.5, 0.25)


def test_descent_finds_the_halved_teacher():
    student = student_of(gain=0.5)
    objective = method(student, train_steps=200)
    optim = torch.optim.Adam(student.parameters(), 0.03)
    for step in range(200):
        optim.zero_grad()
        torch.autograd.backward(objective.loss("student", batch(step, 64)).total)
        optim.step()
    assert student.net.gain.item() == pytest.approx(1, abs=0.01)
    assert student.net.shift.item() == pytest.approx(0, abs=0.01)


def test_its_table_takes_two_of_the_teachers_steps_in_one():
    student = student_of().requires_grad_(False)
    table = few_step_table(Trig(), student.prediction, time_grid(Trig(), STEPS), "ddim")
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = solve(DATA.denoiser(), noise, time_grid(Trig(), 2 * STEPS), {})
    torch.testing.assert_close(table.sample(student.net, [noise], {}), wanted, atol=1e-5, rtol=0)


def test_what_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match="sampler=renoise: the steps of progressive draw no"):
        method(student_of(), "renoise")
    with pytest.raises(ValueError, match=r"train\.steps=2: fewer than 3 stages"):
        method(student_of(), stages=3, train_steps=2)
    discrete = Denoiser(Affine(halved), Discrete(torch.linspace(0.99, 0.01, 20)), Prediction.X0)
    with pytest.raises(ValueError, match=r"stages=3: the first teacher takes 32 steps, more than"):
        method(discrete, stages=3)


def test_stages_are_equal_parts_of_the_run():
    stages = Stages(10, 3)
    assert [stages.at(step) for step in range(10)] == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [step for step in range(10) if stages.begins(step)] == [0, 4, 7]
    assert stages.at(10) == 2
