"""The figures against closed forms."""

import pytest
import torch

from edgedistill.evaluation.fidelity import Reference, frechet_distance
from edgedistill.evaluation.figures import diversity, ratios
from edgedistill.evaluation.planar import planar_figures, sliced_w2
from edgedistill.teachers.families.mixture import Mixture


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(mean, cov) -> Reference:
    return Reference(torch.tensor(mean).double(), torch.tensor(cov).double())


def test_frechet_distance_of_diagonal_gaussians():
    """|mu_a - mu_b|^2 + sum (s_a - s_b)^2."""
    a = normal([0.0, 1.0, 2.0], torch.diag(torch.tensor([1.0, 4.0, 0.0])).tolist())
    b = normal([1.0, 1.0, 0.0], torch.diag(torch.tensor([9.0, 4.0, 0.25])).tolist())
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + (4 + 0 + 0.25), abs=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_full_covariances():
    """2x2: tr (AB)^(1/2) = sqrt(tr AB + 2 sqrt(det AB))."""
    a, b = [[2.0, 0.6], [0.6, 1.0]], [[1.0, -0.4], [-0.4, 3.0]]
    A, B = torch.tensor(a).double(), torch.tensor(b).double()
    root = ((A @ B).trace() + 2 * (A @ B).det().sqrt()).sqrt()
    expected = (A.trace() + B.trace() - 2 * root).item()
    found = frechet_distance(normal([0.0, 0.0], a), normal([0.0, 0.0], b))
    assert found == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(normal([0.0, 0.0], b), normal([0.0, 0.0], a)) == pytest.approx(found)


def test_frechet_distance_of_samples_nears_that_of_their_laws():
    x = torch.randn(20000, 3, generator=generator())
    y = 2 * torch.randn(20000, 3, generator=generator(1)) + 1
    found = frechet_distance(Reference.of(x), Reference.of(y))
    assert found == pytest.approx(3 * (1 + 1), rel=0.03)


def test_statistics_need_two_samples():
    with pytest.raises(ValueError, match="at least 2"):
        Reference.of(torch.zeros(1, 3))


def test_sliced_w2_of_a_shift_is_its_length_over_root_dimension():
    """A direction u sees the shift d as d u, and E[(d u)^2] = |d|^2 / D."""
    x = torch.randn(500, 2, generator=generator())
    shifted = x[torch.randperm(500, generator=generator())] + torch.tensor([0.3, 0.4])
    assert sliced_w2(x, x, generator()) == 0
    assert sliced_w2(x, shifted, generator()) == pytest.approx(0.5 / 2**0.5, rel=0.1)
    with pytest.raises(ValueError, match="one shape"):
        sliced_w2(x, x[:-1], generator())


@pytest.fixture(scope="module")
def ring() -> Mixture:
    return Mixture.load("ring")


def test_true_samples_are_at_the_floor(ring):
    figures = planar_figures(ring.draw(1500, generator(5)), ring, generator(6))
    assert 0.6 < figures["w2_ratio"] < 1.6
    # Inside 3 sigma of a plane's Gaussian: 1 - exp(-9/2).
    assert figures["within_3_sigma"] == pytest.approx(0.9889, abs=0.01)
    assert 0.8 < figures["smallest_mode"] <= 1
    assert figures["samples"] == 1500


def test_a_lost_mode_and_a_blur_are_seen(ring):
    samples = ring.draw(1500, generator(5))
    mode = torch.cdist(samples.double(), ring.means).argmin(1)
    lost = torch.where((mode == 0)[:, None], ring.means[1].float(), samples)
    figures = planar_figures(lost, ring, generator(6))
    assert figures["smallest_mode"] == 0
    assert figures["w2_ratio"] > 2
    blurred = samples + 6 * ring.scales.max() * torch.randn(1500, 2, generator=generator(7))
    assert planar_figures(blurred, ring, generator(6))["within_3_sigma"] < 0.5


def test_diversity_is_of_pictures_that_share_a_caption():
    """Orthogonal features are 100 apart, equal ones 0, those at 60 degrees 50."""
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])
    lines = ["a", "a", "b", "b", "b"]
    # a: 100; b: 0, 50, 50.
    assert diversity(images, lines)["diversity"] == pytest.approx(50)
    assert diversity(images, ["a", "b", "c", "d", "e"]) == {}
    mine, first = {"diversity": 20.0}, {"diversity": 50.0}
    ratios(mine, first)
    assert mine["diversity_ratio"] == pytest.approx(0.4)
