"""Tiny decoders: what they are taught, and students that use them."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderTiny, DiffusionPipeline

from edgedistill.networks.patch_decoder import PatchDecoder
from edgedistill.networks.scaling import latents_of
from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.objectives.compression.decoder import VARIANTS, TinyDecoder
from edgedistill.teachers.families.stable_diffusion import StableDiffusion


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
        scaling=teacher.scaling,
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


def test_a_class_that_decodes_nothing_is_refused(teacher, tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(
        ValueError, match=r"unknown class 'AutoencoderKL'.* AutoencoderTiny, .*Patch"
    ):
        teacher.use_decoder(str(tmp_path))


# --- PatchDecoder -------------------------------------------------------------------------------

PATCHES = {"channels": (8, 0), "blocks": (1, 0), "perceptual": 0}


def test_patches_unfold_in_the_order_of_the_picture():
    """One latent position makes one patch, and its neighbours' reach it by 3 x 3 convolutions."""
    torch.manual_seed(0)
    net = PatchDecoder(2, (8, 0, 0), (0, 0, 0)).eval()
    z = torch.zeros(1, 2, 5, 5)
    moved = z.clone()
    moved[0, :, 0, 4] += 1
    with torch.no_grad():
        change = (net.decode(moved).sample - net.decode(z).sample)[0].abs().amax(0)
    assert change.shape == (20, 20)
    # Two convolutions reach two positions, of four pixels each.
    assert change[:12, 8:].min() > 0
    assert change[12:].max() == change[:, :8].max() == 0


def test_patches_keep_their_weights_on_disk(tmp_path):
    net = PatchDecoder(4, (16, 8, 0), (1, 2, 0), scaling_factor=0.5)
    net.save_pretrained(tmp_path)
    again = PatchDecoder.from_pretrained(tmp_path)
    z = torch.randn(2, 4, 3, 3)
    with torch.no_grad():
        assert torch.equal(net.decode(z).sample, again.decode(z, return_dict=False)[0])
    assert net.decode(z).sample.shape == (2, 3, 12, 12)
    assert again.config.scaling_factor == 0.5


def test_wide_blocks_and_a_layer_before_the_last_are_what_they_say(tmp_path):
    torch.manual_seed(0)
    net = PatchDecoder(4, (8, 0), (1, 0), expansion=3, last_channels=10)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    z, conv = torch.randn(2, 4, 5, 5), torch.nn.functional.conv2d
    (block,), (wide, _, last, _) = net.blocks[0], net.last
    assert block.first.weight.shape == (24, 8, 3, 3)
    assert block.second.weight.shape == (8, 24, 1, 1)
    assert wide.weight.shape == (10, 8, 3, 3)
    assert last.weight.shape == (12, 10, 1, 1)
    h = conv(z, net.entries[0].weight, net.entries[0].bias, padding=1)
    inner = conv(h, block.first.weight, block.first.bias, padding=1).relu()
    h = h + conv(inner, block.second.weight, block.second.bias)
    h = conv(h, wide.weight, wide.bias, padding=1).relu()
    expected = torch.nn.functional.pixel_shuffle(conv(h, last.weight, last.bias), 2)
    torch.testing.assert_close(net(z), expected)
    net.save_pretrained(tmp_path)
    assert torch.equal(PatchDecoder.from_pretrained(tmp_path)(z), net(z))


def test_a_recipe_chooses_wide_blocks(teacher):
    tiny = method(teacher, **PATCHES, expansion=2, last_channels=6)
    assert tiny.student.config.expansion == 2
    assert tiny.student.config.last_channels == 6
    losses = tiny.loss("student", batch())
    losses.total.backward()
    assert all(p.grad is not None for p in tiny.student.parameters())


@pytest.mark.parametrize(
    ("channels", "blocks", "message"),
    [
        ((8, 0, 4), (1, 0, 0), r"channels=\[8, 0, 4\]: widths, then zeros only at the end"),
        ((0, 0), (1, 0), "widths, then zeros"),
        ((8, 0), (1,), r"channels=\[8, 0\], blocks=\[1\]: one of each for every"),
    ],
)
def test_patches_that_cannot_be(channels, blocks, message):
    with pytest.raises(ValueError, match=message):
        PatchDecoder(4, channels, blocks)


def test_patches_learn_pictures_and_have_nothing_to_encode(teacher):
    tiny = method(teacher, **PATCHES)
    assert isinstance(tiny.student, PatchDecoder)
    losses = tiny.loss("student", batch())
    assert set(losses.logs) == {"psnr"}
    losses.total.backward()
    assert all(p.grad is not None for p in tiny.student.parameters())
    optim = torch.optim.Adam(tiny.student.parameters(), 1e-2)
    for _ in range(60):
        optim.zero_grad()
        later = tiny.loss("student", batch())
        later.total.backward()
        optim.step()
    assert later.logs["psnr"] > losses.logs["psnr"] + 3


def test_a_teacher_decodes_with_patches_and_its_pipeline_keeps_them(teacher, tmp_path):
    method(teacher, **PATCHES).student.save_pretrained(tmp_path / "decoder")
    teacher.use_decoder(str(tmp_path / "decoder"))
    x0 = batch().x0
    picture = teacher.decode(x0)
    teacher.pipeline.save_pretrained(tmp_path / "pipe")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "pipe")
    with torch.no_grad():
        torch.testing.assert_close(pipe.vae.decode(x0).sample, picture)


