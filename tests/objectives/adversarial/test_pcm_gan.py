"""PCM's adversarial loss on a Gaussian, whose flow and noised marginals are known."""

import pytest
import torch
from oracles import Affine, Gaussian
from torch import nn

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.solvers import one_step_x0, time_grid
from edgedistill.diffusion.times import above, below
from edgedistill.networks.planar import PlanarNet
from edgedistill.objectives.adversarial.pcm_gan import PCMGAN
from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.objectives.consistency.pcm import PCM

DATA = Gaussian([0.7, -0.4], 0.5, Trig())


def exact(gain=1.0, shift=0.0, count=4):
    """The x0 whose DDIM step to the edge below t is the exact flow, for `count` segments."""
    edges = time_grid(Trig(), count)

    def x0(x, t):
        t, wide = t.double(), x.double()
        s = below(edges, t)
        return one_step_x0(Trig(), wide, DATA.flow(wide, t, s), t, s).to(x)

    return Denoiser(Affine(x0, gain, shift), Trig(), Prediction.X0)


def method(kind, student, *, steps=4, sampler="ddim", **config):
    def spawn():
        torch.manual_seed(0)
        return Denoiser(PlanarNet(width=16), Trig(), Prediction.V)

    setup = Setup(
        teacher=DATA.denoiser(),
        student=student,
        spawn=spawn,
        times=time_grid(Trig(), steps),
        sampler=sampler,
        optim=Optim(),
        tap="blocks.1",
        example=(torch.zeros(2, 2), {}),
        train_steps=800,
    )
    torch.manual_seed(1)
    return kind(kind.Config(**config), setup)


def batch(count=4096, seed=0, step=0):
    generator = torch.Generator().manual_seed(seed)
    x0 = DATA.draw(count, generator)
    return Batch(x0, {}, generator, torch.Generator().manual_seed(seed), step)


def blind(objective):
    """Make the heads constant; the features under them stay."""
    for layer in objective.discriminator.heads.modules():
        if isinstance(layer, nn.Linear) and layer.out_features == 1:
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, 0.5)
    return objective.discriminator.heads


def slope(losses, net):
    found = torch.autograd.grad(losses.total, [p for p in net.parameters() if p.requires_grad])
    return torch.cat([g.flatten() for g in found])


CHOICES = [
    {},
    {"segments": (8, 4)},
    {"segments": (4, 6), "choice": "random"},
    {"segments": (2, 1), "sampler": "renoise"},
]


@pytest.mark.parametrize("choice", CHOICES)
def test_without_the_game_it_is_pcm(choice):
    ours, theirs = (
        method(kind, exact(0.8), **choice, **own)
        for kind, own in ((PCMGAN, {"gan_weight": 0}), (PCM, {}))
    )
    assert [player.name for player in ours.players()] == ["student"]
    for step in (0, 799):
        found, expected = (each.loss("student", batch(64, step, step)) for each in (ours, theirs))
        assert torch.equal(found.total, expected.total)
        assert torch.equal(found.logs["consistency"], expected.logs["consistency"])
        assert torch.equal(slope(found, ours.student), slope(expected, theirs.student))


def test_the_loss_is_the_sum_of_both():
    totals = {}
    for weight in (0.0, 0.5, 1.0):
        objective = method(PCMGAN, exact(0.8), gan_weight=weight)
        totals[weight] = objective.loss("student", batch(64)).total.item()
    assert totals[1.0] != totals[0.0]
    assert totals[1.0] - totals[0.0] == pytest.approx(2 * (totals[0.5] - totals[0.0]), rel=1e-4)


@pytest.mark.parametrize("choice", CHOICES)
def test_both_are_judged_at_one_time_inside_the_segment(choice):
    objective = method(PCMGAN, exact(), **choice)
    for step in (0, 799):
        given = batch(512, 1, step)
        stage = objective.pcm.stage(batch(512, 1, step))
        made = objective.round(given)
        edges = objective.pcm.edges[stage]
        (fake, t), (real, again) = *made.fake, *made.real
        assert torch.equal(t, again)
        assert not torch.equal(fake, real)
        edge = below(edges, made.t)
        assert bool((t > edge).all())
        assert bool((t <= above(edges, edge)).all())
        assert t.min() >= 0.02 - 1e-9


def test_points_of_an_exact_student_have_the_marginal_of_the_judged_time():
    made = method(PCMGAN, exact(), solver_steps=1000).round(batch(100_000))
    for x, t in (*made.fake, *made.real):
        alpha, deviation = DATA.deviation(t, x)
        unit = (x - alpha * DATA.mean) / deviation
        for near in (t < 0.25, (t > 0.25) & (t < 0.5), t > 0.75):
            assert unit[near].mean(0).abs().max() < 0.03
            assert unit[near].std(0).sub(1).abs().max() < 0.03


def test_a_discriminator_gains_nothing_by_telling_an_exact_student_from_its_target():
    """Its gradient at a constant is the difference of mean features: for any features at all."""
    norms = []
    for student in (exact(), exact(0.5, 2.0)):
        objective = method(PCMGAN, student, loss="lsgan", solver_steps=1000, ema=0.0)
        objective.pcm.target = exact()
        heads = blind(objective)
        norms.append(slope(objective.loss("discriminator", batch(200_000)), heads).norm())
    assert norms[0] < 0.1 * norms[1]


def test_a_discriminator_that_cannot_tell_leaves_consistency_alone():
    plain, objective = method(PCM, exact(0.8)), method(PCMGAN, exact(0.8), gan_weight=1.0)
    alone = slope(plain.loss("student", batch(64)), plain.student)
    both = slope(objective.loss("student", batch(64)), objective.student)
    assert not torch.allclose(both, alone)
    blind(objective)
    both = slope(objective.loss("student", batch(64)), objective.student)
    torch.testing.assert_close(both, alone)


def test_the_discriminator_trains_alone_and_the_target_follows_the_student():
    student = exact(0.8)
    objective = method(PCMGAN, student, ema=0.9, r1_weight=0.1)
    assert [player.name for player in objective.players()] == ["discriminator", "student"]
    objective.loss("discriminator", batch(64)).total.backward()
    assert student.net.gain.grad is None
    with torch.no_grad():
        student.net.gain.fill_(1.8)
    objective.updated("discriminator")
    assert objective.followers()["target"].net.gain.item() == pytest.approx(0.8)
    objective.updated("student")
    assert objective.followers()["target"].net.gain.item() == pytest.approx(0.9)


def test_heads_of_a_step_judge_its_segment():
    objective = method(PCMGAN, exact(), heads_per_step=True)
    assert len(objective.discriminator.heads) == 4
    made = objective.round(batch(512))
    group = objective.group(made.t)
    torch.testing.assert_close(objective.times[group + 1], below(objective.times, made.t))
    assert set(group.tolist()) == {0, 1, 2, 3}
