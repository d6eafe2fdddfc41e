"""Rewards beside a method, on Gaussians: a linear reward tilts them, and gradients are known."""

import math
from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest
import torch
from oracles import Gaussian
from scored import DATA, FAR, batch, located, method
from torch import nn

from edgedistill import recipes
from edgedistill.diffusion.boundary import lcm_boundary
from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.solvers import time_grid
from edgedistill.objectives.added.reward import Reward, Rewarded, advantages
from edgedistill.objectives.base import Losses, Objective, Optim, Player, Setup
from edgedistill.objectives.matching.vsd import VSD
from edgedistill.objectives.preference.policy import actions, log_prob, walk
from edgedistill.planning.networks import planned_networks
from edgedistill.rewards import RewardModel, reward_of
from edgedistill.runs.run import Run
from edgedistill.teachers import load_teacher

SIDE = torch.tensor([0.6, -0.8])
"""Direction of the reward."""


def linear(x0, prompts):
    return x0 @ SIDE.to(x0)


class Quiet(Objective):
    """A method without a loss, with a player besides the student."""

    name = "quiet"

    def __init__(self, student, edge=None):
        self.student, self.edge = student, edge

    def players(self):
        return [Player("student", self.student, Optim()), Player("other", self.student, Optim())]

    def loss(self, player, batch):
        return Losses(torch.zeros(()))

    def boundary(self):
        return self.edge


def rewarded(
    student, *, steps=1, sampler="renoise", reward=linear, inner=None, edge=None, **given
):
    setup = Setup(
        teacher=DATA.denoiser(),
        student=student,
        spawn=DATA.denoiser,
        times=time_grid(Trig(), steps),
        sampler=sampler,
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 2), {}),
        reward=reward,
    )
    return Rewarded(inner or Quiet(student, edge), Reward(name="linear", **given), setup)


def mean_gradient(objective, given):
    torch.autograd.backward(objective.loss("student", given).total)
    return objective.student.net.mean.grad


def test_the_optimum_beside_a_reverse_kl_is_the_tilted_gaussian():
    """p(x) exp(b w.x) is N(mean + b cov w, cov); there the two gradients cancel."""
    b, low, high = 1.5, 0.02, 0.98
    # In a mean that is off by d, vsd's gradient is k d / 2, k the mean of alpha sigma^3 / dev^2.
    t = low + (high - low) * (torch.arange(10_000).double() + 0.5) / 10_000
    alpha, sigma = Trig().alpha(t), Trig().sigma(t)
    k = (alpha * sigma**3 / (alpha**2 * DATA.scale**2 + sigma**2)).mean().item()
    tilted = DATA.mean + b * DATA.scale**2 * SIDE
    found = {}
    for name, mean in {"tilted": tilted, "teacher": DATA.mean, "far": torch.tensor(FAR)}.items():
        student = located(mean.tolist(), DATA.scale)
        fake = Gaussian(mean.tolist(), DATA.scale, Trig()).denoiser()
        inner = method(VSD, student, fake)
        weight = 0.5 * k * b * DATA.scale**2
        found[name] = mean_gradient(rewarded(student, inner=inner, weight=weight), batch())
    torch.testing.assert_close(found["tilted"], torch.zeros(2), atol=1e-3 * k, rtol=0)
    torch.testing.assert_close(found["teacher"], -weight * SIDE)
    far = torch.tensor(FAR) - tilted
    torch.testing.assert_close(found["far"], 0.5 * k * far, rtol=2e-3, atol=0)


def test_a_reward_with_a_gradient_reaches_the_step_that_made_the_sample():
    """d/d mean of w.x0 is w at each of the student's steps; with half a boundary, w / 2."""
    for edge, factor in ((None, 1.0), (lambda t: (0 * t, 0 * t + 0.5), 0.5)):
        objective = rewarded(located(FAR, 0.5), steps=3, weight=0.25, edge=edge)
        for shared in range(3):
            objective.student.zero_grad()
            found = mean_gradient(objective, batch(64, shared=shared))
            torch.testing.assert_close(found, -0.25 * factor * SIDE)


