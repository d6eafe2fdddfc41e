"""Adversarial losses at their optimum, and R1 on discriminators whose gradient is known."""

import math

import pytest
import torch
from torch import nn

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.gan import GAN_LOSSES, accuracy, r1, r1_by_difference
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.networks.heads import Discriminator
from edgedistill.networks.planar import PlanarNet

BEST = {
    # What the best discriminator says where it cannot tell, and both losses there.
    "hinge": (0.0, 2.0, 0.0),
    "non-saturating": (0.0, 2 * math.log(2), math.log(2)),
    "lsgan": (0.5, 0.25, 0.125),
    "relativistic": (0.0, math.log(2), math.log(2)),
}


def test_every_game_is_listed():
    assert set(BEST) == set(GAN_LOSSES)


@pytest.mark.parametrize("name", BEST)
def test_no_constant_is_better_than_the_best_where_real_and_fake_are_alike(name):
    best, lost, generator = BEST[name]
    logit = torch.full((6, 2), best, requires_grad=True)
    gan_loss = GAN_LOSSES[name]
    total = gan_loss.discriminator(logit, logit)
    assert total.item() == pytest.approx(lost)
    (slope,) = torch.autograd.grad(total, logit)
    assert slope.abs().max() < 1e-7
    assert gan_loss.generator(logit, logit).item() == pytest.approx(generator)


@pytest.mark.parametrize("name", BEST)
def test_each_side_wants_the_logits_the_other_way(name):
    real, fake = torch.zeros(5, 1, requires_grad=True), torch.zeros(5, 1, requires_grad=True)
    gan_loss = GAN_LOSSES[name]
    up, down = torch.autograd.grad(
        gan_loss.discriminator(real, fake), (real, fake), allow_unused=True
    )
    assert bool((up < 0).all())
    assert bool((down >= 0).all())
    (push,) = torch.autograd.grad(gan_loss.generator(real.detach(), fake), fake)
    assert bool((push < 0).all())


def test_the_relative_game_is_the_same_for_both_with_the_sides_changed():
    real, fake = torch.randn(2, 9, 3)
    gan_loss = GAN_LOSSES["relativistic"]
    assert gan_loss.relative
    torch.testing.assert_close(gan_loss.generator(real, fake), gan_loss.discriminator(fake, real))
    shifted = gan_loss.discriminator(real + 3, fake + 3)
    torch.testing.assert_close(gan_loss.discriminator(real, fake), shifted)


def test_the_others_do_not_ask_what_the_real_ones_got():
    fake = torch.randn(4, 1)
    for gan_loss in (gan_loss for gan_loss in GAN_LOSSES.values() if not gan_loss.relative):
        assert gan_loss.generator(torch.randn(4, 1), fake) == gan_loss.generator(
            torch.randn(4, 1), fake
        )


def test_r1_of_a_linear_discriminator_is_half_its_weight_squared():
    heads = nn.Linear(3, 2)
    x = torch.randn(7, 3, requires_grad=True)
    penalty = r1(heads(x), x)
    weight = heads.weight.mean(0)
    assert penalty.item() == pytest.approx(0.5 * weight.square().sum().item(), rel=1e-5)
    (slope,) = torch.autograd.grad(penalty, heads.weight)
    torch.testing.assert_close(slope, weight.detach().expand(2, 3) / 2)


def test_the_difference_tends_to_r1():
    x = torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))

    def discriminator(x):
        return (x.square().sum(1, keepdim=True) + x[:, :1]).sin()

    exact = r1(discriminator(x), x).item()
    for step, tolerance in ((1e-2, 0.02), (0.5, math.inf)):
        found = r1_by_difference(discriminator(x), discriminator(x + step * noise), step).item()
        assert abs(found / exact - 1) < tolerance
    assert abs(found / exact - 1) > 0.1  # a long step is no derivative


def test_accuracy_is_one_half_where_nothing_is_known():
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, 40_000, 1, generator=generator)
    assert accuracy(real, fake).item() == pytest.approx(0.5, abs=0.01)
    assert accuracy(real + 10, fake).item() == 1


def discriminator(**options):
    torch.manual_seed(0)
    denoiser = Denoiser(PlanarNet(width=16), Trig(), Prediction.V)
    example = (torch.zeros(2, 2), {})
    return denoiser, Discriminator(denoiser, ["blocks.0", "blocks.1"], example, **options)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_network_under_the_heads_neither_trains_nor_is_kept(frozen):
    denoiser, judge = discriminator(frozen=frozen)
    inner = {id(p) for p in denoiser.parameters()}
    trained = {id(p) for p in judge.parameters() if p.requires_grad}
    assert bool(inner & trained) != frozen
    assert any(name.startswith("body.embed") for name in judge.state_dict()) != frozen
    x = torch.randn(5, 2, requires_grad=True)
    logits = judge([(x, torch.full((5,), 0.3))], {})
    assert logits.shape == (5, 2)
    assert torch.autograd.grad(logits.sum(), x)[0].abs().sum() > 0


def test_a_conditional_one_sees_both_places():
    _, judge = discriminator(frozen=True, places=2)
    x, y = torch.randn(2, 5, 2)
    t, s = torch.full((5,), 0.7), torch.full((5,), 0.3)
    logits = judge([(x, s), (y, t)], {})
    assert not torch.allclose(logits, judge([(x, s), (y + 1, t)], {}))
    assert not torch.allclose(logits, judge([(x + 1, s), (y, t)], {}))
