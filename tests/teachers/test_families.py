"""Every family of pipelines against diffusers' own, from a tiny checkpoint on the disk."""

import shutil

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from tiny import save

from edgedistill.sampling import solve, time_grid
from edgedistill.student import load_student
from edgedistill.teachers import load_teacher
from edgedistill.tiny import TINY, make_tiny

PROMPTS = ["red", "blue"]

DISCRETE = {"timestep_spacing": "trailing", "clip_sample": False}
"""How diffusers' DDIM is asked for the steps that ours are."""


@pytest.fixture(scope="module", params=sorted(TINY))
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    return make_tiny(family, tmp_path_factory.mktemp(family) / "teacher")


def opened(folder):
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents(pipeline, **choices):
    return pipeline(PROMPTS, output_type="latent", **choices).images


@pytest.mark.parametrize("scale", [1.0, 3.5])
def test_our_guided_solver_is_the_pipelines(family, folder, scale):
    teacher, pipeline = load_teacher(family, folder), opened(folder)
    if "trained_betas" in pipeline.scheduler.config:
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **DISCRETE)
    start = torch.randn(2, *teacher.sample_shape, generator=torch.Generator().manual_seed(5))
    expected = latents(pipeline, num_inference_steps=5, guidance_scale=scale, latents=start)
    times = time_grid(teacher.denoiser.schedule, 5)
    ours = solve(teacher.guided(scale), start, times, teacher.encode(PROMPTS))
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("sampler", ["renoise", "ddim"])
def test_diffusers_draws_the_students_picture(family, folder, tmp_path, sampler):
    teacher = load_teacher(family, folder)
    prediction = teacher.denoiser.prediction
    place = save(tmp_path / "student", teacher, teacher.net, prediction, 4, sampler=sampler)
    student, generator = load_student(place), torch.Generator().manual_seed(11)
    noise = student.table.draw((2, *teacher.sample_shape), generator)
    ours = student.sample(student.teacher.encode(PROMPTS), noise)
    choices = {"generator": generator.manual_seed(11), "guidance_scale": 1.0}
    theirs = latents(opened(place), num_inference_steps=4, **choices)
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_the_border_to_pictures_is_the_pipelines(family, folder):
    teacher, pipeline = load_teacher(family, folder), opened(folder)
    x0 = torch.randn(2, *teacher.sample_shape, generator=torch.Generator().manual_seed(3))
    vae = pipeline.vae.config
    scaled = x0 / vae.scaling_factor + (getattr(vae, "shift_factor", None) or 0.0)
    with torch.no_grad():
        expected = pipeline.vae.decode(scaled, return_dict=False)[0]
    torch.testing.assert_close(teacher.decode(x0), expected)


def test_a_folder_of_another_family_is_named(family, folder, tmp_path):
    other = "sdxl" if family == "stable_diffusion" else "stable_diffusion"
    copy = shutil.copytree(folder, tmp_path / "copy")
    with pytest.raises(ValueError, match=f"looks like {family}: choose teacher.family={family}"):
        load_teacher(other, copy)
