"""Hyper-SD on Gaussians: each part is the method that it comes from, and takes its turn."""

from dataclasses import replace

import pytest
import torch
from oracles import Affine, Gaussian
from scored import DATA, FAR, batch, located, setup_of
from torch import nn

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.solvers import time_grid
from edgedistill.networks.planar import PlanarNet
from edgedistill.objectives.added.reward import Reward, Rewarded
from edgedistill.objectives.adversarial.pcm_gan import PCMGAN
from edgedistill.objectives.combined.asd import ASD
from edgedistill.objectives.combined.hyper_sd import HyperSD
from edgedistill.objectives.matching.parts import FakeScore
from edgedistill.objectives.matching.vsd import VSD

RUN = 1000
"""Steps of a run, of which the stages take 600."""


def method(
    kind=HyperSD, student=None, fake=None, *, sampler="renoise", steps=4, run=RUN, **config
):
    def spawn():
        torch.manual_seed(0)
        return Denoiser(PlanarNet(width=16), Trig(), Prediction.V)

    student = located(FAR, 0.5) if student is None else student
    setup = setup_of(student, steps=4, sampler=sampler)
    setup = replace(setup, spawn=spawn, train_steps=run)
    torch.manual_seed(1)
    objective = kind(kind.Config(**config), setup)
    if fake is not None:
        objective.fake_score = FakeScore(replace(setup, spawn=lambda: fake), head=False)
    return objective


def exact():
    return Denoiser(Affine(DATA.consistency), Trig(), Prediction.X0)


@pytest.mark.parametrize("step", [0, 150, 300, 599, 650, 999])
@pytest.mark.parametrize("player", ["student", "discriminator"])
def test_without_scores_it_is_pcm_gan_whose_game_gains_weight(step, player):
    """The stages take 600 of 1000 steps, so pcm-gan has them in a run of 600."""
    stage = min(step // 150, 3)
    ours = method(student=exact_off(), matching_weight=0, gan_weight=0.4)
    own = {"segments": (8, 4, 2, 1), "gan_weight": 0.1 * (stage + 1)}
    theirs = method(PCMGAN, exact_off(), run=600, **own)
    found, want = (each.loss(player, batch(64, step, 0, step)) for each in (ours, theirs))
    torch.testing.assert_close(found.total, want.total)
    assert [each.name for each in ours.players()] == ["discriminator", "student"]


def exact_off():
    return Denoiser(Affine(DATA.consistency, gain=0.8), Trig(), Prediction.X0)


def mean_gradient(objective, given):
    (found,) = torch.autograd.grad(
        objective.loss("student", given).total, objective_student(objective).net.mean
    )
    return found


def objective_student(objective):
    return objective.one_step.student


def test_scores_move_samples_in_one_step_as_matching_without_parts_does():
    """After the warm-up: DMD's normalised gradient, whose direction is vsd's, in the mean."""
    fake = Gaussian(FAR, DATA.scale, Trig()).denoiser()
    gradient = {}
    for weight in (0.0, 0.5, 1.0):
        objective = method(student=located(FAR, DATA.scale), fake=fake, matching_weight=weight)
        if weight == 0:
            objective.fake_score = None
        gradient[weight] = mean_gradient(objective, batch(4096, step=700))
        if weight:
            assert "dmd" not in objective.loss("student", batch(64, step=699)).logs
    added = gradient[1.0] - gradient[0.0]
    torch.testing.assert_close(added, 2 * (gradient[0.5] - gradient[0.0]), rtol=1e-3, atol=1e-5)
    aim = torch.tensor(FAR) - DATA.mean
    torch.testing.assert_close(added / added.norm(), aim / aim.norm(), rtol=0, atol=0.02)
    setup = replace(setup_of(located(FAR, DATA.scale), fake), train_steps=RUN)
    vsd = VSD(VSD.Config(), setup).loss("student", batch(4096))
    (theirs,) = torch.autograd.grad(vsd.total, setup.student.net.mean)
    torch.testing.assert_close(theirs / theirs.norm(), aim / aim.norm(), rtol=0, atol=0.02)


def test_where_the_student_has_the_teachers_distribution_scores_move_nothing():
    objective = method(student=located([0.7, -0.4], 0.5), fake=DATA.denoiser())
    assert objective.loss("student", batch(64, step=800)).logs["dmd"] == 0


def test_the_fake_score_learns_samples_in_one_step_from_the_end_of_the_stages_on():
    student = located(FAR, 0.5)
    seen = []
    student.net.register_forward_pre_hook(lambda net, args: seen.append(args[1].unique().tolist()))
    objective = method(student=student, warmup_steps=20)
    fake_score, discriminator, last = objective.players()
    assert [each.name for each in objective.players()] == [
        "fake_score",
        "discriminator",
        "student",
    ]
    assert [fake_score.plays(step) for step in (599, 600)] == [False, True]
    assert discriminator.plays(0)
    assert last.plays(0)
    seen.clear()
    losses = objective.loss("fake_score", batch(64, step=600))
    assert seen == [[1.0]]
    assert losses.logs.keys() == {"denoising"}
    losses.total.backward()
    assert student.net.mean.grad is None
    # A fake score that knows the samples has the least loss, their own conditional variance.
    known = [
        method(fake=Gaussian(mean, 0.5, Trig()).denoiser()).loss("fake_score", batch(4096)).total
        for mean in (FAR, [0.7, -0.4])
    ]
    assert known[0] < 0.5 * known[1]


class Deaf(nn.Module):
    """Notes the times at which it is called with a gradient, and what it says."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(FAR))
        self.times = []

    def forward(self, x, t):
        if torch.is_grad_enabled():
            self.times.append(round(float(t.flatten()[0]), 4))
        return self.mean + 0.5 * x


@pytest.mark.parametrize("kind", [HyperSD, ASD])
def test_a_reward_takes_samples_in_every_number_of_steps(kind):
    student = Denoiser(Deaf(), Trig(), Prediction.X0)
    counts = {"step_counts": (1, 2, 8)} if kind is HyperSD else {"self_weight": 0, "gan_weight": 0}
    objective = method(kind, student, **counts)
    setup = replace(setup_of(student, steps=4), reward=lambda x0, prompts: x0 @ torch.ones(2))
    rewarded = Rewarded(objective, Reward(name="linear"), setup)
    numbers = (1, 2, 8) if kind is HyperSD else (1, 2, 3, 4)
    for count, times in zip(numbers, rewarded.step_times(), strict=True):
        torch.testing.assert_close(times, time_grid(Trig(), count))
    student.net.times.clear()
    for seed in range(300):
        x0 = rewarded.sample(batch(2, 0, seed))
        assert x0.requires_grad
    every = {round(1 - i / count, 4) for count in numbers for i in range(count)}
    assert set(student.net.times) == every


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "ddim"}, "student.sampler=ddim: .*choose student.sampler=renoise"),
        ({"segments": (8, 4)}, "needs 1 segments in the end, not 4"),
        ({"run": 5}, r"train.steps=5: objective.tscd_share=0.6 of them .*segments=\(8, 4, 2, 1\)"),
    ],
)
def test_a_wrong_choice_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        method(**arguments)
