"""EM distillation: its one-step case, and the law of its corrected samples."""

import torch
from oracles import Gaussian
from scored import DATA, FAR, batch, located, method, stepped

from edgedistill.diffusion.schedules import Trig
from edgedistill.objectives.matching.emd import EMD
from edgedistill.objectives.matching.vsd import VSD


def test_one_step_of_emd_is_vsd():
    fake = Gaussian(FAR, 0.5, Trig()).denoiser()
    found = stepped(
        method(EMD, located(FAR, 0.5), fake, langevin_steps=1, noise_step=0.0), batch()
    )
    wanted = stepped(method(VSD, located(FAR, 0.5), fake), batch())
    torch.testing.assert_close(found, wanted)


def test_emds_corrected_samples_have_the_teachers_marginal():
    """Langevin steps of 0.1 are biased by a few percent."""
    student, fake = located([0.2, 0.3], 0.8), Gaussian([0.2, 0.3], 0.8, Trig()).denoiser()
    count, config = 20_000, {"langevin_steps": 120, "eps_step": 0.1, "noise_step": 0.1}
    objective = method(EMD, student, fake, **config)
    given, t = batch(count), torch.full((count,), 0.4).double()
    _, _, views = objective.correct(given.noise(), t, given)
    alpha, deviation = DATA.deviation(t, given.x0)
    x_t = views[-1].x_t
    torch.testing.assert_close(x_t.mean(0), alpha[0] * DATA.mean, atol=0.03, rtol=0)
    torch.testing.assert_close(x_t.std(0), deviation[0].expand(2), atol=0, rtol=0.05)


def test_emd_is_at_rest_at_the_teachers_law():
    objective = method(EMD, located(DATA.mean.tolist(), 0.5), DATA.denoiser(), langevin_steps=4)
    assert objective.loss("student", batch()).total < 1e-10
