"""vsd, sds and their kin: gradients in closed form on Gaussians."""

from dataclasses import replace

import pytest
import torch
from oracles import Gaussian
from scored import (
    DATA,
    FAR,
    Conditioned,
    TimeConditioned,
    batch,
    guided,
    judging,
    located,
    method,
    stepped,
    told,
)

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.objectives.matching.sds import NFSD, SDS
from edgedistill.objectives.matching.vsd import PGSB, VSD, DiffInstruct


@pytest.mark.parametrize("weight", ["sigma2", "x0"])
def test_the_gradient_of_vsd_is_that_of_the_reverse_kl(weight):
    """Of two Gaussians of one scale noised to t the KL is |alpha apart|^2 / 2 dev^2, whose
    gradient alpha^2 apart / dev^2 is here weighted by w sigma^2 / alpha^2 at each t."""
    objective = method(
        VSD, located(FAR, 0.5), Gaussian(FAR, 0.5, Trig()).denoiser(), weight=weight
    )
    found = stepped(objective, batch())
    t = 0.02 + 0.96 * (torch.arange(4096).double() + 0.5) / 4096
    alpha, sigma = Trig().alpha(t), Trig().sigma(t)
    deviation = (alpha * 0.5).square() + sigma.square()
    factor = alpha * sigma if weight == "sigma2" else 1.0
    expected = (factor * sigma.square() / deviation).mean() * (torch.tensor(FAR) - DATA.mean)
    torch.testing.assert_close(2 * found, expected.float(), rtol=1e-3, atol=1e-5)


def test_the_gradient_of_sds_is_vsds_plus_noise_that_has_no_mean_in_the_mean():
    found = stepped(method(SDS, located(FAR, 0.5)), batch(200_000))
    fake = Gaussian(FAR, 0.5, Trig()).denoiser()
    expected = stepped(method(VSD, located(FAR, 0.5), fake), batch(200_000))
    torch.testing.assert_close(found, expected, rtol=0, atol=4e-3)


def test_sds_narrows_a_student_that_has_the_teachers_law():
    student = located(DATA.mean.tolist(), 0.5)
    stepped(method(SDS, student), batch(50_000))
    assert student.net.scale.grad > 0.02
    exact = located(DATA.mean.tolist(), 0.5)
    stepped(method(VSD, exact), batch(50_000))
    assert abs(exact.net.scale.grad) < 1e-6


def test_nfsd_leaves_guidance_alone_where_there_is_much_noise():
    """There the null condition cancels: what is left is scale times 0.3 in each coordinate."""
    student = Denoiser(TimeConditioned(FAR, 0.5), Trig(), Prediction.X0)
    objective = method(NFSD, student, teacher=guided(7.5), min_time=0.2, max_time=0.98)
    found = stepped(objective, told(batch()))
    t = 0.2 + 0.78 * (torch.arange(4096).double() + 0.5) / 4096
    factor = (Trig().alpha(t) * Trig().sigma(t)).mean()
    expected = -factor * 7.5 * 0.3 * torch.ones(2)
    torch.testing.assert_close(2 * found, expected.float(), rtol=1e-3, atol=1e-5)


def test_nfsd_wants_guidance():
    with pytest.raises(ValueError, match=r"teacher\.guidance=1: nfsd"):
        method(NFSD, located(FAR, 0.5))


def test_diff_instruct_compares_at_log_normal_levels():
    objective = method(DiffInstruct, located(FAR, 0.5), std=0.5, mean=-1.0)
    t = objective.levels(batch(20_000))
    ratio = -0.5 * Trig().log_snr(t)
    assert ratio.mean().item() == pytest.approx(-1, abs=0.01)
    assert ratio.std().item() == pytest.approx(0.5, abs=0.01)


class Heard(Conditioned):
    """Keeps the conditions it was told."""

    def forward(self, x, t, y):
        self.heard = y
        return super().forward(x, t, y)


def pgsb(fake, **config):
    student = Denoiser(TimeConditioned(FAR, 0.5), Trig(), Prediction.X0)
    return method(
        PGSB, student, Denoiser(fake, Trig(), Prediction.X0), teacher=guided(3), **config
    )


def test_pg_sb_guides_both_scores_by_the_same_random_scales():
    """Each condition adds scale times 0.3 to an exact denoiser of the teacher's law."""
    objective = pgsb(Conditioned(), low=1.5, high=3.5)
    view = objective.view(objective.rollout(given := told(batch())), given)
    torch.testing.assert_close(view.fake, view.real)
    added = view.real - DATA.posterior(view.x_t, view.t)
    scale = added.mean(1) / 0.3
    assert 1.5 <= scale.min() < 1.51
    assert 3.49 < scale.max() <= 3.5
    assert scale.mean().item() == pytest.approx(2.5, abs=1e-3)


def test_pg_sbs_fake_score_learns_some_samples_without_condition():
    fake = Heard()
    objective = pgsb(fake, null_share=0.1)
    objective.loss("fake_score", told(batch(25)))
    assert fake.heard.flatten().tolist() == pytest.approx([0] * 3 + [0.3] * 22)
    one = told(batch(4))
    objective.loss("fake_score", replace(one, cond={"y": one.cond["y"] + 1}))
    assert fake.heard.flatten().tolist() == pytest.approx([0] + [1.3] * 3)


def test_pg_sbs_discriminator_judges_all_samples_under_their_condition():
    objective = pgsb(Conditioned(), null_share=0.5)
    shown, given = judging(objective), told(batch(8))
    objective.loss("fake_score", given)
    objective.loss("student", given)
    assert len(shown) == 3
    assert all(torch.equal(y, given.cond["y"]) for y in shown)


def test_pg_sb_wants_guidance():
    with pytest.raises(ValueError, match=r"teacher\.guidance=1: pg-sb"):
        method(PGSB, located(FAR, 0.5))
    with pytest.raises(ValueError, match=r"low=2 must be below high=1"):
        pgsb(Conditioned(), low=2, high=1)
