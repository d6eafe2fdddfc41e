"""AnyFlow on a Gaussian, whose flow map is a closed form, in rollouts of any number of steps."""

import pytest
import torch
from oracles import Gaussian
from scored import located
from torch import nn

from edgedistill import recipes
from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Cosine, Linear, Trig
from edgedistill.diffusion.solvers import init_scale, time_grid
from edgedistill.networks.planar import PlanarNet
from edgedistill.networks.two_times import TwoTimes
from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.objectives.combined.anyflow import AnyFlow
from edgedistill.objectives.trajectory.flow_map import FlowMap, over
from edgedistill.runs.run import Run
from edgedistill.students.folder import load_student

DATA = Gaussian([0.7, -0.4], 0.5, Trig())
FAR = Gaussian([1.7, -0.4], 0.5, Trig())
INSIDE = {"low": 0.02, "high": 0.98}


class Exact(nn.Module):
    """gain * the x0 with which a step from t to s lands where the flow does, + shift."""

    def __init__(self, data, gain=1.0, shift=0.0):
        super().__init__()
        self.data = data
        self.gain, self.shift = nn.Parameter(torch.tensor(gain)), nn.Parameter(torch.tensor(shift))

    def forward(self, x, t, s):
        data, t, s = self.data, t.double(), s.double()
        landed = data.flow(x.double(), t, s)
        alpha_t, _ = data.deviation(t, x.double())
        alpha_s, _ = data.deviation(s, x.double())
        ratio = over(data.schedule.sigma(s) / data.schedule.sigma(t), x.double())
        keep = (alpha_s - ratio * alpha_t).clamp(min=1e-12)
        still = (over(t - s, x.double()) < 1e-9).expand_as(x)
        x0 = torch.where(still, data.posterior(x.double(), t), (landed - ratio * x) / keep)
        return (self.gain * x0 + self.shift).to(x)


def setup_of(data=DATA, fake=None, sampler="ddim", steps=4):
    return Setup(
        teacher=data.denoiser(),
        student=Denoiser(PlanarNet(width=16), data.schedule, Prediction.X0),
        spawn=lambda: fake or data.denoiser(),
        times=time_grid(data.schedule, steps),
        sampler=sampler,
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 2), {}),
        time_layer="embed_time.2",
    )


def method(data=DATA, gain=1.0, shift=0.0, fake=None, kind=AnyFlow, **config):
    setup = setup_of(data, fake)
    made = kind(kind.Config(**config), setup)
    assert isinstance(setup.student.net, TwoTimes)
    setup.student.net = Exact(data, gain, shift)
    return made


def batch(count=512, seed=0, shared=0, data=DATA):
    generator = torch.Generator().manual_seed(seed)
    x0 = data.draw(count, generator).double()
    return Batch(x0, {}, generator, torch.Generator().manual_seed(shared))


def loss_and_gradient(objective, given):
    losses = objective.loss("student", given)
    gradient = torch.autograd.grad(losses.total, list(objective.student.parameters()))
    return losses.total.item(), torch.stack(gradient).norm().item()


@pytest.mark.parametrize("schedule", [Trig(), Cosine(), Linear()])
def test_the_exact_flow_map_has_no_loss_and_no_gradient(schedule):
    """With a fake score that knows the exact ends, the matching vanishes as well."""
    data = Gaussian([0.7, -0.4], 0.5, schedule)
    loss, gradient = loss_and_gradient(method(data, times=INSIDE), batch(data=data))
    assert loss < 1e-8
    assert gradient < 1e-3
    off, off_gradient = loss_and_gradient(method(data, 0.8, 0.1, times=INSIDE), batch(data=data))
    assert off > 1e-3
    assert off_gradient > 1e-2


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_rollout_of_the_exact_map_ends_where_the_teachers_path_does(steps):
    """After any number of its transitions, the last of which goes to the end."""
    objective, first = method(rollout_steps=(steps,)), time_grid(DATA.schedule, 1)[0]
    noise = init_scale(DATA.schedule, first) * batch().noise()
    wanted = DATA.consistency(noise, first.expand(len(noise)))
    counts = set()
    for shared in range(8 * steps):
        counts.add(len(objective.times(batch(shared=shared))) - 1)
        found = objective.rollout(batch(shared=shared))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert counts == set(range(1, steps + 1))


