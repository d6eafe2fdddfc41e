"""Pixel U-Nets: without prompts or with classes, over trained timesteps or EDM's noise levels."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, EDMEulerScheduler
from safetensors.torch import load_file
from tiny import save

from edgedistill import assets, recipes
from edgedistill.common.progress import bar
from edgedistill.diffusion.schedules import Karras
from edgedistill.diffusion.solvers import solve
from edgedistill.draw.bench import measure
from edgedistill.draw.generate import generate
from edgedistill.evaluation.run import evaluate_subjects
from edgedistill.runs.run_dir import open_run
from edgedistill.students.folder import load_student
from edgedistill.teachers import load_teacher
from edgedistill.tiny import make_tiny
from edgedistill.tiny.unet2d import pipeline as make
from edgedistill_export.bundle import export_student
from edgedistill_runtime import Pipeline
from edgedistill_runtime.bench import measure as measure_bundle

SHAPE = (3, 8, 8)
EDM = {"sigma_min": 0.01, "sigma_max": 40.0, "sigma_data": 0.4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny("unet2d", tmp_path_factory.mktemp("unet2d") / "teacher")


def written(place, **choices):
    torch.manual_seed(0)
    make(**choices).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    return written(tmp_path_factory.mktemp("classes") / "teacher", classes=10)


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def edm(request, tmp_path_factory):
    scheduler = EDMEulerScheduler(**EDM, prediction_type=request.param)
    return written(tmp_path_factory.mktemp("edm") / "teacher", scheduler=scheduler)


def draw(count, seed):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def pictures(pipeline, seed, **choices):
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        generator=torch.Generator().manual_seed(seed), output_type="pt", return_dict=False,
        **choices,
    )[0]  # fmt: skip
    return 2 * torch.as_tensor(drawn) - 1


def run(folder, out, *words):
    given = [f"teacher.path={folder}", "teacher.family=unet2d", "teacher.guidance=1"]
    given += ["train.steps=2", "train.batch_size=2", "student.steps=2", *words]
    opened = open_run(recipes.load("emoji-lcm", given), str(out), False)
    return opened.train(lambda step, figures: None)


def test_our_solver_draws_the_pipelines_pictures(folder):
    teacher, pipeline = load_teacher("unet2d", folder), DDIMPipeline.from_pretrained(folder)
    expected = pictures(pipeline, 5, batch_size=2, num_inference_steps=5)
    x0 = solve(teacher.guided(1.0), draw(2, 5), teacher.grid(5), teacher.encode(["", ""]))
    torch.testing.assert_close(teacher.decode(x0), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("sampler", ["renoise", "ddim"])
def test_diffusers_draws_the_students_picture(folder, tmp_path, sampler):
    teacher = load_teacher("unet2d", folder)
    prediction = teacher.denoiser.prediction
    place = save(tmp_path / "student", teacher, teacher.net, prediction, 4, sampler=sampler)
    student, generator = load_student(place), torch.Generator().manual_seed(11)
    ours = student.teacher.decode(student.sample({}, student.table.draw((2, *SHAPE), generator)))
    pipeline = DDPMPipeline.from_pretrained(place)
    theirs = pictures(pipeline, 11, batch_size=2, num_inference_steps=4)
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_a_ddim_pipelines_folder_is_read_alike(folder, tmp_path):
    DDIMPipeline.from_pretrained(folder).save_pretrained(tmp_path / "ddim")
    ours, other = load_teacher("unet2d", tmp_path / "ddim"), load_teacher("unet2d", folder)
    x, t = draw(2, 0), torch.tensor(0.7)
    torch.testing.assert_close(ours.denoiser(x, t, {}), other.denoiser(x, t, {}))


def test_the_edm_solver_walks_as_diffusers_scheduler(edm):
    teacher, pipeline = load_teacher("unet2d", edm), DDPMPipeline.from_pretrained(edm)
    scheduler, unet = pipeline.scheduler, pipeline.unet.eval()
    assert isinstance(teacher.denoiser.schedule, Karras)
    scheduler.set_timesteps(6)
    start = draw(2, 3)
    x = start * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        with torch.no_grad():
            f = unet(scheduler.scale_model_input(x, t), t).sample
        x = scheduler.step(f, t, x).prev_sample
    ours = solve(teacher.guided(1.0), start, teacher.grid(6), {})
    torch.testing.assert_close(ours, x / EDM["sigma_data"], atol=1e-3, rtol=1e-3)


def test_edm_pictures_are_x0_in_units_of_sigma_data(edm):
    teacher = load_teacher("unet2d", edm)
    torch.testing.assert_close(teacher.decode(torch.ones(1, *SHAPE)), torch.full((1, *SHAPE), 0.4))
    assert teacher.decode(torch.full((1, *SHAPE), -9.0)).min() == -1
    assert teacher.describe()["scaling_factor"] == pytest.approx(2.5)


def test_an_edm_student_keeps_the_preconditioning(edm, tmp_path):
    teacher = load_teacher("unet2d", edm)
    place = save(tmp_path / "student", teacher, teacher.net, teacher.denoiser.prediction, 2)
    student = load_student(place)
    assert student.teacher.denoiser.schedule.to_json() == teacher.denoiser.schedule.to_json()
    assert "edgedistill generate" in (place / "README.md").read_text()
    x, t = draw(2, 0), torch.tensor(0.7)
    expected = teacher.denoiser(x, t, {})
    torch.testing.assert_close(student.teacher.denoiser(x, t, {}), expected)


def test_a_class_is_a_number(classes):
    teacher = load_teacher("unet2d", classes)
    found = teacher.encode(["3", "9"])
    assert found["class_labels"].tolist() == [3, 9]
    x, t = draw(2, 0), torch.tensor(0.5)
    unet = DDPMPipeline.from_pretrained(classes).unet.eval()
    with torch.no_grad():
        expected = unet(x, torch.tensor([499.0, 499.0]), torch.tensor([3, 9])).sample
    torch.testing.assert_close(teacher.denoiser.output(x, t, found), expected)


@pytest.mark.parametrize("name", ["", "10", "cat"])
def test_an_unknown_class_is_refused(classes, name):
    with pytest.raises(ValueError, match=f"unknown class '{name}'; a number from 0 to 9 expected"):
        load_teacher("unet2d", classes).encode([name])


def test_guidance_is_refused(folder):
    with pytest.raises(ValueError, match=r"teacher.guidance=2: 'teacher' has no null condition"):
        load_teacher("unet2d", folder).guided(2.0)


def changed(folder, place, file, **values):
    DDPMPipeline.from_pretrained(folder).save_pretrained(place)
    config = json.loads((place / file).read_text())
    (place / file).write_text(json.dumps({**config, **values}))
    return place


def test_what_is_unknown_is_named(folder, tmp_path):
    scheduler = "scheduler/scheduler_config.json"
    place = changed(folder, tmp_path / "a", scheduler, prediction_type="flow")
    with pytest.raises(ValueError, match="unknown prediction_type 'flow'"):
        load_teacher("unet2d", place)
    place = written(tmp_path / "b", scheduler=EDMEulerScheduler(sigma_schedule="exponential"))
    with pytest.raises(ValueError, match="unknown sigma_schedule 'exponential'"):
        load_teacher("unet2d", place)


def test_a_folder_of_another_family_is_named(folder):
    with pytest.raises(ValueError, match=r"looks like unet2d: choose teacher\.family=unet2d"):
        load_teacher("stable_diffusion", folder)
    with pytest.raises(ValueError, match="unet2d teachers have no decoder to replace"):
        load_teacher("unet2d", folder).use_decoder("x")


def test_without_data_the_teacher_makes_samples(folder, tmp_path):
    place = tmp_path / "teacher"
    DDPMPipeline.from_pretrained(folder).save_pretrained(place)
    made = run(place, tmp_path / "run", "data.samples=5", "teacher.steps=2")
    data = load_file(tmp_path / "run" / "data" / "latents.safetensors")["latents"]
    assert data.shape == (5, *SHAPE)
    assert not (made / "lora").exists()
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")
    with pytest.raises(ValueError, match="takes no prompts"):
        run(place, tmp_path / "other", f"data.prompts={prompts}")


@pytest.fixture(scope="module")
def student(folder, tmp_path_factory):
    clip = assets.ROOT / "emoji" / "clip"
    out = tmp_path_factory.mktemp("run") / "run"
    adapters = ("train.roles=adapters", "train.adapter.rank=2")
    return run(folder, out, f"evaluate.features={clip}", *adapters)


@pytest.fixture(scope="module")
def bundle(student):
    return export_student(student, "ort")


def test_no_lora_is_written_that_no_pipeline_loads(student):
    assert not (student / "lora").exists()
    assert load_student(student).info.lora_scale is None


def test_the_bundle_takes_no_prompts(student, bundle, tmp_path):
    pipe = Pipeline.load(bundle)
    assert pipe.tokenizer is None
    assert set(pipe.graphs) == {"denoiser", "decoder"}
    assert pipe.manifest.parity.graphs["denoiser"].worst >= 60
    assert (pipe.manifest.image.height, pipe.manifest.image.width) == SHAPE[1:]
    assert pipe.manifest.parity.perceptual == pytest.approx(0, abs=1e-4)
    assert pipe.manifest.parity.text_image is None
    for name, source in (("a", student), ("b", bundle)):
        generate(str(source), None, seed=3, count=2, out=tmp_path / f"{name}.npy")
        with pytest.raises(ValueError, match="takes no prompt, got 'cat'"):
            generate(str(source), "cat", seed=3, count=2, out=tmp_path / "c.npy")
    ours, theirs = (np.load(tmp_path / f"{name}.npy") for name in "ab")
    assert ours.shape == (2, 8, 8, 3)
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_pictures_without_captions_are_judged_by_distance_alone(student, bundle, tmp_path):
    with bar("evaluate", 1, 0) as meter:
        figures, _ = evaluate_subjects([str(student), str(bundle)], 4, None, None, meter)
    assert figures["student"].keys() == {
        *("calls", "fd", "kid", "samples", "fd_ratio", "spread", "to_teacher", "memory")
    }
    assert figures[f"bundle:{bundle.name}"]["samples"] == 4
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")
    with bar("evaluate", 1, 0) as meter, pytest.raises(ValueError, match="takes no prompts"):
        evaluate_subjects([str(student)], 4, prompts, None, meter)


def test_teacher_and_student_are_timed(folder, student):
    for place, steps in ((folder, 2), (student, None)):
        figures = measure(str(place), steps, 1.0, 1)
        assert figures["steps"] == 2
        assert figures["stages"].keys() == {"denoiser", "decoder", "other"}


def test_a_bundle_of_classes_reads_their_numbers(classes, tmp_path):
    teacher = load_teacher("unet2d", classes)
    place = save(tmp_path / "student", teacher, teacher.net, teacher.denoiser.prediction, 1)
    bundle = export_student(place, "ort")
    pipe, student = Pipeline.load(bundle), load_student(place)
    noise = student.table.draw((2, *SHAPE), torch.Generator().manual_seed(0))
    ours = student.sample(student.teacher.encode(["3", "9"]), noise)
    theirs = pipe(["3", "9"], noise=[z.numpy() for z in noise]).samples
    torch.testing.assert_close(torch.from_numpy(theirs), ours, atol=1e-4, rtol=1e-4)
    assert measure_bundle(bundle, 1)["p50_s"] > 0
    assert measure(str(place), None, 1.0, 1)["stages"].keys() >= {"text_encoder", "denoiser"}


def test_grey_pictures_have_three_channels(tmp_path):
    made = make()
    config = {**made.unet.config, "in_channels": 1, "out_channels": 1, "_use_default_values": []}
    made.register_modules(unet=type(made.unet).from_config(config))
    made.save_pretrained(tmp_path / "grey")
    teacher = load_teacher("unet2d", tmp_path / "grey")
    assert teacher.sample_shape == (1, 8, 8)
    assert teacher.decode(torch.zeros(2, 1, 8, 8)).shape == (2, *SHAPE)
