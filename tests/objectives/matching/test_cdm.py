"""Continuous-time matching: its random schedules, and where it leaves them."""

import pytest
import torch
from oracles import Affine, Gaussian
from scored import DATA, FAR, batch, located, method, stepped

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.objectives.matching.cdm import CDM
from edgedistill.objectives.matching.decoupled_dmd import DecoupledDMD


def cdm(student=None, sampler="ddim", **config):
    student = student or located(FAR, 0.5)
    return method(CDM, student, steps=2, sampler=sampler, **{"max_steps": 5, **config})


def test_schedules_are_of_every_length_between_the_bounds():
    drawn = [cdm(low=0.3, high=0.6).rollout.drawn(batch(2, shared=seed)) for seed in range(400)]
    for times in drawn:
        assert times[0] == 1
        assert times[-1] == 0
        assert (times.diff() < 0).all()
    lengths = torch.tensor([len(times) - 1 for times in drawn])
    assert (lengths.bincount(minlength=6)[1:] > 50).all()
    inner = torch.cat([times[1:-1] for times in drawn])
    assert 0.3 <= inner.min() < 0.31
    assert 0.59 < inner.max() <= 0.6
    assert inner.mean().item() == pytest.approx(0.45, abs=0.01)


def test_all_ranks_walk_the_same_schedule():
    one, other = (cdm().rollout(batch(4, seed=seed, shared=3)) for seed in (0, 1))
    assert (one.t, one.index) == (other.t, other.index)
    assert not torch.equal(one.x_t, other.x_t)


def test_off_the_schedule_is_where_the_students_velocity_leads():
    """With x0 the student's and eps what it leaves of x_t: alpha_s x0 + sigma_s eps."""
    objective = cdm()
    for shared in range(6):
        sample = objective.rollout(given := batch(64, shared=shared))
        off = objective.off(sample, given)
        x0 = torch.tensor(FAR) + 0.5 * sample.x_t
        alpha, sigma = Trig().at(sample.t.expand(64), like=x0)
        eps = (sample.x_t - alpha * x0) / sigma
        alpha, sigma = Trig().at(off.t, like=x0)
        torch.testing.assert_close(off.x_t, alpha * x0 + sigma * eps, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(off.x0, torch.tensor(FAR) + 0.5 * off.x_t)
    assert off.t.min() < 0.05
    assert off.t.max() > 0.95


def test_on_and_off_the_schedule_the_same_law_is_matched():
    """Of a student that always says one point; both terms then move it alike."""
    config = {"steps": 2, "sampler": "ddim"}
    fake = Gaussian(FAR, 0.0, Trig()).denoiser()
    on = stepped(method(DecoupledDMD, located(FAR, 0.0), fake, **config), batch(20_000))
    both = stepped(method(CDM, located(FAR, 0.0), fake, **config), batch(20_000))
    away = torch.tensor(FAR) - DATA.mean
    assert torch.nn.functional.cosine_similarity(on, away, dim=0) > 0.99
    torch.testing.assert_close(both, 2 * on, rtol=0.02, atol=0)


@pytest.mark.parametrize("gain", [1.0, 1.2])
def test_of_steps_that_draw_noise_the_regression_goes_to_the_end_from_any_time(gain):
    student = Denoiser(Affine(DATA.consistency, gain), Trig(), Prediction.X0)
    objective = cdm(student, "renoise", regression=5, regression_steps=60)
    for shared in range(6):
        loss = objective.loss("student", batch(256, shared=shared)).total.item()
        assert loss < 1e-4 if gain == 1 else loss > 1e-3


def test_deterministic_steps_are_regressed_to_the_next_time_of_their_schedule():
    spans = [cdm().regression.span(batch(2, shared=s)) for s in range(40)]
    starts = {round(t.item(), 6) for t, _ in spans}
    assert 1.0 in starts
    assert len(starts) > 10
    assert all(s < t for t, s in spans)
    assert any(s > 0 for _, s in spans)
    drawn = [cdm().rollout.drawn(batch(2, shared=s)) for s in range(40)]
    assert all(float(s) in times.tolist() for (_, s), times in zip(spans, drawn, strict=True))


def test_cdm_wants_a_range():
    with pytest.raises(ValueError, match=r"low=0\.9 must be below high=0\.5"):
        cdm(low=0.9, high=0.5)
