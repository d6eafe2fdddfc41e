"""Score matching on Gaussians: what the methods share, and landings on stored paths."""

from dataclasses import replace

import pytest
import torch
from oracles import Affine, Gaussian
from scored import (
    DATA,
    FAR,
    batch,
    exact_steps,
    located,
    method,
    pathed,
    seed_of,
    stepped,
)

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Discrete, Trig
from edgedistill.diffusion.solvers import time_grid
from edgedistill.objectives.base import Optim, Setup
from edgedistill.objectives.combined.asd import ASD
from edgedistill.objectives.combined.dp_dmd import DPDMD
from edgedistill.objectives.matching.cdm import CDM
from edgedistill.objectives.matching.decoupled_dmd import DecoupledDMD
from edgedistill.objectives.matching.disback import DisBack
from edgedistill.objectives.matching.dmd import DMD
from edgedistill.objectives.matching.dmd2 import DMD2
from edgedistill.objectives.matching.emd import EMD
from edgedistill.objectives.matching.moment_matching import MomentMatching
from edgedistill.objectives.matching.parts import View, health
from edgedistill.objectives.matching.phased_dmd import PhasedDMD
from edgedistill.objectives.matching.rollout import onward
from edgedistill.objectives.matching.sid import SiD
from edgedistill.objectives.matching.tdm import TDM
from edgedistill.objectives.matching.vsd import VSD


@pytest.mark.parametrize("s", [0.0, 0.3])
def test_noise_from_a_later_time_on_tells_the_score_without_bias(s):
    """The least squares fit of the target's x0 on x_t is the Gaussian posterior mean."""
    truth, generator = Gaussian([0.5], 0.7, Trig()), torch.Generator().manual_seed(0)
    count, t = 200_000, 0.55
    time = torch.full((count,), t).double()
    begin = torch.full((count,), s).double()
    x_s = truth.draw(count, generator).double()
    alpha, sigma = Trig().at(begin, like=x_s)
    # Noise at s that has to do with x0, as that of a student's deterministic step.
    x_s = alpha * x_s + sigma * (x_s - 0.5) / 0.7
    law = Gaussian([0.5], 0.7, Trig())
    deviation = (alpha * 0.7 + sigma)[0].item()
    noised = onward(Trig(), x_s, begin, time, torch.randn(count, 1, generator=generator).double())
    # x_t is Gaussian: its score, and from it the x0 that a denoiser of its law sees.
    alpha_t, sigma_t = Trig().at(time, like=x_s)
    a = alpha_t / alpha
    spread = (a * deviation) ** 2 + sigma_t**2 - (a * sigma) ** 2
    score = -(noised.x_t - a * alpha * law.mean) / spread
    seen = (noised.x_t + sigma_t**2 * score) / alpha_t
    centred = noised.x_t - noised.x_t.mean()
    slope = (centred * noised.x0).mean() / centred.square().mean()
    wanted = (centred * seen).mean() / centred.square().mean()
    assert slope.item() == pytest.approx(wanted.item(), abs=0.01)
    assert noised.x0.mean().item() == pytest.approx(seen.mean().item(), abs=0.01)
    joined = alpha_t * noised.x0 + sigma_t * noised.eps
    torch.testing.assert_close(joined, noised.x_t)


def test_noising_from_clean_data_is_plain_noising():
    x0, eps = torch.randn(8, 2).double(), torch.randn(8, 2).double()
    t = torch.linspace(0.1, 1, 8).double()
    noised = onward(Trig(), x0, torch.zeros(8).double(), t, eps)
    torch.testing.assert_close(noised.x0, x0)
    torch.testing.assert_close(noised.eps, eps)
    torch.testing.assert_close(noised.weight, torch.ones(8, 1).double())


def test_a_fake_score_that_lags_is_farther_from_the_sample_than_the_teacher():
    """The posterior mean is the nearest there is; the student is the teacher's law here."""
    objective = method(
        VSD, located(DATA.mean.tolist(), 0.5), Gaussian(FAR, 0.5, Trig()).denoiser()
    )
    logs = objective.loss("student", batch()).logs
    assert logs["lag"] > 1.5 * logs["teacher_lag"]
    assert logs["mean_drift"] < 1.5
    assert logs["std_ratio"].item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("law", "error"), [(FAR, 0.0), (DATA.mean.tolist(), 1.0)])
def test_the_fake_scores_share_of_the_difference(law, error):
    """None of it with the student's exact score, all of it with a student that has arrived."""
    fake = Gaussian(FAR, 0.5, Trig()).denoiser()
    logs = method(VSD, located(law, 0.5), fake).loss("student", batch(50_000)).logs
    assert logs["fake_error"].item() == pytest.approx(error, abs=0.02)


