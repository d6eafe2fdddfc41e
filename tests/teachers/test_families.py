"""Every family of pipelines against diffusers' own, from a tiny checkpoint on the disk."""

import inspect
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from tiny import LENGTH, save

from edgedistill.diffusion.solvers import solve
from edgedistill.students.folder import load_student
from edgedistill.teachers import load_teacher
from edgedistill.teachers.schedulers import sibling
from edgedistill.tiny import TINY, make_tiny

PROMPTS = ["red", "blue"]

ASKED = {
    "flux": {"max_sequence_length": LENGTH, "height": 8, "width": 8},
    "pixart": {"max_sequence_length": LENGTH, "use_resolution_binning": False},
    "sana": {
        "max_sequence_length": LENGTH,
        "use_resolution_binning": False,
        "complex_human_instruction": None,
        "height": 32,
        "width": 32,
    },
    "sd3": {"max_sequence_length": LENGTH},
    "wan": {"max_sequence_length": LENGTH, "height": 32, "width": 32, "num_frames": 5},
}
"""What a family's pipeline is told besides, to draw pictures as small as these."""

STUDENT_GUIDANCE = {"flux": 3.5}
"""The scale a student's pipeline is told, where that is not 1."""


def same(x):
    return x


LAYOUT = {
    "flux": (
        lambda x: FluxPipeline._pack_latents(x, *x.shape),
        lambda tokens: FluxPipeline._unpack_latents(tokens, 8, 8, 2),
    )
}
"""From our latents to a pipeline's and back, where it has others."""


PICTURES = {"dit", "unet2d"}
"""Families whose pipelines neither take nor give latents: their own tests compare pictures."""

UNSCALED = {"wan"}
"""Families whose latents have no one scaling: their own tests compare what is decoded."""


@pytest.fixture(scope="module", params=sorted(TINY.keys() - PICTURES))
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    return make_tiny(family, tmp_path_factory.mktemp(family) / "teacher")


def opened(folder):
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents(family, pipeline, **choices):
    there, back = LAYOUT.get(family, (same, same))
    given = {**ASKED.get(family, {}), **choices}
    if "latents" in given:
        given["latents"] = there(given["latents"])
    return back(pipeline(PROMPTS, output_type="latent", return_dict=False, **given)[0])


@pytest.mark.parametrize("scale", [1.0, 3.5])
def test_our_guided_solver_is_the_pipelines(family, folder, scale):
    teacher, pipeline = load_teacher(family, folder), opened(folder)
    pipeline.scheduler = sibling(pipeline.scheduler)
    start = torch.randn(2, *teacher.sample_shape, generator=torch.Generator().manual_seed(5))
    asked = {"num_inference_steps": 5, "guidance_scale": scale}
    expected = latents(family, pipeline, latents=start, **asked)
    ours = solve(teacher.guided(scale), start, teacher.grid(5), teacher.encode(PROMPTS))
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("sampler", ["renoise", "ddim"])
def test_diffusers_draws_the_students_picture(family, folder, tmp_path, sampler):
    teacher = load_teacher(family, folder)
    prediction = teacher.denoiser.prediction
    place = save(tmp_path / "student", teacher, teacher.net, prediction, 4, sampler=sampler)
    student, generator = load_student(place), torch.Generator().manual_seed(11)
    first, *later = student.table.draw((2, *teacher.sample_shape), generator)
    # Noise between steps is drawn in the pipeline's layout.
    there, back = LAYOUT.get(family, (same, same))
    noise = [first, *(back(eps.reshape(there(eps).shape)) for eps in later)]
    ours = student.sample(student.teacher.encode(PROMPTS), noise)
    pipeline = opened(place)
    # Not every pipeline hands a generator on to its scheduler; all fall back on the global one.
    torch.manual_seed(11)
    scale = STUDENT_GUIDANCE.get(family, 1.0)
    theirs = latents(family, pipeline, num_inference_steps=4, guidance_scale=scale)
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    card, word = (place / "README.md").read_text(), "max_sequence_length"
    takes = word in inspect.signature(type(pipeline).__call__).parameters
    assert card.count(f"{word}={ASKED.get(family, {}).get(word, '')}") == takes


@pytest.mark.parametrize("family", sorted(TINY.keys() - PICTURES - UNSCALED), indirect=True)
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


@pytest.mark.parametrize("family", ["dit", "sdxl", "wan"])
def test_a_missing_or_gated_model_says_how_to_name_a_copy(family):
    with pytest.raises(ValueError, match=r"'nobody/nothing'.*hf auth login.*teacher.path=FOLDER"):
        load_teacher(family, "nobody/nothing")
