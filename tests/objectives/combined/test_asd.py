"""Adversarial self-distillation on Gaussians: n steps against n + 1, beside DMD2's loss."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from oracles import Affine
from scored import DATA, FAR, batch, located, setup_of
from torch import nn

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.solvers import time_grid
from edgedistill.networks.planar import PlanarNet
from edgedistill.objectives.combined.asd import ASD
from edgedistill.objectives.matching.dmd2 import DMD2


def method(kind=ASD, student=None, *, steps=4, sampler="renoise", **config):
    """A method whose further networks are untrained planar ones, the same each time."""

    def spawn():
        torch.manual_seed(0)
        return Denoiser(PlanarNet(width=16), Trig(), Prediction.V)

    student = located(FAR, 0.5) if student is None else student
    setup = replace(setup_of(student, steps=steps, sampler=sampler), spawn=spawn)
    torch.manual_seed(1)
    return kind(kind.Config(**config), setup)


def exact():
    """The end of the path from anywhere: n steps draw the data's distribution for every n."""
    return Denoiser(Affine(DATA.consistency), Trig(), Prediction.X0)


def drifting():
    """The same end moved by 3: each step moves the samples on."""
    return Denoiser(Affine(DATA.consistency, shift=3.0), Trig(), Prediction.X0)


def blind(game):
    """Make the heads constant; the features under them stay."""
    for layer in game.discriminator.heads.modules():
        if isinstance(layer, nn.Linear) and layer.out_features == 1:
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, 0.5)
    return game.discriminator.heads


def slope(losses, net):
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(losses.total, trained, allow_unused=True)
    return torch.cat([each.flatten() for each in found if each is not None])


@pytest.mark.parametrize("player", ["student", "fake_score"])
@pytest.mark.parametrize("weights", [{}, {"regression_weight": 0.3}])
def test_of_one_number_of_steps_and_without_the_game_it_is_dmd2(player, weights):
    same = {"gan_weight": 0, "turns": 3, **weights}
    ours = method(ASD, self_weight=0, least_steps=4, **same)
    theirs = method(DMD2, **same)
    assert ours.game is None
    assert [each.name for each in ours.players()] == [each.name for each in theirs.players()]
    for seed in range(3):
        found, expected = (
            objective.loss(player, batch(128, seed, seed)) for objective in (ours, theirs)
        )
        assert torch.equal(found.total, expected.total)
        assert found.logs.keys() == expected.logs.keys()


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_samples_in_n_steps_are_those_of_a_loop(count):
    student = located([0.3, -0.2], 0.8)
    game = method(student=student, least_steps=1, most_steps=5).game
    rollout = game.pairs[count - 1][0]
    found = game.sample(rollout, batch(64))
    again = batch(64)
    x = again.noise()
    for t, s in pairwise(time_grid(Trig(), count)):
        x_t, x = x, student(x, t, {})
        if s > 0:
            x = student.noised(x, s, again.noise())
    torch.testing.assert_close(found.x0, x, rtol=0, atol=0)
    torch.testing.assert_close(found.x_t, x_t, rtol=0, atol=0)
    assert float(found.t) == pytest.approx(1 / count)


def test_every_pair_is_drawn_and_has_heads_of_its_own():
    game = method().game
    counts = [[len(rollout.times) - 1 for rollout in pair] for pair in game.pairs]
    assert counts == [[1, 2], [2, 3], [3, 4]]
    assert len(game.discriminator.heads) == 3
    groups = set()
    for seed in range(20):
        made = game.round(batch(4, 0, seed))
        (group,) = set(game.group(made.t).tolist())
        assert float(made.t[0]) == pytest.approx(1 / (group + 1), abs=1e-3)
        groups.add(group)
    assert groups == {0, 1, 2}
    assert len(method(heads_per_step=False).game.discriminator.heads) == 1


def test_matching_and_regression_take_every_number_of_steps():
    student, asked = located(FAR, 0.5), set()
    objective = method(student=student)
    student.net.register_forward_pre_hook(lambda net, args: asked.add(round(args[1][0].item(), 3)))
    every = {1.0, 0.75, 0.667, 0.5, 0.333, 0.25}
    assert {round(float(objective.rollout(batch(2, 0, n)).t), 3) for n in range(100)} == every
    asked.clear()
    for seed in range(100):
        objective.regression(batch(2, 0, seed))
    assert asked == every
    assert objective.table() is None  # the student to save takes its own steps
    assert len(objective.rollout.times) == 5


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_where_n_steps_are_like_n_plus_1_the_discriminator_gains_nothing_by_telling(kept):
    """Its gradient at a constant is the difference of mean features: for any features at all."""
    norms = []
    for student in (exact(), drifting()):
        options = {"loss": "lsgan", "r1_weight": 0, "r2_weight": 0}
        game = method(student=student, **options).game
        game.pairs = [game.pairs[kept]]
        heads = blind(game)
        norms.append(slope(game.loss("discriminator", batch(200_000)), heads).norm())
    assert norms[0] < 0.2 * norms[1]


def test_a_discriminator_that_cannot_tell_moves_nothing():
    student = exact()
    game = method(student=student).game
    assert slope(game.loss("student", batch(64)), student.net).abs().max() > 0
    blind(game)
    assert slope(game.loss("student", batch(64)), student.net).abs().max() == 0


def test_samples_in_n_plus_1_steps_have_no_gradient():
    made = method().game.round(batch(8))
    assert made.fake[0][0].requires_grad
    assert not made.real[0][0].requires_grad
    assert made.fake[0][1].min() >= 0.02


def test_the_students_loss_is_the_sum_of_both():
    totals = {}
    for weight in (0.0, 0.5, 1.0):
        losses = method(self_weight=weight).loss("student", batch(64))
        totals[weight] = losses.total.item()
    assert losses.logs["self"] > 0
    assert totals[1.0] - totals[0.0] == pytest.approx(losses.logs["self"].item(), rel=1e-4)
    assert totals[1.0] - totals[0.0] == pytest.approx(2 * (totals[0.5] - totals[0.0]), rel=1e-4)


def test_the_discriminator_trains_alone_and_from_where_the_fake_score_does():
    student = located(FAR, 0.5)
    objective = method(student=student, pretraining_steps=10, warmup_steps=5, turns=2)
    fake_score, discriminator, last = objective.players()
    assert [fake_score.name, discriminator.name, last.name] == [
        *("fake_score", "discriminator", "student"),
    ]
    assert [discriminator.plays(step) for step in (9, 10, 11)] == [False, True, True]
    assert [last.plays(step) for step in (9, 10, 14, 15)] == [True, False, False, True]
    losses = objective.loss("discriminator", batch(64))
    assert {"gan", "accuracy", "r1", "r2"} <= losses.logs.keys()
    losses.total.backward()
    assert student.net.mean.grad is None


def test_a_student_of_one_step_learns_from_more():
    objective = method(steps=1, most_steps=3)
    counts = [[len(rollout.times) - 1 for rollout in pair] for pair in objective.game.pairs]
    assert counts == [[1, 2], [2, 3]]
    assert objective.rollout.times.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 1}, r"student.steps=1: asd compares .* objective.most_steps=2 or more"),
        ({"least_steps": 5}, "student.steps=4: not from objective.least_steps=5"),
        ({"most_steps": 3}, "student.steps=4: not from .* to objective.most_steps=3"),
        ({"sampler": "ddim"}, "student.sampler=ddim: .*choose student.sampler=renoise"),
    ],
)
def test_a_wrong_choice_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        method(**arguments)
    assert method(steps=1, sampler="ddim", self_weight=0).game is None
