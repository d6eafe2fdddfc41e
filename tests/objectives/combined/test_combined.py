"""Methods of two families: each half is that family's own, and both agree on the truth."""

import pytest
import torch
from oracles import Affine
from scored import DATA, batch, located, method, seed_of, setup_of

from edgedistill.diffusion.boundary import consistency_function, noise_boundary
from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.objectives.combined.dp_dmd import DPDMD
from edgedistill.objectives.combined.rcm import RCM, Consistent
from edgedistill.objectives.consistency.scm import SCM
from edgedistill.objectives.matching.dmd2 import DMD2

FAR = located([1.5, -1.0], 0.5)


def same_start(kind, student, **config):
    torch.manual_seed(0)
    return method(kind, student, **config)


def test_without_matching_it_is_scm():
    student = located([0.2, 0.1], 0.7)
    ours = same_start(RCM, student, steps=2, matching_weight=0).loss("student", batch(64))
    theirs = same_start(SCM, student, steps=2).loss("student", batch(64))
    assert ours.total.item() == theirs.total.item()


def test_the_student_descends_the_sum_of_both():
    """The matching term is dmd2's on the same sample, which moves the mean towards the data."""
    slopes = {}
    for weight in (0.0, 1.0, 2.0):
        student = located([1.5, -1.0], 0.5)
        objective = same_start(RCM, student, fake=student, steps=1, matching_weight=weight)
        objective.loss("student", batch(4096)).total.backward()
        slopes[weight] = student.net.mean.grad.clone()
    one, two = slopes[1.0] - slopes[0.0], slopes[2.0] - slopes[0.0]
    torch.testing.assert_close(two, 2 * one, rtol=1e-3, atol=1e-5)
    assert one[0] > 0  # descent lowers 1.5 towards 0.7
    assert one[1] < 0


def test_samples_obey_the_boundary():
    student, boundary = located([0.3, -0.2], 0.8), noise_boundary(Trig(), 0.5)
    x_t, t = torch.randn(50, 2), torch.rand(50)
    found = Consistent(student, boundary)(x_t, t, {})
    want = consistency_function(boundary, x_t, student(x_t, t, {}), t)
    torch.testing.assert_close(found, want)
    torch.testing.assert_close(Consistent(student, boundary)(x_t, torch.zeros(50), {}), x_t)


def test_the_fake_score_learns_the_students_samples_and_does_not_move_it():
    student, fake = located([0.3, -0.2], 0.8), located([0.0, 0.0], 0.5)
    objective = method(RCM, student, fake=fake, steps=2)
    assert [player.name for player in objective.players()] == ["fake_score", "student"]
    objective.loss("fake_score", batch(4096)).total.backward()
    assert student.net.mean.grad is None
    assert fake.net.mean.grad[0] < 0  # towards 0.3
    assert fake.net.mean.grad[1] > 0


@pytest.mark.parametrize("sampler", ["ddim", "renoise"])
def test_the_first_step_is_regressed_on_the_teachers_path(sampler):
    first = batch(256, shared=seed_of(0, 2))
    exact = Denoiser(Affine(DATA.consistency), Trig(), Prediction.X0)
    objective = method(DPDMD, exact, steps=2, sampler="renoise", regression_steps=64)
    assert objective.loss("student", first).total.item() < 1e-4
    objective = method(DPDMD, FAR, steps=2, sampler=sampler)
    losses = objective.loss("student", batch(256, shared=seed_of(0, 2)))
    assert set(losses.logs) == {"first"}
    assert losses.total > 0.1
    t, s = objective.first.span(batch(2))
    assert (float(t), float(s)) == (1.0, 0.5 if sampler == "ddim" else 0.0)


def test_later_steps_match_as_dmd2_does():
    given = {"shared": seed_of(1, 2), "count": 256}
    losses = [
        same_start(kind, FAR, steps=2, gan_weight=0).loss("student", batch(**given)).total.item()
        for kind in (DPDMD, DMD2)
    ]
    assert losses[0] == losses[1]


def test_one_step_alone_has_nothing_to_match():
    with pytest.raises(ValueError, match=r"student\.steps=1: the first step of dp-dmd"):
        DPDMD(DPDMD.Config(), setup_of(FAR, steps=1))
