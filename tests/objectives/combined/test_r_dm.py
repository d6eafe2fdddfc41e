"""R_dm on Gaussians: its value is the log-density ratio, and its policy gradient is that of KL."""

import math
from dataclasses import replace

import pytest
import torch
from oracles import Affine, Gaussian
from scored import DATA, FAR, Conditioned, batch, located, method, told
from torch import nn

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.times import TimeSampling
from edgedistill.objectives.added.reward import advantages
from edgedistill.objectives.combined.r_dm import RDM, levels, matching_reward
from edgedistill.objectives.matching.dmd2 import DMD2
from edgedistill.objectives.preference.policy import grouped

OTHER = Gaussian([0.2, 0.1], 0.8, Trig())


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_reward_is_the_log_ratio_of_the_two_densities():
    points = torch.tensor([[0.7, -0.4], [0.0, 0.5], [1.4, -1.0], [-0.5, 0.2]])
    times = levels(TimeSampling(low=1e-3, high=0.999), DATA.denoiser(), 400, generator())
    draws = 200
    x0 = points.repeat_interleave(draws, 0)
    noise = torch.randn(len(times), *x0.shape, generator=generator(1))
    found = matching_reward(DATA.denoiser(), OTHER.denoiser(), x0, {}, times, noise)
    clean = torch.zeros(len(points))
    want = DATA.log_density(points, clean) - OTHER.log_density(points, clean)
    torch.testing.assert_close(found.reshape(-1, draws).mean(1), want, rtol=0, atol=0.06)
    assert want.max() - want.min() > 2


def test_equal_scores_give_no_reward_and_no_policy_gradient():
    objective = method(RDM, located(FAR, 0.5), DATA.denoiser(), steps=3, policy_weight=1.0)
    losses = objective.loss("student", batch(64))
    assert losses.logs["reward"] == 0
    assert losses.logs["policy"] == 0


def test_a_group_shares_noise_so_that_equal_samples_have_equal_rewards():
    objective = method(RDM, located(FAR, 0.5), OTHER.denoiser(), steps=3, group=4, levels=3)
    x0 = torch.randn(4, 2, generator=generator()).repeat_interleave(4, 0)
    rewards = objective.reward(x0, batch(16)).reshape(4, 4)
    assert torch.equal(rewards, rewards[:, :1].expand(4, 4))
    assert rewards[:, 0].unique().numel() == 4
    assert advantages(rewards.flatten(), 4).abs().max() == 0


@pytest.mark.parametrize("player", ["student", "fake_score"])
def test_without_the_values_it_is_dmd2(player):
    same = {"steps": 4, "gan_weight": 0, "regression_weight": 0.3, "turns": 3}
    for seed in range(3):
        ours, theirs = (
            method(kind, located(FAR, 0.5), OTHER.denoiser(), **same, **more)
            for kind, more in ((RDM, {"policy_weight": 0}), (DMD2, {}))
        )
        found, want = (each.loss(player, batch(64, seed, seed)) for each in (ours, theirs))
        assert torch.equal(found.total, want.total)
        assert found.logs.keys() == want.logs.keys()


class Two(nn.Module):
    """Two steps: the first lands around its mean, and the last ends there, or is deaf to it."""

    def __init__(self, deaf):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(FAR))
        self.deaf = deaf

    def forward(self, x, t):
        last = (t < 0.75).reshape(-1, 1)
        end = x.detach() * math.sqrt(2) * (not self.deaf)
        return torch.where(last, end, self.mean.expand_as(x))


def policy_gradient(objective, count=200_000):
    """The gradient of the policy term alone, in the student's mean."""
    with_, without = (
        torch.autograd.grad(
            replaced(objective, weight).loss("student", batch(count, 0, 0)).total,
            objective.student.net.mean,
        )[0]
        for weight in (1.0, 0.0)
    )
    return with_ - without


def replaced(objective, weight):
    objective.config = objective.config.model_copy(update={"policy_weight": weight})
    return objective


def test_the_policy_gradient_is_that_of_the_mean_reward_over_its_deviation():
    """x_s = a m + c n with a = c = sqrt(1/2), and x0 = x_s / a is N(m, 1).

    Against N(m, 1) itself as fake, and N(m', 1) as real, R_dm = (m' - m).(x0 - m) + const, whose
    deviation is |m' - m|. The gradient of -E[A log p] / size, where log p is a mean over the two
    elements, is -E[A n] / 2 = -(m' - m) / |m' - m| / 2 times a / c = 1.
    """
    aim = Gaussian([0.9, -0.2], 1.0, Trig())
    fake = Gaussian(FAR, 1.0, Trig()).denoiser()
    found = {}
    for deaf in (False, True):
        student = Denoiser(Two(deaf), Trig(), Prediction.X0)
        options = {"group": 1000, "levels": 60, "times": {"low": 1e-3, "high": 0.999}}
        objective = method(RDM, student, fake, steps=2, teacher=aim.denoiser(), **options)
        found[deaf] = policy_gradient(objective)
    away = torch.tensor(FAR) - aim.mean
    torch.testing.assert_close(found[False], away / away.norm() / 2, rtol=0, atol=0.03)
    assert found[True].abs().max() < 0.01  # what it does makes no difference to the sample


def test_a_group_is_of_one_condition():
    given = told(batch(64))
    given.cond["y"][:] = torch.arange(64.0)[:, None]
    several = grouped(given, 16)
    assert several.cond["y"].flatten().tolist() == [i // 16 for i in range(64)]
    asked = []
    student = Denoiser(Conditioned(), Trig(), Prediction.X0)
    student.net.mean = nn.Parameter(torch.zeros(2))
    teacher = Denoiser(Conditioned(), Trig(), Prediction.X0)
    fake = Denoiser(Affine(lambda x, t, y=None: x), Trig(), Prediction.X0)
    fake.net.forward = lambda x, t, y: x + 0 * y
    teacher.net.register_forward_pre_hook(
        lambda net, args, kwargs: asked.append(kwargs["y"]), with_kwargs=True
    )
    objective = method(RDM, student, fake, steps=2, teacher=teacher, levels=2)
    objective.reward(torch.zeros(64, 2), several)
    assert all(torch.equal(y, several.cond["y"]) for y in asked)
    assert len(asked) == 2


def test_levels_are_one_in_each_part_of_log_snr():
    config = TimeSampling(low=0.05, high=0.9)
    found = levels(config, DATA.denoiser(), 6, generator())
    edges = Trig().log_snr(torch.tensor([0.9, 0.05], dtype=torch.float64))
    share = (Trig().log_snr(found) - edges[0]) / (edges[1] - edges[0])
    assert (share * 6).floor().tolist() == [0, 1, 2, 3, 4, 5]
    assert not torch.equal(found, levels(config, DATA.denoiser(), 6, generator(1)))


def test_a_wrong_choice_is_named():
    with pytest.raises(ValueError, match=r"objective.policy_weight: no step .* draws noise"):
        method(RDM, located(FAR, 0.5), steps=1)
    assert method(RDM, located(FAR, 0.5), steps=1, policy_weight=0).name == "r-dm"
    few = method(RDM, located(FAR, 0.5), OTHER.denoiser(), steps=2, group=16)
    with pytest.raises(ValueError, match=r"train.batch_size=8 .* objective.group=16"):
        few.loss("student", replace(batch(8)))
