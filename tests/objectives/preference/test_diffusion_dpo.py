"""Diffusion-DPO on Gaussians, whose preferences have closed forms."""

import math
from functools import partial

import pytest
import torch
from preferring import SCALE, SIDE, linear, preferring, stepped
from scored import FAR, batch

from edgedistill import recipes
from edgedistill.diffusion.few_step import few_step_table, row_times
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Discrete, Karras, Rectified, Trig
from edgedistill.diffusion.solvers import student_times
from edgedistill.objectives.preference.diffusion_dpo import DiffusionDPO
from edgedistill.runs.run import Run


class Noisy:
    """The linear reward, and noise with which preferences are Bradley and Terry's."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(7)

    def __call__(self, x0, prompts):
        drawn = torch.rand(len(x0), generator=self.generator).clamp(1e-7, 1 - 1e-7)
        return linear(x0, prompts) - (-drawn.log()).log()


method = partial(preferring, DiffusionDPO)


@pytest.mark.parametrize(("steps", "sampler"), [(1, "ddim"), (2, "ddim"), (2, "renoise")])
def test_the_students_first_gradient_is_the_difference_of_better_and_worse(steps, sampler):
    """E[sign(w.d) d] = 2 S w / sqrt(pi) for the difference d of two samples of deviation S.

    The loss is log 2 and its slope in the margin -beta / 2; the margin has the gradient
    (1 - c alpha) d / 2 in the mean, as m + c x_t - x0 changes by (c alpha - 1) d over the pair.
    """
    beta, c, objective = 3.0, SCALE, method(steps=steps, sampler=sampler, beta=3.0)
    losses, found = stepped(objective, batch(200_000))
    assert losses.total.item() == pytest.approx(math.log(2))
    alpha, sigma = Trig().alpha(objective.times), Trig().sigma(objective.times)
    spread = c
    if steps == 2:
        a, s = alpha[1].item(), sigma[1].item()
        # Of x_s = a x0 + s noise, or of DDIM's x_s = s x_1 + a x0 (where sigma_1 = 1).
        spread = c * (a * c + s) if sampler == "ddim" else c * math.hypot(a * c, s)
    kept = (1 - c * alpha).mean().item()
    expected = -0.25 * beta * kept * 2 * spread * SIDE / math.sqrt(math.pi)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("beta", [2.0, 8.0])
def test_the_optimum_moves_the_mean_by_what_the_reward_is_worth(beta):
    """At pure noise the loss is the logistic regression of a linear reward of weight beta / D."""
    best = 2 / beta * SIDE
    found = {}
    for share in (0.0, 1.0, 2.0):
        objective = method(steps=1, reward=Noisy(), beta=beta)
        with torch.no_grad():
            objective.student.net.mean += share * best
        found[share] = stepped(objective, batch(400_000))[1] @ SIDE / beta
    assert found[0.0] < -0.05
    assert found[1.0].item() == pytest.approx(0, abs=1.5e-3)
    assert found[2.0] > 0.02


def test_where_neither_is_better_nothing_moves():
    losses, found = stepped(method(steps=3, reward=lambda x0, p: torch.ones(len(x0))), batch(64))
    assert found.abs().max() == 0
    assert losses.total.item() == pytest.approx(math.log(2))


def test_an_error_is_the_squared_distance_from_the_sample():
    objective, given = method(), batch(16)
    pair, eps = [given.noise() for _ in range(2)], given.noise()
    t = torch.full((16,), 0.5, dtype=torch.float64)
    a, s = Trig().alpha(t[:1]).item(), Trig().sigma(t[:1]).item()
    found = objective.errors(objective.student, pair, t, eps, given)
    for row, x0 in zip(found, pair, strict=True):
        seen = torch.tensor(FAR) + SCALE * (a * x0 + s * eps)
        torch.testing.assert_close(row, (seen - x0).square().mean(1))


@pytest.mark.parametrize(("steps", "sampler"), [(1, "renoise"), (3, "ddim"), (3, "renoise")])
def test_the_better_samples_are_made_more_often(steps, sampler):
    """Also by students without any step that draws noise."""
    objective = method(steps=steps, sampler=sampler, beta=5.0)
    optim = torch.optim.Adam(objective.student.parameters(), 0.01)
    rewards = []
    for step in range(60):
        optim.zero_grad()
        losses, _ = stepped(objective, batch(256, step))
        optim.step()
        rewards.append(losses.logs["reward"].item())
    assert sum(rewards[-10:]) > sum(rewards[:10]) + 0.3
    assert objective.reference.net.mean.tolist() == pytest.approx(FAR)


@pytest.mark.parametrize(
    "schedule",
    [Trig(), Karras(), Rectified(shift=3), Discrete(1 - torch.linspace(0.001, 0.99, 1000))],
)
def test_times_are_read_off_a_table(schedule):
    times = student_times(schedule, 4, "trailing", "renoise")
    table = few_step_table(schedule, Prediction.EPS, times, "renoise")
    torch.testing.assert_close(row_times(table, schedule), times[:-1], rtol=0, atol=1e-9)


def test_a_recipe_starts_from_a_student(tmp_path, two_modes, quick_fit):
    words = [f"teacher.path={two_modes}", "train.steps=2", "train.batch_size=8"]
    one = [*words, "student.steps=1"]
    first = Run(recipes.load("mixture-lcm", one), tmp_path / "a")
    made = first.train(lambda step, figures: None)
    told = [*words, "reward.name=linear", "reward.options.direction=[1, 0]"]
    told.append(f"student.init={made}")
    run = Run(recipes.load("mixture-diffusion-dpo", told), tmp_path / "b")
    assert run.table == first.table
    assert run.objective.times.tolist() == [1.0]
    run.train(lambda step, figures: None)
    with pytest.raises(ValueError, match=r"reward\.weight: .* from the reward in its own way"):
        recipes.load("mixture-diffusion-dpo", [*told, "reward.weight=2"])
    for without, message in (
        ("reward=null", "learns from a reward"),
        ("student.init=null", "starts from a student"),
    ):
        asked = recipes.load("mixture-diffusion-dpo", [*told, without])
        with pytest.raises(ValueError, match=message):
            Run(asked, tmp_path / "c")