def test_the_teachers_pictures_are_made_once(teacher, monkeypatch):
    tiny, calls = method(teacher, jitter=0.5), []
    decode = tiny.vae.decode
    monkeypatch.setattr(tiny.vae, "decode", lambda x, **k: calls.append(len(x)) or decode(x, **k))
    first, half = batch(), batch()
    half = replace(half, x0=torch.cat([half.x0[1:], torch.ones_like(half.x0[:1])]))
    latents, pictures = tiny._pairs(first)
    again, same = tiny._pairs(half)
    assert calls == [3, 1]
    assert torch.equal(latents, first.x0)
    assert torch.equal(again, half.x0)
    assert torch.equal(same[:2], pictures[1:])
    torch.testing.assert_close(pictures, teacher.decode(first.x0))
    monkeypatch.setattr("edgedistill.objectives.compression.decoder.REMEMBERED", 0)
    tiny.made.clear()
    assert torch.equal(tiny._pairs(first)[1], pictures)
    assert not tiny.made


@pytest.mark.parametrize("kind", range(len(VARIANTS)))
def test_a_variant_is_a_picture_that_the_teacher_encodes_again(teacher, kind):
    tiny = method(teacher, augment=0.5)
    x0 = batch().x0
    before = teacher.decode(x0).clamp(-1, 1)
    varied = VARIANTS[kind](before)
    assert varied.shape == before.shape
    assert not torch.equal(varied, before)
    torch.testing.assert_close(varied.mean((1, 2, 3)), before.mean((1, 2, 3)))
    with torch.no_grad():
        latents, pictures = tiny._encoded(varied)
        encoded = teacher.autoencoder.encode(varied).latent_dist.mean
    torch.testing.assert_close(latents, encoded * teacher.autoencoder.config.scaling_factor)
    torch.testing.assert_close(pictures, teacher.decode(latents))


def test_a_share_of_the_batch_is_varied_and_made_once(teacher):
    tiny = method(teacher, augment=0.67)
    first = batch()
    latents, pictures = tiny._pairs(first)
    assert torch.equal(latents[2:], first.x0[2:])
    assert not torch.isclose(latents[:2], first.x0[:2]).any()
    torch.testing.assert_close(pictures, teacher.decode(latents))
    # The pictures that were varied are kept as well.
    kinds = [kind for kind, _ in tiny.made]
    assert kinds.count(-1) == 3
    assert len(kinds) == 5
    drawn = torch.randint(len(VARIANTS), (2,), generator=batch().generator).tolist()
    for i, kind in enumerate(drawn):
        varied = VARIANTS[kind](teacher.decode(first.x0[i : i + 1]).clamp(-1, 1))
        torch.testing.assert_close(latents[i : i + 1], latents_of(tiny.vae, tiny.scaling, varied))


def test_originals_are_what_was_encoded_not_what_the_teacher_decodes(teacher, monkeypatch):
    tiny = method(teacher, target="originals", augment=0.67, jitter=0.0)
    assert tiny.wants_originals(tiny.config)
    assert not TinyDecoder.wants_originals(TinyDecoder.Config())
    originals = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(4)) * 2 - 1
    first = replace(batch(), originals=originals)
    monkeypatch.setattr(tiny.vae, "decode", None)  # it is not asked
    latents, pictures = tiny._pairs(first)
    assert torch.equal(latents[2:], first.x0[2:])
    assert torch.equal(pictures[2:], originals[2:])
    drawn = torch.randint(len(VARIANTS), (2,), generator=batch().generator).tolist()
    for i, kind in enumerate(drawn):
        varied = VARIANTS[kind](originals[i : i + 1])
        assert torch.equal(pictures[i : i + 1], varied)
        torch.testing.assert_close(latents[i : i + 1], latents_of(tiny.vae, tiny.scaling, varied))


def test_patches_below_the_latents_see_all_of_them():
    torch.manual_seed(0)
    net = PatchDecoder(2, (8, 4, 0), (1, 0, 0), levels_below=1).eval()
    z = torch.randn(1, 2, 8, 8)
    moved = z.clone()
    moved[0, :, 0, 7] += 1
    with torch.no_grad():
        change = (net.decode(moved).sample - net.decode(z).sample)[0].abs().amax(0)
    assert change.shape == (16, 16)
    # Three convolutions on 4 x 4 positions reach them all, when the block's second is not zero.
    assert change[:8, 8:].min() > 0
    assert change[10:].max() == 0
    torch.nn.init.normal_(net.blocks[0][0].second.weight)
    with torch.no_grad():
        change = (net.decode(moved).sample - net.decode(z).sample)[0].abs().amax(0)
    assert change.min() > 0
    # A level's entry is a 3 x 3 convolution of the latents folded to its positions.
    entry, folded = net.entries[0], torch.nn.functional.pixel_unshuffle(z, 2)
    weight = torch.nn.functional.pixel_unshuffle(entry.weight, 2)
    expected = torch.nn.functional.conv2d(folded, weight, entry.bias, padding=1)
    torch.testing.assert_close(entry(z), expected)
    with pytest.raises(ValueError, match="levels_below=2: from 0 to 1"):
        PatchDecoder(2, (8, 4, 0), (1, 0, 0), levels_below=2)


def test_a_decoder_of_patches_may_begin_below_the_latents(teacher):
    tiny = method(teacher, channels=(16, 8, 0), blocks=(1, 1, 0), perceptual=0)
    assert tiny.student.config.levels_below == 1
    losses = tiny.loss("student", batch())
    losses.total.backward()
    assert all(p.grad is not None for p in tiny.student.parameters())