def test_times_are_the_uniform_grid_of_any_of_the_numbers_and_then_the_end():
    objective = method(rollout_steps=(1, 4))
    found = {tuple(objective.times(batch(shared=seed)).tolist()) for seed in range(200)}
    grid = [1.0, 0.75, 0.5, 0.25]
    assert found == {(*grid[: index + 1], 0.0) for index in range(4)}


def test_the_last_transition_alone_has_a_gradient():
    """The end is gain * x0 + shift, so that its slope in the shift is 1 whatever came before."""
    objective = method(gain=0.8, shift=0.1, rollout_steps=(8,))
    for shared in range(20):
        end = objective.rollout(batch(shared=shared))
        (slope,) = torch.autograd.grad(end.sum() / end.numel(), objective.student.net.shift)
        assert slope.item() == pytest.approx(1, abs=1e-5)


def test_without_matching_it_is_the_flow_map():
    found = []
    for kind, config in ((AnyFlow, {"matching_weight": 0}), (FlowMap, {})):
        objective = method(gain=0.8, shift=0.1, kind=kind, times=INSIDE, **config)
        assert [player.name for player in objective.players()] == ["student"]
        found.append(objective.loss("student", batch()))
    assert found[0].total.item() == found[1].total.item()
    assert set(found[0].logs) == set(found[1].logs)


def test_matching_adds_its_weight_to_the_flow_map():
    plain = method(gain=0.8, kind=FlowMap, times=INSIDE).loss("student", batch()).total
    one, two = (
        method(gain=0.8, fake=FAR.denoiser(), times=INSIDE, matching_weight=weight).loss(
            "student", batch()
        )
        for weight in (1.0, 2.0)
    )
    assert one.logs["dmd"] > 0
    torch.testing.assert_close(one.total, plain + one.logs["dmd"])
    torch.testing.assert_close(two.total, plain + 2 * one.logs["dmd"])
    assert "scores/lag" in one.logs


def test_matching_moves_the_ends_by_the_two_scores():
    """Where the fake score knows samples that lie too far to the right, they go left."""
    objective = method(shift=1.0, fake=FAR.denoiser(), matching_times=INSIDE)
    matching, _ = objective.matching(objective.fake_score, batch())
    (gradient,) = torch.autograd.grad(matching, objective.student.net.shift)
    assert gradient > 0


def test_the_fake_score_learns_the_ends_and_does_not_move_the_student():
    fake = located([0.0, 0.0], 0.5)
    objective = method(fake=fake, turns=3)
    fake_score, student = objective.players()
    assert (fake_score.name, student.name, student.every) == ("fake_score", "student", 3)
    objective.loss("fake_score", batch(4096)).total.backward()
    assert objective.student.net.gain.grad is None
    assert fake.net.mean.grad[0] < 0  # towards 0.7
    assert fake.net.mean.grad[1] > 0


def test_steps_that_draw_noise_are_refused():
    with pytest.raises(ValueError, match=r"student\.sampler=renoise: the steps of anyflow draw"):
        AnyFlow(AnyFlow.Config(), setup_of(sampler="renoise"))


@pytest.mark.parametrize("counts", [[], [0], [2, 1001]])
def test_a_rollout_has_a_number_of_steps(counts):
    with pytest.raises(ValueError, match=r"objective\.rollout_steps"):
        recipes.load("mixture-anyflow", [f"objective.rollout_steps={counts}"])


@pytest.mark.parametrize("steps", [1, 3])
def test_a_students_steps_are_the_recipes_whatever_its_rollouts_had(
    steps, tmp_path, two_modes, quick_fit
):
    words = [f"teacher.path={two_modes}", "train.steps=2", "train.batch_size=8"]
    run = Run(recipes.load("mixture-anyflow", [*words, f"student.steps={steps}"]), tmp_path)
    student = load_student(run.train(lambda step, figures: None))
    assert isinstance(student.net, PlanarNet)
    assert len(student.table.rows) == steps
