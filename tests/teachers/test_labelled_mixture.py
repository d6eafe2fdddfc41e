"""A mixture of classes: its denoisers, guidance, the truth that guidance names, and a student."""

import json

import numpy as np
import pytest
import torch
from tiny import save

from edgedistill.diffusion.prediction import Prediction
from edgedistill.evaluation.planar import planar_figures
from edgedistill.students.folder import load_student
from edgedistill.teachers.families.mixture import Mixture

DATA = {
    "weights": [2, 1, 1],
    "means": [[-1, 0], [0.5, 0.5], [1, 0]],
    "scales": [0.6, 0.5, 0.7],
    "labels": [0, 1, 0],
}


def load(tmp_path, **changes) -> Mixture:
    file = tmp_path / "classes.json"
    file.write_text(json.dumps(DATA | changes))
    return Mixture.load(str(file))


@pytest.fixture
def mixture(tmp_path) -> Mixture:
    return load(tmp_path)


def part(tmp_path, kept) -> Mixture:
    """The mixture of some modes alone."""
    file = tmp_path / "part.json"
    keys = ("weights", "means", "scales")
    file.write_text(json.dumps({key: [DATA[key][i] for i in kept] for key in keys}))
    return Mixture.load(str(file))


def noisy(count=9):
    generator = torch.Generator().manual_seed(0)
    x_t = 1.5 * torch.randn(count, 2, generator=generator, dtype=torch.float64)
    return x_t, torch.linspace(0.05, 0.95, count, dtype=torch.float64)


@pytest.mark.parametrize(("prompt", "modes"), [("0", [0, 2]), ("1", [1]), ("", [0, 1, 2])])
def test_a_class_is_the_mixture_of_its_modes(mixture, tmp_path, prompt, modes):
    x_t, t = noisy()
    found = mixture.denoiser(x_t, t, mixture.encode([prompt] * len(t)))
    expected = part(tmp_path, modes).denoiser(x_t, t, {})
    torch.testing.assert_close(found, expected)


def test_guidance_leads_away_from_the_whole(mixture, tmp_path):
    x_t, t = noisy()
    of_class, whole = (part(tmp_path, modes).denoiser(x_t, t, {}) for modes in ([1], [0, 1, 2]))
    found = mixture.guided(3.0)(x_t, t, mixture.encode(["1"] * len(t)))
    torch.testing.assert_close(found, whole + 3 * (of_class - whole))


def density(x, modes):
    """Up to a constant, as numpy has it."""
    weights, means, scales = (np.array(DATA[key], dtype=float)[modes] for key in list(DATA)[:3])
    gaps = ((x[:, None] - means) ** 2).sum(-1)
    return (weights / scales**2 * np.exp(-gaps / 2 / scales**2)).sum(1)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize(("label", "modes"), [(0, [0, 2]), (1, [1])])
def test_guided_draws_have_the_moments_of_the_density(mixture, scale, label, modes):
    """p(x | c)^scale p(x)^(1 - scale), summed over a fine grid."""
    axis = np.linspace(-6, 6, 401)
    x = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    mass = density(x, modes) ** scale * density(x, [0, 1, 2]) ** (1 - scale)
    mass /= mass.sum()
    mean = mass @ x
    spread = np.sqrt(mass @ (x - mean) ** 2)
    generator = torch.Generator().manual_seed(0)
    drawn = mixture.draw_guided(torch.full((20_000,), label), scale, generator).numpy()
    np.testing.assert_allclose(drawn.mean(0), mean, atol=4 * spread.max() / 20_000**0.5)
    np.testing.assert_allclose(drawn.std(0), spread, rtol=0.03)


def test_each_sample_has_its_own_class(mixture):
    label = torch.tensor([0, 1]).repeat(500)
    drawn = mixture.draw_guided(label, 50.0, torch.Generator().manual_seed(0))
    for number in (0, 1):
        middle = mixture._log_class(drawn[label == number], number).exp().median()
        assert middle > 0.8 * (0.5 if number else 1)


def test_figures_compare_each_class_with_its_own_truth(mixture):
    generator = torch.Generator().manual_seed(0)
    label = mixture.draw_with_labels(4000, generator)[1]["label"]

    def figures(samples, scale):
        return planar_figures(samples, mixture, torch.Generator().manual_seed(1), label, scale)

    right = mixture.draw_guided(label, 3.0, generator)
    assert 0.6 < figures(right, 3.0)["w2_ratio"] < 1.7
    assert figures(right, 3.0)["smallest_mode"] > 0.9
    assert figures(right, 1.0)["w2_ratio"] > 3
    swapped = mixture.draw_guided(1 - label, 3.0, generator)
    assert figures(swapped, 3.0)["w2_ratio"] > 10
    assert figures(right[torch.randperm(4000, generator=generator)], 3.0)["w2_ratio"] > 3


@pytest.mark.parametrize(
    "labels",
    [[0, 1], [0, 2, 0], [0, 1, -1], [0, 1, 1.0], "001", [True, 0, 0], None, [], [1, 1, 1]],
)
def test_wrong_labels_are_named(tmp_path, labels):
    with pytest.raises(ValueError, match="labels: a class for each of the 3 modes"):
        load(tmp_path, labels=labels)


def test_an_unknown_class_is_refused(mixture):
    with pytest.raises(ValueError, match="unknown class '2'; a number from 0 to 1"):
        mixture.encode(["0", "2"])


def test_a_student_starts_near_the_teacher_in_every_class(mixture, monkeypatch):
    student = mixture.spawn(torch.Generator().manual_seed(0))
    x_t, t = (value.float() for value in noisy(400))
    for prompt in ("0", "1", ""):
        cond = mixture.encode([prompt] * len(t))
        with torch.no_grad():
            apart = (student(x_t, t, cond) - mixture.denoiser(x_t, t, cond)).square().mean()
        assert apart < 0.02, prompt


def test_a_student_folder_keeps_its_classes(mixture, tmp_path, quick_fit):
    net = mixture.spawn(torch.Generator().manual_seed(0)).net
    folder = save(tmp_path / "student", mixture, net, Prediction.V, steps=2)
    student = load_student(folder)
    assert student.teacher.labels.tolist() == [0, 1, 0]
    cond = student.teacher.encode(["1", "0"])
    noise = student.table.draw((2, 2), torch.Generator().manual_seed(0))
    x = student.sample(cond, noise)
    torch.testing.assert_close(
        student.net(x, torch.tensor([0.5, 0.5]), **cond), net(x, torch.tensor([0.5, 0.5]), **cond)
    )
    assert not torch.equal(x, student.sample(student.teacher.encode(["0", "1"]), noise))
