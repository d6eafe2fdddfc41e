"""Stable Diffusion against diffusers' own pipeline, on real tiny networks."""

import json
import re
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from safetensors.torch import load_file
from tiny import make_pipeline, save

from edgedistill.diffusion.multistep import solver_table
from edgedistill.diffusion.solvers import solve, time_grid
from edgedistill.objectives.solvers.d_ode import corrected
from edgedistill.students.folder import load_student
from edgedistill.teachers import load_teacher
from edgedistill.teachers.families.stable_diffusion import StableDiffusion

PROMPTS = ["red", "blue"]


@pytest.fixture(scope="module")
def teacher(tiny_sd) -> StableDiffusion:
    return StableDiffusion.load(str(tiny_sd))


def start(count: int = 2, seed: int = 5) -> torch.Tensor:
    return torch.randn(count, 4, 4, 4, generator=torch.Generator().manual_seed(seed))


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon", "sample"])
@pytest.mark.parametrize("scale", [1.0, 3.5])
def test_our_guided_ddim_is_the_pipelines(tiny_sd, tmp_path, prediction, scale):
    folder = tmp_path / "sd"
    shutil.copytree(tiny_sd, folder)
    scheduler = DDIMScheduler(
        prediction_type=prediction,
        clip_sample=False,
        timestep_spacing="trailing",
        beta_schedule="scaled_linear",
    )
    scheduler.save_pretrained(folder / "scheduler")
    pipeline = quiet(StableDiffusionPipeline.from_pretrained(folder))
    expected = pipeline(
        PROMPTS, num_inference_steps=5, guidance_scale=scale, latents=start(), output_type="latent"
    ).images
    teacher = StableDiffusion.load(str(folder))
    times = time_grid(teacher.denoiser.schedule, 5)
    ours = solve(teacher.guided(scale), start(), times, teacher.encode(PROMPTS))
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-3)


def test_our_pictures_are_the_pipelines(tiny_sd, teacher):
    pipeline = quiet(StableDiffusionPipeline.from_pretrained(tiny_sd))
    latents = start()
    with torch.no_grad():
        expected = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    torch.testing.assert_close(teacher.decode(latents), expected)
    embeds, null = pipeline.encode_prompt(PROMPTS, torch.device("cpu"), 1, True)
    torch.testing.assert_close(teacher.encode(PROMPTS)["encoder_hidden_states"], embeds)
    torch.testing.assert_close(teacher.null()["encoder_hidden_states"], null[:1])


def test_prompts_are_encoded_once(tiny_sd):
    teacher = StableDiffusion.load(str(tiny_sd))
    calls = []
    teacher.text_encoder.register_forward_hook(lambda m, args, out: calls.append(len(args[0])))
    first = teacher.encode(["red", "re", "red"])["encoder_hidden_states"]
    assert calls == [2]
    assert torch.equal(first[0], first[2])
    again = teacher.encode(["re", "d", "red"])["encoder_hidden_states"]
    assert calls == [2, 1]
    assert torch.equal(again[0], first[1])
    assert torch.equal(again[2], first[0])


def test_a_cache_smaller_than_a_batch_still_answers(tiny_sd):
    teacher = StableDiffusion.load(str(tiny_sd))
    teacher._cache.limit = 2
    alone = teacher.encode(["e"])["encoder_hidden_states"]
    many = teacher.encode(["r", "e", "d", "re"])["encoder_hidden_states"]
    torch.testing.assert_close(many[1:2], alone)
    torch.testing.assert_close(teacher.encode(["r"])["encoder_hidden_states"], many[:1])


@pytest.mark.parametrize(
    ("steps", "sampler"),
    [
        (4, "renoise"),
        (2, "renoise"),
        (1, "renoise"),
        (3, "renoise"),
        (6, "renoise"),
        (4, "ddim"),
        (3, "ddim"),
        (1, "ddim"),
        (6, "ddim"),
        (30, "ddim"),
    ],
)
def test_diffusers_draws_the_students_picture(teacher, tmp_path, steps, sampler):
    denoiser = teacher.denoiser
    folder = save(
        tmp_path / "student",
        teacher,
        teacher.net,
        denoiser.prediction,
        steps,
        sampler=sampler,
    )
    student = load_student(folder)
    cond = student.teacher.encode(PROMPTS)
    noise = student.table.draw((2, 4, 4, 4), torch.Generator().manual_seed(11))
    ours = student.teacher.decode(student.sample(cond, noise))
    pipeline = quiet(DiffusionPipeline.from_pretrained(folder))
    theirs = pipeline(
        PROMPTS,
        num_inference_steps=steps,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(11),
        output_type="pt",
    ).images
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, atol=1e-3, rtol=0)