def test_health_measures_drift():
    x0 = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros_like(x0)
    view = View(3 * x0 + 0.5, x0, zero, zero, zero)
    logs = health(view, 2 + zero, x0)
    assert logs["mean_drift"].item() == pytest.approx(50, rel=0.05)  # 0.5, chance 0.01
    assert logs["std_ratio"].item() == pytest.approx(3, rel=1e-3)
    assert logs["matching"] == 2


def test_predictions_are_of_one_noised_sample():
    fake = Gaussian(FAR, 0.5, Trig())
    objective = method(VSD, located(FAR, 0.5), fake.denoiser(), min_time=0.5, max_time=0.501)
    found = objective.predictions(batch(64))
    t = torch.full((64,), 0.5005)
    assert list(found) == ["student", "x_t", "teacher", "fake_score"]
    for role, law in (("teacher", DATA), ("fake_score", fake)):
        torch.testing.assert_close(found[role], law.posterior(found["x_t"], t), atol=5e-3, rtol=0)
    alpha, sigma = Trig().at(t, like=found["x_t"])
    eps = (found["x_t"] - alpha * found["student"]) / sigma
    assert eps.std().item() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("gain", [1.0, 1.2])
def test_deterministic_steps_regress_to_the_paths_next_point(gain):
    """The x0 of a DDIM step along the exact path, and no other, has no loss."""
    config = {"steps": 2, "sampler": "ddim", "regression": 5, "regression_steps": 60}
    objective = method(VSD, exact_steps(gain), **config)
    for shared in range(4):
        loss = objective.loss("student", batch(256, shared=shared)).total.item()
        assert loss < 1e-4 if gain == 1 else loss > 1e-3


@pytest.mark.parametrize("sampler", ["renoise", "ddim"])
@pytest.mark.parametrize("index", [0, 1])
def test_dmds_regression_vanishes_on_the_exact_maps_of_the_paths(sampler, index):
    """To their end; along them, where steps are deterministic."""
    for gain in (1.0, 1.3):
        student = Denoiser(Affine(DATA.consistency, gain), Trig(), Prediction.X0)
        student = student if sampler == "renoise" else exact_steps(gain)
        config = {"steps": 2, "sampler": sampler, "distance": {"kind": "l2"}}
        objective = method(DMD, student, **config, regression=1)
        loss = objective.loss("student", pathed(steps=2, shared=seed_of(index, 2))).total
        assert loss < 1e-10 if gain == 1 else loss > 0.01


def test_dmds_gradient_is_the_reverse_kls_in_direction():
    student = located(FAR, 0.5)
    fake = Gaussian(FAR, 0.5, Trig()).denoiser()
    objective = method(DMD, student, fake, regression_weight=0)
    found = stepped(objective, pathed(4096))
    away = torch.tensor(FAR) - DATA.mean
    assert torch.nn.functional.cosine_similarity(found, away, dim=0).item() == pytest.approx(1)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("kind", [TDM, PhasedDMD])
def test_landings_are_compared_above_where_they_land(kind, index):
    """And there the exact student has the teacher's marginals."""
    objective = method(kind, exact_steps(), steps=2, sampler="ddim")
    given = batch(20_000, shared=seed_of(index, 2))
    sample = objective.rollout(replace(given, step=0 if kind is TDM else 99))
    assert sample.index == index
    unit = torch.full((20_000,), 0.4, dtype=torch.float64)
    noised = objective.noising(sample, unit, given)
    low, high = [(0.5, 1.0), (0.0, 0.5 if kind is TDM else 1.0)][index]
    expected = torch.full((20_000,), low + 0.4 * (high - low)).double()
    torch.testing.assert_close(noised.t, expected)
    alpha, deviation = DATA.deviation(noised.t, noised.x_t)
    torch.testing.assert_close(noised.x_t.mean(0), alpha[0] * DATA.mean, atol=0.02, rtol=0)
    torch.testing.assert_close(noised.x_t.std(0), deviation[0].expand(2), atol=0.02, rtol=0)


@pytest.mark.parametrize("kind", [TDM, PhasedDMD])
def test_the_exact_fake_score_minimises_the_landings_denoising(kind):
    """The student has the teacher's marginals, whose score is then the best fake score."""
    losses = {}
    for gain in (0.85, 1.0, 1.15):
        fake = Denoiser(Affine(DATA.posterior, gain), Trig(), Prediction.X0)
        objective = method(kind, exact_steps(), fake, steps=2, sampler="ddim")
        given = batch(40_000, shared=seed_of(0, 2))
        losses[gain] = objective.loss("fake_score", given).total.item()
    assert losses[1.0] < min(losses[0.85], losses[1.15])


def test_phases_join_one_by_one():
    objective = method(PhasedDMD, exact_steps(), steps=4, sampler="ddim", warmup=20)

    def reached(step: int) -> int:
        given = [batch(2, shared=seed, step=step) for seed in range(40)]
        return max(objective.rollout.index(one) for one in given)

    assert [reached(step) for step in (0, 20, 39, 40, 60, 99)] == [3, 0, 0, 1, 2, 3]


