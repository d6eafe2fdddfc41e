"""FD and KID against NumPy and closed forms; what a floor is; equal pictures and lost numbers."""

import math

import numpy as np
import pytest
import torch

from edgedistill.common.decibels import EQUAL_DB, decibels
from edgedistill.evaluation import fidelity
from edgedistill.evaluation.fidelity import (
    Reference,
    clip_distance,
    floor_of,
    frechet_distance,
    half_interval,
    kernel_distance,
)
from edgedistill.evaluation.figures import check_finite, ratios, to_teacher_figures
from edgedistill.evaluation.tables import cell


def draws(count: int, seed: int, size: int = 5) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def kid_by_hand(a: np.ndarray, b: np.ndarray) -> float:
    """Every pair in a Python loop, float64 (Binkowski et al. 2018, Eq. 4)."""

    def k(x, y):
        return (float(x @ y) / len(x) + 1) ** 3

    n, m = len(a), len(b)
    within = sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(k(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within + other - 2 * sum(k(x, y) for x in a for y in b) / (n * m)


@pytest.mark.parametrize("block", [3, 2048])
def test_kid_is_the_sum_over_pairs(block, monkeypatch):
    monkeypatch.setattr(fidelity, "BLOCK", block)
    a, b = draws(11, 0), 1.5 * draws(7, 1) + 0.3
    expected = kid_by_hand(a.double().numpy(), b.double().numpy())
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert kernel_distance(b, a) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_kid_of_points_has_a_closed_form():
    """All rows of a set equal: (|x|^2/D + 1)^3 + (|y|^2/D + 1)^3 - 2 (xy/D + 1)^3."""
    x, y = torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 0.5])
    a, b = x.expand(4, 2), y.expand(3, 2)
    expected = (5 / 2 + 1) ** 3 + (1.25 / 2 + 1) ** 3 - 2 * (0 / 2 + 1) ** 3
    assert kernel_distance(a, b) == pytest.approx(expected, abs=1e-6)
    assert kernel_distance(a, x.expand(9, 2)) == pytest.approx(0, abs=1e-9)


def test_kid_is_not_biased():
    """Of one law its mean is 0, whatever the number of samples."""
    found = [kernel_distance(draws(10, 2 * i), draws(10, 2 * i + 1)) for i in range(300)]
    assert abs(np.mean(found)) < 4 * np.std(found) / math.sqrt(len(found))
    assert min(found) < 0


def test_kid_needs_two_samples():
    with pytest.raises(ValueError, match="at least 2"):
        kernel_distance(draws(1, 0), draws(5, 1))


@pytest.mark.parametrize("block", [3, 2048])
def test_cmmd_is_the_mean_over_pairs(block, monkeypatch):
    """A loop over all pairs of unit rows, sigma 10, times 1000 (Jayasumana et al. 2024, Eq. 4)."""
    monkeypatch.setattr(fidelity, "BLOCK", block)
    a, b = draws(11, 0).double(), (1.5 * draws(7, 1) + 0.3).double()
    unit = [[row / row.norm() for row in rows] for rows in (a, b)]

    def mean(rows, others):
        near = [math.exp(-float((x - y).square().sum()) / 200) for x in rows for y in others]
        return np.mean(near)

    (x, y) = unit
    expected = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert clip_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert clip_distance(a, 3 * a) == pytest.approx(0, abs=1e-9)


def test_fd_is_numpys():
    """With the square root of the product from its eigenvalues, which are real and positive."""
    a, b = draws(60, 0).double().numpy(), (2 * draws(40, 1) @ draws(5, 2) + 1).double().numpy()
    A, B = np.cov(a.T), np.cov(b.T)
    root = np.sqrt(np.linalg.eigvals(A @ B).real).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(A) + np.trace(B) - 2 * root
    found = frechet_distance(Reference.of(torch.tensor(a)), Reference.of(torch.tensor(b)))
    assert found == pytest.approx(expected, rel=1e-6)


