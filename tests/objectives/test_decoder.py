"""Tiny decoders: what they are taught, and students that use them."""

import pytest
import torch
from diffusers import AutoencoderTiny

from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.objectives.decoder import TinyDecoder
from edgedistill.teachers.stable_diffusion import StableDiffusion


@pytest.fixture
def teacher(tiny_sd):
    return StableDiffusion.load(str(tiny_sd))


def method(teacher, autoencoder="own", **config):
    torch.manual_seed(0)
    setup = Setup(
        teacher=teacher.denoiser,
        student=teacher.denoiser,
        spawn=teacher.spawn,
        times=torch.tensor([1.0, 0.0]),
        sampler="renoise",
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 4, 4, 4), {}),
        autoencoder=teacher.autoencoder if autoencoder == "own" else autoencoder,
    )
    return TinyDecoder(TinyDecoder.Config(**{"channels": 8, "blocks": (1, 0), **config}), setup)


def batch(step=0):
    generator = torch.Generator().manual_seed(1)
    x0 = torch.randn(3, 4, 4, 4, generator=generator)
    return Batch(x0, {}, generator, generator, step)


@pytest.fixture
def folder(teacher, tmp_path):
    """A decoder dir with random weights."""
    method(teacher).student.save_pretrained(tmp_path / "decoder")
    return tmp_path / "decoder"


def test_the_loss_is_the_distance_to_the_teachers_pictures(teacher):
    tiny = method(teacher, perceptual=0, encode=0)
    x0 = batch().x0
    truth, found = teacher.decode(x0), tiny.student.decode(x0).sample
    expected = (found - truth).square().mean() + (found - truth).abs().mean()
    losses = tiny.loss("student", batch())
    torch.testing.assert_close(losses.total, expected)
    peak = 10 * torch.log10(4 / (found - truth).square().mean())
    torch.testing.assert_close(losses.logs["psnr"], peak)


def test_every_term_moves_the_student_and_nothing_else(teacher):
    tiny = method(teacher, adversarial=0.1, adversarial_start=1, jitter=0.1)
    late = tiny.loss("student", batch(step=1))
    assert set(late.logs) == {"psnr", "perceptual", "adversarial", "encode"}
    assert set(tiny.loss("student", batch(step=0)).logs) == {"psnr", "perceptual", "encode"}
    late.total.backward()
    assert all(p.grad is not None for p in tiny.student.decoder.parameters())
    assert all(p.grad is not None for p in tiny.student.encoder.parameters())
    assert all(p.grad is None for p in teacher.autoencoder.parameters())


def test_the_discriminator_learns_which_is_which(teacher):
    tiny = method(teacher, adversarial=0.1, adversarial_start=5)
    judge, student = tiny.players()
    assert [judge.name, student.name] == ["discriminator", "student"]
    assert not judge.plays(4)
    optimizer = torch.optim.Adam(judge.net.parameters(), 1e-2)
    first = tiny.loss("discriminator", batch()).total.item()
    for _ in range(10):
        optimizer.zero_grad()
        loss = tiny.loss("discriminator", batch()).total
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.7 * first
    assert all(p.grad is None for p in tiny.student.parameters())


def test_the_enlargement_must_be_the_teachers(teacher):
    with pytest.raises(ValueError, match="3 resolutions enlarge by 4, the teacher's decoder by 2"):
        method(teacher, blocks=(1, 1, 1))
    with pytest.raises(ValueError, match="needs a teacher with an autoencoder"):
        method(teacher, autoencoder=None)


def test_a_teacher_decodes_with_the_decoder_named(teacher, folder):
    x0 = batch().x0
    teacher.use_decoder(str(folder))
    tiny = AutoencoderTiny.from_pretrained(folder)
    with torch.no_grad():
        torch.testing.assert_close(teacher.decode(x0), tiny.decode(x0).sample)


def test_decoders_that_do_not_fit_are_refused(teacher, folder, tmp_path):
    with pytest.raises(ValueError, match="no decoder folder"):
        teacher.use_decoder(str(tmp_path / "none"))
    AutoencoderTiny(latent_channels=3).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="for latents of 3 channels, tiny has 4"):
        teacher.use_decoder(str(tmp_path / "other"))
