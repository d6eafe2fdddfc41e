"""Is it a memory? And does a picture show its class? On sets that are made for it."""

import numpy as np
import pytest
import torch

from edgedistill.evaluation.classifier import agreement, train_classifier
from edgedistill.evaluation.memory import Nearness, memorization, nearest, own_distances


def draws(count: int, seed: int, size: int = 8) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def test_the_nearest_is_found_by_distance():
    training = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 5.0]])
    gaps, index = nearest(torch.tensor([[9.0, 0.0], [3.0, 4.0]]), training)
    assert index.tolist() == [1, 2]
    assert gaps.tolist() == pytest.approx([1.0, 10**0.5])


def test_own_distances_are_to_another_row_and_equal_rows_are_one():
    line = torch.tensor([[0.0], [1.0], [3.0], [3.0], [3.0], [10.0]])
    assert sorted(own_distances(line).tolist()) == pytest.approx([1, 1, 2, 7])


def test_copies_are_memories_and_fresh_samples_are_as_rare_as_chance():
    training = draws(400, 0)
    own = own_distances(training)
    copies = training[:50] + 1e-3
    assert memorization(nearest(copies, training)[0], own) == 1
    fresh = memorization(nearest(draws(2000, 1), training)[0], own)
    assert fresh == pytest.approx(0.05, abs=0.03)
    far = memorization(nearest(draws(50, 2) + 9, training)[0], own)
    assert far == 0
    half = torch.cat([copies, draws(50, 2) + 9])
    assert memorization(nearest(half, training)[0], own) == 0.5


def test_few_pictures_have_no_quantile():
    assert Nearness.of(torch.zeros(50, 3)) is None
    assert Nearness.of(torch.tensor([[0.0], [1.0], [1.0]])) is None
    assert Nearness.of(torch.tensor([[0.0], [1.0], [3.0]])) is not None


def test_agreement_is_the_share_of_equal_classes():
    assert agreement(list("abca"), list("abba")) == 0.75
    with pytest.raises(ValueError, match="zip"):
        agreement(["a"], ["a", "b"])


def bars(count: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Grey noise with a bright bar, upright or lying."""
    generator = np.random.default_rng(seed)
    pictures = generator.integers(0, 90, (count, 8, 8, 1), dtype=np.uint8).repeat(3, -1)
    names = ["upright" if i % 2 else "lying" for i in range(count)]
    for picture, name in zip(pictures, names, strict=True):
        at = generator.integers(1, 7)
        (picture if name == "lying" else picture.swapaxes(0, 1))[at] = 255
    return pictures, names


def test_a_classifier_learns_what_classes_look_like(monkeypatch):
    from edgedistill.evaluation import classifier

    monkeypatch.setattr(classifier, "STEPS", 60)
    pictures, names = bars(120, 0)
    made = train_classifier(pictures, names, 0)
    assert made is not None
    assert (made.samples, made.held_out) == (96, 24)
    assert made.accuracy == 1
    fresh, expected = bars(40, 1)
    assert agreement(made(fresh), expected) == 1
    state = torch.get_rng_state()
    again = train_classifier(pictures, names, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(a, b)
        for a, b in zip(made.net.parameters(), again.net.parameters(), strict=True)
    )


def test_too_few_pictures_of_a_class_train_nothing():
    pictures, names = bars(14, 0)
    assert train_classifier(pictures, names, 0) is None
    assert train_classifier(*bars(40, 0)[:1], ["one"] * 40, 0) is None