def test_fd_of_one_number_is_that_of_two_normals():
    a, b = draws(50, 0, 1), 3 * draws(50, 1, 1) + 2
    expected = (a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2
    found = frechet_distance(Reference.of(a), Reference.of(b))
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_fd_and_kid_are_those_of_torchmetrics():
    """torchmetrics counts in float32 here; its KID in one subset of all samples is ours."""
    fid = pytest.importorskip("torchmetrics.image.fid")
    kid = pytest.importorskip("torchmetrics.image.kid")
    a, b = draws(200, 0, 8), 1.3 * draws(200, 1, 8) + 0.2

    class Eye(torch.nn.Module):
        num_features = 8

        def forward(self, features):
            return features.float()

    frechet = fid.FrechetInceptionDistance(feature=Eye(), input_img_size=(8,))
    kernel = kid.KernelInceptionDistance(feature=Eye(), subsets=1, subset_size=200)
    for metric in (frechet, kernel):
        metric.update(a, real=True)
        metric.update(b, real=False)
    fd = frechet_distance(Reference.of(b), Reference.of(a))
    assert fd == pytest.approx(float(frechet.compute()), rel=1e-3)
    assert kernel_distance(b, a) == pytest.approx(float(kernel.compute()[0]), rel=1e-3)


@pytest.mark.parametrize("figure", ["fd", "kid"])
def test_an_interval_holds_the_spread_of_other_draws(figure):
    reference, known = Reference(torch.zeros(5), torch.eye(5)), draws(400, 9)

    def of(rows):
        if figure == "kid":
            return kernel_distance(rows, known)
        return frechet_distance(Reference.of(rows), reference)

    laws = [1.2 * draws(200, seed) + 0.3 for seed in range(100)]
    found = [of(rows) for rows in laws]
    half = np.array([half_interval(rows, of) for rows in laws])
    assert np.median(half) == pytest.approx(1.96 * np.std(found), rel=0.3)
    within = np.abs(np.array(found) - np.mean(found)) <= half
    assert within.mean() > 0.85
    assert half_interval(laws[0][:19], of) is None


def test_the_floor_is_of_disjoint_halves():
    rows = torch.arange(10.0)[:, None].expand(10, 2)
    floor = floor_of(rows, 4, seed=1)
    assert floor is not None
    assert floor.samples == 4
    assert floor.fd > 0  # of the same rows it would be 0
    assert floor_of(rows, 500, seed=1).samples == 5
    assert floor_of(rows[:3], 4, seed=1) is None
    law = draws(2000, 3)
    assert floor_of(law, 1000, 0).fd < floor_of(law, 20, 0).fd


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def test_distance_to_the_teacher_is_rmse_of_pixels():
    theirs = np.full((2, 8, 8, 3), 100, np.uint8)
    ours = theirs.copy()
    ours[0] += 51  # 0.2 on half of the pictures
    figures = to_teacher_figures(ours, theirs, object())
    assert figures == {
        "rmse": pytest.approx(0.2 / math.sqrt(2), rel=1e-9),
        "psnr": pytest.approx(-20 * math.log10(0.2 / math.sqrt(2)), rel=1e-9),
        "samples": 2,
    }


def test_equal_pictures_are_identical_to_people():
    figures = to_teacher_figures(pictures(3), pictures(3), object())
    assert figures["psnr"] == EQUAL_DB
    assert cell("psnr", figures["psnr"]) == decibels(200.0) == "identical"
    assert decibels(41.25) == "41.2"
    assert cell("fd", None) == "-"


def test_a_figure_that_is_no_number_ends_with_its_name():
    check_finite({"a": {"b": [1.0, 2]}, "c": None, "d": "nan"})
    with pytest.raises(FloatingPointError, match=r"student\.memory\.1 is inf"):
        check_finite({"student": {"memory": [0.0, math.inf]}})


def test_a_ratio_to_nothing_is_none():
    mine, first = {"fd": 1.0, "text_image_score": 2.0}, {"fd": 0.0, "text_image_score": -1.0}
    ratios(mine, first)
    assert mine["fd_ratio"] is None
    assert mine["text_image_ratio"] is None
