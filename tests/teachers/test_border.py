"""What a family's own pipeline does between latents, pictures and prompts is what is done here."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FluxImg2ImgPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
)

from edgedistill.data.pictures import Codec
from edgedistill.plugins import resolve
from edgedistill.teachers import load_teacher
from edgedistill.teachers.border_proof import border_differences
from edgedistill.tiny import TINY

STATISTICS = {"latents_mean": [-1.7, 1.9, -1.4, 2.5], "latents_std": [8.5, 5.9, 6.5, 5.2]}

CONFIGS = {
    "statistics": STATISTICS,
    "mean alone": {"latents_mean": [-1.7, 1.9, -1.4, 2.5]},
    "shift": {"shift_factor": 0.7},
    "all": {**STATISTICS, "shift_factor": -0.4, "scaling_factor": 0.3},
}
"""Of an autoencoder; which of them counts is the pipeline's matter."""

PICTURES = sorted(TINY.keys() - {"unet2d", "wan"})

IMG2IMG = {
    "flux": FluxImg2ImgPipeline,
    "sd3": StableDiffusion3Img2ImgPipeline,
    "sdxl": StableDiffusionXLImg2ImgPipeline,
    "stable_diffusion": StableDiffusionImg2ImgPipeline,
}


def tiny(family):
    torch.manual_seed(0)
    return resolve("family", TINY, family, "")()


def saved(family, place, **vae):
    made = tiny(family)
    if vae:
        made.vae.register_to_config(**vae)
    made.save_pretrained(place)
    return place


@pytest.mark.parametrize("family", sorted(TINY))
def test_a_tiny_teacher_differs_in_nothing(family, tmp_path):
    found = border_differences(load_teacher(family, saved(family, tmp_path)))
    assert found.keys() == {"prompt", "decode"} | ({"encode"} if family != "unet2d" else set())
    assert max(found.values()) < 1e-5


@pytest.mark.parametrize("config", sorted(CONFIGS))
@pytest.mark.parametrize("family", PICTURES)
def test_an_autoencoders_numbers_are_read_as_its_pipeline_reads_them(family, config, tmp_path):
    teacher = load_teacher(family, saved(family, tmp_path, **CONFIGS[config]))
    assert max(border_differences(teacher).values()) < 1e-4
    x0 = torch.randn(2, *teacher.sample_shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(teacher.scaling.inverse(teacher.scaling(x0)), x0)


@pytest.mark.parametrize("config", sorted(CONFIGS))
@pytest.mark.parametrize("family", sorted(IMG2IMG))
def test_pictures_become_the_latents_that_its_pipeline_makes_of_them(family, config, tmp_path):
    teacher = load_teacher(family, saved(family, tmp_path, **CONFIGS[config]))
    codec = Codec(teacher)
    pictures = torch.randint(256, (2, *codec.shape), generator=torch.Generator().manual_seed(3))
    pipeline = IMG2IMG[family](**DiffusionPipeline.from_pretrained(tmp_path).components)
    own, values = pipeline.vae.encode, pictures.float() / 127.5 - 1
    # Its posterior's mode, and no noise on what becomes of it.
    pipeline.vae.encode = lambda x: SimpleNamespace(latents=own(x).latent_dist.mode())
    pipeline.register_modules(scheduler=Noiseless())
    with torch.no_grad():
        if family == "flux":
            expected = pipeline._encode_vae_image(values, None)
        else:
            expected = pipeline.prepare_latents(values, 1, 2, 1, torch.float32, "cpu")
    torch.testing.assert_close(codec.encode(pictures.byte()), expected, atol=1e-4, rtol=1e-4)


class Noiseless:
    def add_noise(self, x0, noise, t):
        return x0

    def scale_noise(self, x0, t, noise):
        return x0