class Prompted(nn.Module):
    """A step to its condition and a trainable mean."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(2))

    def forward(self, x, t, y):
        return y + self.mean + 0.5 * x


def prompted(count):
    """A batch whose prompts say what its condition is."""
    given = batch(count)
    numbers = [float(i) for i in range(count)]
    cond = {"y": torch.tensor(numbers)[:, None].expand(-1, 2)}
    return replace(given, cond=cond, prompts=[str(i) for i in range(count)])


@pytest.mark.parametrize("kind", ["differentiable", "black-box"])
def test_each_sample_is_judged_by_its_own_prompt(kind):
    seen = []

    def reward(x0, prompts):
        seen.append((x0.detach(), prompts))
        return linear(x0, prompts)

    student = Denoiser(Prompted(), Trig(), Prediction.X0)
    objective = rewarded(student, steps=2, reward=reward, kind=kind, group=4)
    objective.loss("student", prompted(12))
    ((x0, prompts),) = seen
    wanted = [str(i) for i in range(12)] if kind == "differentiable" else list("000011112222")
    assert list(prompts) == wanted
    asked = torch.tensor([float(p) for p in prompts])[:, None]
    assert (x0 - asked).abs().max() < 6  # spread about 0.5, and prompts are 1 apart
    assert torch.corrcoef(torch.stack([x0[:, 0], asked[:, 0]]))[0, 1] > (
        0.95 if kind == "differentiable" else 0.6
    )


def test_advantages_are_those_of_each_group():
    rewards = torch.tensor([1.0, 3.0, 5.0, 5.0, 0.0, 0.1])
    found = advantages(rewards, 2)
    torch.testing.assert_close(found, torch.tensor([-1.0, 1.0, 0, 0, -1, 1]), atol=3e-3, rtol=0)
    assert advantages(torch.tensor([0.0] * 99 + [1.0]), 100).max() == 5


def test_without_a_gradient_the_steps_that_landed_well_become_likelier():
    """The policy gradient of w.x0 in the first of two steps, over its standard deviation.

    x0 = m + c x_s, x_s = a (m + c z) + s e: the step's mean moves E[x0] by c a, and w.x0 has
    variance |w|^2 ((c^2 a)^2 + (c s)^2). The mean over two coordinates halves it.
    """
    c, count = 0.5, 200_000
    student = located(FAR, c)
    objective = rewarded(student, steps=2, kind="black-box", group=1_000, weight=2.0)
    a, s = Trig().alpha(torch.tensor(0.5)).item(), Trig().sigma(torch.tensor(0.5)).item()
    found = mean_gradient(objective, batch(count))
    spread = math.hypot(c * c * a, c * s)
    torch.testing.assert_close(found, -2.0 * SIDE * c * a / spread / 2, atol=0.02, rtol=0)


def test_equal_rewards_have_no_gradient():
    student = located(FAR, 0.5)
    same = {"reward": lambda x0, prompts: torch.ones(len(x0)), "kind": "black-box", "group": 8}
    assert mean_gradient(rewarded(student, steps=3, **same), batch(64)).abs().max() == 0


@pytest.mark.parametrize("boundary", [None, lcm_boundary(10.0)])
def test_a_walk_is_the_table_and_its_steps_have_their_density(boundary):
    student = located(FAR, 0.5)
    table = few_step_table(Trig(), Prediction.X0, time_grid(Trig(), 3), boundary=boundary)
    places = walk(student.net, table, {}, batch(256, seed=3))
    given = batch(256, seed=3)
    noise = [given.noise() for _ in range(table.draws)]
    torch.testing.assert_close(places[-1], table.sample(student.net, noise, {}))
    assert actions(table) == [0, 1]
    for i in actions(table):
        drawn = noise[1 + i].square().mean(1)
        torch.testing.assert_close(
            log_prob(student.net, table, i, places, {}), -0.5 * drawn, atol=1e-4, rtol=1e-4
        )


def test_it_waits_for_its_start_and_for_the_students_turn():
    objective = rewarded(located(FAR, 0.5), start=10)
    assert "reward" not in objective.loss("student", batch(16, step=9)).logs
    late = objective.loss("student", batch(4096, step=10)).logs
    assert late["reward"].item() == pytest.approx(float(SIDE @ torch.tensor(FAR)), abs=0.05)
    assert "reward" not in objective.loss("other", batch(16, step=10)).logs


def test_what_cannot_be_rewarded_is_named():
    student = located(FAR, 0.5)
    with pytest.raises(ValueError, match="black-box: no step of this student draws noise"):
        rewarded(student, steps=3, sampler="ddim", kind="black-box")
    with pytest.raises(ValueError, match="black-box: no step of this student draws noise"):
        rewarded(student, steps=1, kind="black-box")
    silent = rewarded(student, reward=lambda x0, prompts: torch.ones(len(x0)))
    with pytest.raises(ValueError, match=r"'linear' has no gradient; choose reward\.kind="):
        silent.loss("student", batch(8))


WORDS = ("reward.name=linear", "reward.options.direction=[1, 0]", "train.batch_size=8")


@pytest.mark.parametrize("kind", ["differentiable", "black-box"])
def test_a_recipe_asks_for_it(kind, tmp_path, two_modes, quick_fit):
    words = [*WORDS, f"teacher.path={two_modes}", f"reward.kind={kind}", "train.steps=2"]
    run = Run(recipes.load("mixture-lcm", words), tmp_path)
    run.train(lambda step, figures: None)
    assert "student/reward" in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")


def test_recipes_that_cannot_have_it_are_refused(tmp_path, two_modes, quick_fit):
    for words, message in (
        (["reward.name=liner"], "unknown reward 'liner' .did you mean 'linear'"),
        (["reward.name=linear"], "recipe lacks reward.options.direction"),
        ([*WORDS, "reward.kind=black-box", "reward.group=3"], "no multiple of reward.group"),
        ([*WORDS, "train.offload=true"], "offload takes the decoder away"),
        ([*WORDS, "reward.options.slope=2"], "unknown key reward.options.slope"),
    ):
        with pytest.raises(ValueError, match=message):
            recipes.load("mixture-lcm", words)
    for name, words, message in (
        ("lcm", ["reward.name=clip"], "reward.name=clip: teacher 'two' takes no prompts"),
        ("lcm", [*WORDS, "reward.options.direction=[1]"], r"have shape \(2,\), not \(1,\)"),
        ("oss", WORDS, "reward: method 'oss' trains no student"),
        ("ddgan", WORDS, "reward: method 'ddgan' trains no student that takes the steps of"),
    ):
        asked = recipes.load(f"mixture-{name}", [f"teacher.path={two_modes}", *words])
        with pytest.raises(ValueError, match=message):
            Run(asked, tmp_path)


def test_values_alone_need_no_decoder_that_stays():
    recipes.load("mixture-lcm", [*WORDS, "train.offload=true", "reward.kind=black-box"])


def test_a_plan_does_not_leave_its_cost_out_in_silence():
    words = ["reward.name=linear", "reward.options.direction=[1]"]
    with pytest.raises(ValueError, match=r"reward\.name=linear: what this reward costs"):
        planned_networks(recipes.load("emoji-lcm", words))


class Norm(RewardModel):
    def __init__(self, config, teacher):
        pass

    def __call__(self, samples, prompts):
        return samples.norm(dim=1)


def test_a_plugin_adds_a_reward(monkeypatch, two_modes):
    point = EntryPoint("norm", f"{__name__}:Norm", "edgedistill.rewards")
    monkeypatch.setattr(
        "edgedistill.common.plugins.entry_points", lambda group: [point] * (group == point.group)
    )
    monkeypatch.setattr(EntryPoint, "load", lambda self: Norm)
    reward = reward_of(Reward(name="norm"), load_teacher("mixture", str(two_modes)))
    assert reward(torch.tensor([[3.0, 4.0]]), ()).tolist() == [5]


def test_the_clip_score_is_that_of_the_evaluation_and_has_a_gradient():
    from edgedistill.common.pictures import to_uint8
    from edgedistill.networks.clip import Features

    teacher = load_teacher("stable_diffusion", "emoji")
    source, generator = teacher.source(), torch.Generator()
    x0, _ = source.draw(6, generator.manual_seed(0))
    prompts = source.prompts(6, generator.manual_seed(0))
    reward = reward_of(Reward(name="clip"), teacher)
    x0.requires_grad_(True)
    found = reward(x0, prompts)
    eye = Features(f"{teacher.path}/clip")
    images = eye.images(to_uint8(teacher.decode(x0.detach())))
    texts = eye.texts(prompts)
    # Its pictures are rounded to bytes.
    assert 100 * found.mean().item() == pytest.approx(eye.score(images, texts), abs=0.5)
    assert found.mean() > reward(x0.detach(), prompts[1:] + prompts[:1]).mean() + 0.1
    (slope,) = torch.autograd.grad(found.sum(), x0)
    assert slope.flatten(1).norm(dim=1).min() > 0
    along = 0.02 * slope / slope.flatten(1).norm(dim=1).amax()
    assert reward(x0.detach() + along, prompts).mean() > found.mean()


def test_batches_bring_the_prompts_of_their_conditions(tmp_path):
    words = ["reward.name=clip", "train.batch_size=4", "train.steps=2"]
    run = Run(recipes.load("emoji-lcm", words), tmp_path)
    for step in (0, 1, 0):
        given = run.trainer._batch(step, 0, 0)
        told = run.teacher.encode(given.prompts)
        assert all(torch.equal(told[name], value) for name, value in given.cond.items())
    plain = Run(recipes.load("emoji-lcm", words[1:]), tmp_path)
    other = plain.trainer._batch(0, 0, 0)
    assert other.prompts == ()
    assert torch.equal(other.x0, given.x0)
    assert torch.equal(other.noise(), given.noise())
