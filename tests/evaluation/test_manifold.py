"""Precision, recall, density and coverage against loops over pairs, and where they are known."""

import pytest
import torch

from edgedistill.evaluation import manifold
from edgedistill.evaluation.manifold import manifold_figures


def draws(count, seed, size=3):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)).double()


def by_hand(images, reference, k):
    """Every pair in a Python loop."""

    def gap(x, y):
        return float((x - y).square().sum().sqrt())

    def radius(rows, i):
        return sorted(gap(rows[i], rows[j]) for j in range(len(rows)) if j != i)[k - 1]

    real = [radius(reference, i) for i in range(len(reference))]
    made = [radius(images, j) for j in range(len(images))]
    inside = [sum(gap(y, x) <= r for x, r in zip(reference, real, strict=True)) for y in images]
    hits = [any(gap(x, y) <= r for y, r in zip(images, made, strict=True)) for x in reference]
    held = [min(gap(x, y) for y in images) <= r for x, r in zip(reference, real, strict=True)]
    return {
        "precision": sum(n > 0 for n in inside) / len(inside),
        "recall": sum(hits) / len(hits),
        "density": sum(inside) / len(inside) / k,
        "coverage": sum(held) / len(held),
    }


@pytest.mark.parametrize("block", [4, 2048])
def test_the_figures_are_those_of_all_pairs(block, monkeypatch):
    monkeypatch.setattr(manifold, "BLOCK", block)
    images, reference = 0.6 * draws(23, 0) + 0.4, draws(17, 1)
    expected = by_hand(images, reference, 3)
    assert 0 < expected["recall"] < expected["precision"]
    assert manifold_figures(images, reference, 3) == pytest.approx(expected)


def test_a_set_that_lacks_half_is_precise_and_not_complete():
    reference = torch.cat([draws(200, 0) - 10, draws(200, 1) + 10])
    half = draws(400, 2) + 10
    found = manifold_figures(half, reference)
    assert found["precision"] > 0.9
    assert found["density"] > 0.8
    assert found["recall"] < 0.55
    assert found["coverage"] < 0.55
    far = manifold_figures(half + 100, reference)
    assert far == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_one_law_has_density_1_and_few_samples_have_no_figures():
    found = manifold_figures(draws(600, 0), draws(600, 1))
    assert found["density"] == pytest.approx(1, abs=0.1)
    assert found["coverage"] == pytest.approx(1 - 0.5**5, abs=0.03)  # Naeem et al. 2020, Lemma 2
    assert manifold_figures(draws(5, 0), draws(600, 1)) == {}
