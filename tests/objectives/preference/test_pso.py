"""Pairwise sample optimisation on Gaussians, whose preferences have closed forms."""

import math
from functools import partial

import pytest
import torch
from preferring import SCALE, SIDE, preferring, stepped
from scored import FAR, batch

from edgedistill import recipes
from edgedistill.diffusion.schedules import Trig
from edgedistill.objectives.added.embedding import Embedded
from edgedistill.objectives.preference.policy import preference, walk
from edgedistill.objectives.preference.pso import PSO
from edgedistill.runs.run import Run

method = partial(preferring, PSO)


def test_the_students_first_gradient_is_the_preferred_steps():
    """E[sign(u) v] = sqrt(2 / pi) cov(u, v) / std(u) for the rewards' and the scores' differences.

    x0 = m + c x_s, x_s = a (m + c z) + s e, and the mean log-density of the first step has the
    gradient a e / (2 s) in m. The loss is log 2, its slope -beta / 2.
    """
    beta, c = 3.0, SCALE
    a, s = Trig().alpha(torch.tensor(0.5)).item(), Trig().sigma(torch.tensor(0.5)).item()
    losses, found = stepped(method(beta=beta), batch(200_000))
    assert losses.total.item() == pytest.approx(math.log(2))
    spread = math.sqrt(2) * math.hypot(c * c * a, c * s)
    expected = -0.5 * beta * math.sqrt(2 / math.pi) * c * a * SIDE / spread
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)


def test_where_neither_is_better_nothing_moves():
    losses, found = stepped(method(steps=3, reward=lambda x0, p: torch.ones(len(x0))), batch(64))
    assert found.abs().max() == 0
    assert losses.total.item() == pytest.approx(math.log(2))


def test_preference_is_the_bradley_terry_loss():
    margin = torch.tensor([0.3, 0.0, -0.2])
    expected = torch.log1p(torch.exp(-2 * margin)).mean()
    torch.testing.assert_close(preference(margin, 2.0), expected)


@pytest.mark.parametrize("moved", [0.001, 0.5])
def test_odds_are_those_of_the_step_against_the_reference_and_held(moved):
    """Log N(x; a (m + d), s^2) - log N(x; a m, s^2), its mean over two coordinates."""
    a, s = Trig().alpha(torch.tensor(0.5)).item(), Trig().sigma(torch.tensor(0.5)).item()
    given, clip = batch(512), 0.1
    free, held = method(clip=0), method(clip=clip)
    places = walk(free.student.net, free.table(), {}, given)
    gap = places[1] - a * (torch.tensor(FAR) + SCALE * places[0])
    expected = (2 * a * moved * gap - (a * moved) ** 2).sum(1) / (4 * s**2)
    for objective, wanted in (
        (free, expected),
        (held, expected.clamp(math.log(1 - clip), math.log(1 + clip))),
    ):
        with torch.no_grad():
            objective.student.net.mean += moved
        found = objective.odds(0, places, given)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    beyond = (found <= math.log(1 - clip)) | (found >= math.log(1 + clip))
    (slope,) = torch.autograd.grad(found[beyond].sum(), objective.student.net.mean)
    assert slope.abs().max() == 0
    assert bool(beyond.any()) == (moved > 0.1)


def test_the_better_samples_are_made_more_often():
    objective = method(beta=5.0)
    optim = torch.optim.Adam(objective.student.parameters(), 0.01)
    rewards = []
    for step in range(60):
        optim.zero_grad()
        losses, _ = stepped(objective, batch(256, step))
        optim.step()
        rewards.append(losses.logs["reward"].item())
    assert sum(rewards[-10:]) > sum(rewards[:10]) + 0.3
    assert objective.reference.net.mean.tolist() == pytest.approx(FAR)


def test_a_deterministic_student_is_refused():
    with pytest.raises(ValueError, match=r"student\.init: no step of this student draws noise"):
        method(steps=3, sampler="ddim")


def test_a_recipe_starts_from_a_student(tmp_path, two_modes, quick_fit):
    words = [f"teacher.path={two_modes}", "train.steps=2", "train.batch_size=8"]
    first = Run(recipes.load("mixture-lcm", words), tmp_path / "a")
    made = first.train(lambda step, figures: None)
    told = [*words, "reward.name=linear", "reward.options.direction=[1, 0]"]
    told.append(f"student.init={made}")
    run = Run(recipes.load("mixture-pso", told), tmp_path / "b")
    assert run.table == first.table
    run.train(lambda step, figures: None)
    beside = Run(recipes.load("mixture-pso", [*told, "embedding.weight=1"]), tmp_path)
    assert isinstance(beside.objective, Embedded)
    assert (beside.objective.name, beside.objective.method.name) == ("pso", "pso")
    with pytest.raises(ValueError, match=r"reward\.weight: .* from the reward in its own way"):
        recipes.load("mixture-pso", [*told, "reward.weight=2"])
    for without, message in (
        ("reward=null", "method 'pso' learns from a reward"),
        ("student.init=null", "method 'pso' starts from a student"),
    ):
        asked = recipes.load("mixture-pso", [*told, without])
        with pytest.raises(ValueError, match=message):
            Run(asked, tmp_path / "c")