def test_tdm_wants_deterministic_steps():
    with pytest.raises(ValueError, match=r"student\.sampler=renoise"):
        method(TDM, exact_steps(), steps=2)


def test_discrete_times_are_never_those_of_the_landing():
    schedule = Discrete(torch.linspace(0.99, 0.01, 10))
    student = Denoiser(Affine(lambda x, t: x), schedule, Prediction.X0)
    setup = Setup(
        teacher=student,
        student=student,
        spawn=lambda: student,
        times=time_grid(schedule, 5),
        sampler="ddim",
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 2), {}),
    )
    objective = TDM(TDM.Config(), setup)
    given = batch(64)
    noised = objective.noising(objective.rollout(given), torch.linspace(0, 1, 64).double(), given)
    assert noised.x0.isfinite().all()
    assert noised.weight.min() > 0


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("kind", [TDM, PhasedDMD])
def test_the_discriminator_judges_landings_where_it_was_trained(kind, index, monkeypatch):
    """Not the x0 of an early step, which no data looks like."""
    objective = method(kind, exact_steps(), steps=2, sampler="ddim")
    objective.config = objective.config.model_copy(update={"gan_weight": 0.1})
    seen = {"student": [], "fake_score": []}
    for player, noted in seen.items():
        given = replace(batch(2000, shared=seed_of(index, 2)), step=0 if kind is TDM else 99)

        def judge(noised, cond, noted=noted):
            noted.append(noised)
            return noised.x_t.mean(1, keepdim=True)

        def denoise_and_judge(noised, cond, judge=judge):
            return noised.x_t.sum(), judge(noised, cond)

        monkeypatch.setattr(objective.fake_score, "tap", object())
        monkeypatch.setattr(objective.fake_score, "logits", judge)
        monkeypatch.setattr(objective.fake_score, "denoising_and_logits", denoise_and_judge)
        objective.loss(player, given)
    (ours,), (fake, real) = seen["student"], seen["fake_score"]
    assert torch.equal(fake.t, real.t)
    low, high = [(0.5, 1.0), (0.0, 0.5 if kind is TDM else 1.0)][index]
    for shown in (ours, fake, real):
        assert shown.t.min() == pytest.approx(low, abs=0.01)
        assert shown.t.max() == pytest.approx(high, abs=0.01)
        alpha, deviation = (v.flatten() for v in DATA.deviation(shown.t, shown.x_t[:, :1]))
        standard = (shown.x_t[:, 0] - alpha * DATA.mean[0]) / deviation
        assert standard.std().item() == pytest.approx(1, abs=0.1)


class Noting(torch.nn.Module):
    """The exact denoiser, which keeps the times at which it is asked."""

    def __init__(self, law: Gaussian) -> None:
        super().__init__()
        self.law = law
        self.times: list[torch.Tensor] = []

    def forward(self, x, t):
        self.times.append(t.expand(len(x)).double())
        return self.law.posterior(x, t)


@pytest.mark.parametrize("player", ["student", "fake_score"])
@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize(
    ("kind", "config"),
    [(VSD, {}), (DMD2, {"gan_weight": 0}), (SiD, {}), (DisBack, {}), (DPDMD, {}), (DMD, {})],
)
def test_a_step_is_matched_and_learned_within_its_interval_alone(kind, config, index, player):
    """Between its end and its start, and over most of that; at all levels by default."""
    if kind is DPDMD and index == 0 and player == "student":
        return  # its first step is taught, not matched
    if kind is DMD:
        config = {"regression_weight": 0}
    given = pathed(512, steps=4, step=99, shared=seed_of(index, 4))
    seen = {}
    for levels in ("all", "interval"):
        noting = Noting(Gaussian(FAR, 0.5, Trig()))
        fake = Denoiser(noting, Trig(), Prediction.X0)
        words = {**config, "matched_levels": levels}
        objective = method(kind, located(FAR, 0.5), fake, steps=4, **words)
        noting.times.clear()
        given = replace(given, shared=torch.Generator().manual_seed(seed_of(index, 4)))
        objective.loss(player, given)
        seen[levels] = torch.cat(noting.times)
    start, end = time_grid(Trig(), 4)[[index, index + 1]].tolist()
    assert end <= seen["interval"].min() < end + 0.05
    assert start - 0.05 < seen["interval"].max() <= start
    assert seen["all"].min() < 0.1
    assert seen["all"].max() > 0.9


@pytest.mark.parametrize(
    "kind",
    [ASD, CDM, DecoupledDMD, EMD, MomentMatching, PhasedDMD, TDM],
    ids=lambda kind: kind.name,
)
def test_a_method_with_levels_of_its_own_takes_no_others(kind):
    sampler = "ddim" if kind is TDM else "renoise"
    with pytest.raises(ValueError, match=f"matched_levels: {kind.name} chooses its levels itself"):
        method(kind, located(FAR, 0.5), steps=4, sampler=sampler, matched_levels="interval")
