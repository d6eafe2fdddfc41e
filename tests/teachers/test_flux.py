"""FLUX: packed latents, the guidance scale dev reads, schnell."""

import pytest
import torch
from diffusers import FluxPipeline

from edgedistill.diffusion.schedules import Rectified
from edgedistill.diffusion.solvers import solve, time_grid
from edgedistill.teachers import load_teacher
from edgedistill.teachers.families.flux import pack, unpack
from edgedistill.tiny.flux import pipeline as make_flux
from edgedistill.tiny.tokenizers import LENGTH

PROMPTS = ["red", "blue"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("flux")
    for dev in (True, False):
        make_flux(dev=dev).save_pretrained(place / str(dev))
    return {dev: place / str(dev) for dev in (True, False)}


def test_packing_is_the_pipelines_and_inverts():
    x = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pack(x), FluxPipeline._pack_latents(x, *x.shape), atol=0, rtol=0)
    torch.testing.assert_close(unpack(pack(x), 4, 6), x, atol=0, rtol=0)


def test_places_are_the_pipelines(folders):
    net = load_teacher("flux", folders[True]).net
    expected = FluxPipeline._prepare_latent_image_ids(2, 2, 2, "cpu", torch.float32)
    torch.testing.assert_close(net.img_ids, expected)


def test_dev_reads_another_scale_with_the_same_weights(folders):
    teacher = load_teacher("flux", folders[True])
    guided = teacher.guided(2.0)
    assert guided.net.transformer is teacher.net.transformer
    assert (guided.net.guidance.item(), teacher.net.guidance.item()) == (2.0, 3.5)
    assert "guidance_scale=3.5" in teacher.usage


def test_schnell_is_unshifted_and_guided_as_by_true_cfg(folders):
    teacher = load_teacher("flux", folders[False])
    pipeline = FluxPipeline.from_pretrained(folders[False])
    assert teacher.net.guidance is None
    assert "guidance_scale" not in teacher.usage
    assert teacher.denoiser.schedule.to_json() == Rectified(1000).to_json()
    pipeline.set_progress_bar_config(disable=True)
    start = torch.randn(2, *teacher.sample_shape, generator=torch.Generator().manual_seed(5))
    packed = pipeline(
        PROMPTS,
        negative_prompt=["", ""],
        true_cfg_scale=3.0,
        num_inference_steps=4,
        latents=pack(start),
        max_sequence_length=LENGTH,
        height=8,
        width=8,
        output_type="latent",
    ).images
    times = time_grid(teacher.denoiser.schedule, 4)
    ours = solve(teacher.guided(3.0), start, times, teacher.encode(PROMPTS))
    torch.testing.assert_close(ours, unpack(packed, 4, 4), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("dev", "length"), [(True, 512), (False, 256)])
def test_t5_reads_as_many_tokens_as_it_was_trained_with(folders, dev, length):
    teacher = load_teacher("flux", folders[dev])
    teacher.pipeline.tokenizer_2.model_max_length = 4096
    assert teacher.length("tokenizer_2") == length
    assert teacher.length("tokenizer") == LENGTH
