"""The patch loss: mean features of samples and data."""

import pytest
import torch
from oracles import Gaussian
from scored import DATA, FAR, Blocks, batch, located, method

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.networks.planar import PlanarNet
from edgedistill.objectives.matching.pdm import PDM, patch_distance, patches


def test_a_patch_is_a_place_of_a_map_or_a_token():
    maps = torch.randn(2, 3, 4, 5)
    assert torch.equal(patches(maps)[7], maps[0, :, 1, 2])
    assert torch.equal(patches(maps)[20 + 19], maps[1, :, 3, 4])
    tokens = torch.randn(2, 6, 3)
    assert torch.equal(patches(tokens)[6 + 2], tokens[1, 2])
    assert patches(torch.randn(5, 3)).shape == (5, 3)


def test_the_distance_is_of_means_and_linear_far_out():
    real, fake = torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.tensor([[4.0, 1.0]])
    assert patch_distance(real, fake, 1e-6).item() == pytest.approx(1.5, rel=1e-5)
    assert patch_distance(real, real.flip(0), 1e-3) == 0


def plain(student, **config):
    """With the noised points themselves as features."""
    fake = Denoiser(Blocks(Gaussian(FAR, 0.5, Trig())), Trig(), Prediction.X0)
    fake.net.blocks[1] = torch.nn.Identity()
    return method(PDM, student, fake, gan_weight=0, **config)


def test_the_patch_loss_moves_the_mean_to_the_datas():
    """Each coordinate of the gradient is mean alpha / 2 times its sign, far from the data."""
    student = located(FAR, 0.5)
    objective = plain(student, patch_max_time=0.3)
    given = batch(20_000)
    torch.autograd.backward(objective.patch(objective.rollout(given).x0, given))
    t = 0.02 + 0.28 * (torch.arange(2000).double() + 0.5) / 2000
    size = Trig().alpha(t).mean().float() / 2
    expected = size * (torch.tensor(FAR) - DATA.mean).sign()
    torch.testing.assert_close(student.net.mean.grad, expected, rtol=1e-3, atol=0)


def test_samples_of_the_datas_law_have_its_features():
    near, far = (
        plain(located(mean, 0.5)).patch(sample.x0, given)
        for mean in (DATA.mean.tolist(), FAR)
        for given in [batch(20_000)]
        for sample in [plain(located(mean, 0.5)).rollout(given)]
    )
    assert near < 0.01
    assert far.item() == pytest.approx(0.7 * 0.94, rel=0.1)


def test_only_the_student_learns_from_patches():
    fake = Denoiser(PlanarNet(width=16, depth=2), Trig(), Prediction.V)
    objective = method(PDM, located(FAR, 0.5), fake, gan_weight=0)
    assert "patch" in objective.loss("student", batch(16)).logs
    assert "patch" not in objective.loss("fake_score", batch(16)).logs


def test_the_range_of_noise_is_checked():
    with pytest.raises(ValueError, match=r"patch_max_time=0\.1 is not above min_time=0\.2"):
        method(PDM, located(FAR, 0.5), gan_weight=0, min_time=0.2, patch_max_time=0.1)
