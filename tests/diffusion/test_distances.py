"""Distances against closed forms."""

import math

import pytest
import torch

from edgedistill.diffusion.distances import (
    Distance,
    Ensemble,
    augmented,
    distance,
    ensembled,
)
from edgedistill.diffusion.perceptual import Pyramid


@pytest.mark.parametrize(
    ("kind", "want"),
    [
        ("l2", 12.5),
        ("l1", 3.5),
        ("pseudo-huber", (math.hypot(3, 2) + math.hypot(4, 2)) / 2 - 2),
        ("vector-huber", math.sqrt(25 + 8) - 2 * math.sqrt(2)),
    ],
)
def test_the_plain_distances(kind: str, want: float):
    a, b = torch.tensor([[3.0, 1.0]]), torch.tensor([[0.0, 5.0]])
    assert distance(Distance(kind=kind, c=2.0), a, b).item() == pytest.approx(want)


def test_half_precision_is_compared_in_single():
    a = torch.tensor([[300.0]], dtype=torch.float16)
    assert distance(Distance(), a, -a).item() == 360_000


def pictures(count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(count, 3, 16, 16, generator=generator) for _ in range(2))
    return a, b


def test_features_are_lpips_in_a_network_that_is_always_the_same():
    a, b = pictures()
    found = distance(Distance(kind="features"), a, b)
    torch.manual_seed(5)
    net = Pyramid(3)
    layers = []
    for u, v in zip(net(a), net(b), strict=True):
        u, v = u / u.norm(dim=1, keepdim=True), v / v.norm(dim=1, keepdim=True)
        layers.append((u - v).square().sum(1).mean((1, 2)))
    torch.testing.assert_close(found, torch.stack(layers).mean(0), atol=1e-4, rtol=1e-4)
    assert found.shape == (4,)
    assert bool((distance(Distance(kind="features"), a, a) == 0).all())


def test_features_weigh_what_is_new_above_what_is_brighter():
    """A picture twice as bright has the same directions of features; a blurred one has not."""
    a, _ = pictures()
    blurred = torch.nn.functional.avg_pool2d(a, 3, 1, 1)
    kind = Distance(kind="features")
    assert distance(kind, a, 2 * a).max() < 1e-6 < 0.1 < distance(kind, a, blurred).min()


def test_features_have_a_gradient_and_draw_nothing_from_the_global_generator():
    a, b = pictures(1)
    state = torch.random.get_rng_state()
    a = a.double().requires_grad_()
    (slope,) = torch.autograd.grad(distance(Distance(kind="features"), a, b.double()).sum(), a)
    assert slope.norm() > 0
    assert torch.equal(state, torch.random.get_rng_state())


def test_points_have_no_features():
    with pytest.raises(ValueError, match=r"distance.kind=features: x0 of shape \(2,\)"):
        distance(Distance(kind="features"), torch.zeros(1, 2), torch.zeros(1, 2))


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(4, 3, 16, 16), (4, 2, 8, 24)])
def test_an_augmentation_is_linear_and_its_pictures_own(shape: tuple[int, ...]):
    x, d = (torch.randn(shape, generator=drawn(seed), dtype=torch.float64) for seed in (1, 2))
    both, apart = augmented(x + d, drawn()), augmented(d, drawn())
    torch.testing.assert_close(both, augmented(x, drawn()) + apart)
    alike = augmented(x[:1].expand(4, -1, -1, -1), drawn())
    assert min((alike[i] - alike[j]).abs().max() for i in range(4) for j in range(i)) > 0.1
    holes = (alike[:, 0] == 0).float().mean((1, 2))
    assert bool(((holes >= 1 / 16) & (holes <= 1 / 4)).all())


def test_an_ensemble_sees_both_in_the_same_augmentations():
    """Of a linear feature map, here the pixels, |T (x + d) - T x|^2 = |T d|^2."""
    x, d = (picture.double() for picture in pictures())
    found = ensembled(Ensemble(kind="l2", ensemble=3), x, x + d, drawn())
    generator = drawn()
    wanted = torch.stack([augmented(d, generator) for _ in range(3)])
    torch.testing.assert_close(found, wanted.square().flatten(2).mean((0, 2)))
    # And by a convolution, which does not commute with them.
    weight = torch.randn(5, 3, 3, 3, generator=drawn(3), dtype=torch.float64)
    seen = [torch.nn.functional.conv2d(augmented(p, drawn()), weight) for p in (x, x + d, d)]
    torch.testing.assert_close(seen[1] - seen[0], seen[2])


def test_a_constant_difference_is_seen_but_for_the_hole():
    """1 - q^2, q the mean chance of a row to be within a quarter of a uniform place."""
    x, _ = pictures(1)
    many = x.expand(4000, -1, -1, -1)
    found = ensembled(Ensemble(kind="l2", ensemble=2), many, many + 1, drawn()).mean()
    rows = (torch.arange(16) + 0.5) / 16
    chance = (rows + 0.25).clamp(max=1) - (rows - 0.25).clamp(min=0)
    assert found.item() == pytest.approx(1 - chance.mean().item() ** 2, rel=2e-3)


def test_an_ensemble_of_features_is_zero_for_equals_and_repeats_with_its_generator():
    a, b = pictures()
    config = Ensemble(kind="features", ensemble=2)
    assert bool((ensembled(config, a, a, drawn()) == 0).all())
    state = torch.random.get_rng_state()
    found = ensembled(config, a, b, drawn())
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(found, ensembled(config, a, b, drawn()))
    assert not torch.equal(found, ensembled(config, a, b, drawn(1)))
    one = ensembled(Ensemble(), a, b, drawn())
    assert torch.equal(ensembled(Ensemble(ensemble=1), a, b, drawn()), one)
    none = ensembled(Ensemble(ensemble=0), a, b, drawn())
    assert torch.equal(none, distance(Distance(kind="features"), a, b))
    plain = ensembled(Ensemble(kind="l2"), a, b, drawn())
    assert torch.equal(plain, distance(Distance(), a, b))


def test_the_gradient_of_an_ensemble_is_that_of_its_distances():
    """In a of |T a - T b|^2, which is quadratic: half of it along a - b is the distance."""
    a, b = (picture.double().requires_grad_(i == 0) for i, picture in enumerate(pictures()))
    found = ensembled(Ensemble(kind="l2", ensemble=2), a, b, drawn())
    (slope,) = torch.autograd.grad(found.sum(), a)
    torch.testing.assert_close(0.5 * (slope * (a - b)).sum((1, 2, 3)), found)
    found = ensembled(Ensemble(kind="features", ensemble=2), a, b, drawn())
    (slope,) = torch.autograd.grad(found.sum(), a)
    assert slope.flatten(1).norm(dim=1).min() > 0
    assert b.grad is None
    assert not ensembled(Ensemble(kind="features", ensemble=2), b, b, drawn()).requires_grad


def test_points_have_no_ensemble():
    points = torch.zeros(1, 2)
    for config, message in (
        (Ensemble(kind="l2", ensemble=2), r"distance.ensemble=2: x0 of shape \(2,\)"),
        (Ensemble(), r"distance.kind=features: x0 of shape \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            ensembled(config, points, points, drawn())
    assert ensembled(Ensemble(kind="l2"), points, points + 2, drawn()).item() == 4