@pytest.mark.parametrize("spacing", ["linspace"])
def test_diffusers_walks_times_spaced_otherwise_when_told_them(teacher, tmp_path, spacing):
    prediction, place = teacher.denoiser.prediction, tmp_path / "student"
    folder = save(place, teacher, teacher.net, prediction, 4, sampler="ddim", spacing=spacing)
    student = load_student(folder)
    told = re.search(r"timesteps=(\[.*?\])", (folder / "README.md").read_text())
    assert told
    timesteps = json.loads(told[1])
    assert timesteps == [round(row.t) for row in student.table.rows]
    cond = student.teacher.encode(PROMPTS)
    noise = student.table.draw((2, 4, 4, 4), torch.Generator().manual_seed(11))
    ours = student.teacher.decode(student.sample(cond, noise))
    pipeline = quiet(DiffusionPipeline.from_pretrained(folder))
    theirs = pipeline(
        PROMPTS,
        timesteps=timesteps,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(11),
        output_type="pt",
    ).images
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, atol=1e-3, rtol=0)


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_a_student_diffusers_cannot_walk_is_refused(teacher, tmp_path, spacing):
    """The one scheduler that renoises has a boundary at the last of these times."""
    with pytest.raises(ValueError, match=r"no diffusers scheduler.*spacing=trailing"):
        save(
            tmp_path / "student",
            teacher,
            teacher.net,
            teacher.denoiser.prediction,
            4,
            sampler="renoise",
            spacing=spacing,
        )
    assert list(tmp_path.iterdir()) == []


def test_coefficients_diffusers_does_not_know_are_refused(teacher):
    schedule, prediction = teacher.denoiser.schedule, teacher.denoiser.prediction
    times = time_grid(schedule, 4)
    moves = corrected(schedule, prediction, times, torch.tensor([0, 0.1, 0.1, 0.1]))
    table = solver_table(schedule, prediction, times, moves, keeps=prediction)
    with pytest.raises(ValueError, match="no diffusers scheduler"):
        teacher.check(table)


def test_weights_are_safetensors_and_the_card_says_how_to_use_it(teacher, tmp_path):
    folder = save(tmp_path / "student", teacher, teacher.net, teacher.denoiser.prediction, 4)
    suffixes = {file.suffix for file in folder.rglob("*") if file.is_file()}
    assert suffixes <= {".json", ".safetensors", ".txt", ".md"}
    assert "num_inference_steps=4" in (folder / "README.md").read_text()
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(weights["conv_in.weight"], teacher.net.unet.conv_in.weight)


def test_a_spawn_is_a_trainable_copy(teacher):
    spawned = teacher.spawn()
    assert all(p.requires_grad for p in spawned.parameters())
    assert not any(p.requires_grad for p in teacher.denoiser.parameters())
    cond, t = teacher.encode(PROMPTS), torch.tensor([0.3, 0.9])
    torch.testing.assert_close(
        spawned(start(), t, cond), teacher.denoiser(start(), t, cond), atol=0, rtol=0
    )
    with torch.no_grad():
        next(spawned.parameters()).add_(1)
    assert not torch.equal(next(spawned.parameters()), next(teacher.denoiser.parameters()))


def test_zero_terminal_snr_is_read_from_the_scheduler(tmp_path):
    torch.manual_seed(0)
    make_pipeline(rescale_betas_zero_snr=True).save_pretrained(tmp_path / "sd")
    teacher = StableDiffusion.load(str(tmp_path / "sd"))
    assert teacher.denoiser.schedule.alpha(torch.ones(1)).item() == pytest.approx(0, abs=1e-6)
    ours = solve(
        teacher.guided(2.0),
        start(),
        time_grid(teacher.denoiser.schedule, 4),
        teacher.encode(PROMPTS),
    )
    assert bool(ours.isfinite().all())


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "model_index.json").unlink(), "no model_index"),
        (lambda f: shutil.rmtree(f / "unet"), "has no unet/"),
        (lambda f: (f / "vae" / "config.json").unlink(), "cannot load"),
        (
            lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"torn"),
            "cannot load",
        ),
        (lambda f: (f / "model_index.json").write_text("{"), "cannot load|model_index"),
        (
            lambda f: (f / "scheduler" / "scheduler_config.json").write_text(
                '{"_class_name": "DDIMScheduler", "prediction_type": "velocity"}'
            ),
            "velocity",
        ),
    ],
)
def test_a_broken_folder_is_named_in_one_line(tiny_sd, tmp_path, break_it, message):
    folder = tmp_path / "sd"
    shutil.copytree(tiny_sd, folder)
    break_it(folder)
    with pytest.raises(ValueError, match=message) as caught:
        StableDiffusion.load(str(folder))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["emojy", "/no/such/folder", "./teacher", "a/b/c"])
def test_a_teacher_that_is_nowhere_is_named(name):
    with pytest.raises(ValueError, match=name):
        load_teacher("stable_diffusion", name)


def test_a_hub_id_that_cannot_be_reached_is_named(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="nobody/nothing"):
        load_teacher("stable_diffusion", "nobody/nothing")


def test_an_unknown_family_is_named():
    with pytest.raises(ValueError, match=r"unknown teacher family 'stable_difusion'.*did you"):
        load_teacher("stable_difusion", "emoji")
