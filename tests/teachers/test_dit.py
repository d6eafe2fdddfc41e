"""What is particular to DiT: classes for prompts, by name and by number."""

import pytest
import torch
from diffusers import DiTPipeline, EulerDiscreteScheduler
from tiny import save

from edgedistill.diffusion.solvers import solve
from edgedistill.students.folder import load_student
from edgedistill.teachers import load_teacher
from edgedistill.teachers.families.dit import DiT
from edgedistill.tiny import make_tiny

NULL = 1000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny("dit", tmp_path_factory.mktemp("dit") / "teacher")


def pictures(pipeline, classes, seed, **choices):
    pipeline.set_progress_bar_config(disable=True)
    torch.manual_seed(seed)  # which the scheduler falls back on, too
    drawn = pipeline(classes, output_type="pt", **choices).images
    return 2 * drawn - 1


@pytest.mark.parametrize("scale", [1.0, 3.5])
def test_our_guided_solver_draws_the_pipelines_pictures(folder, scale):
    teacher, pipeline = load_teacher("dit", folder), DiTPipeline.from_pretrained(folder)
    expected = pictures(pipeline, [0, 7], 5, num_inference_steps=5, guidance_scale=scale)
    start = torch.randn(2, *teacher.sample_shape, generator=torch.Generator().manual_seed(5))
    x0 = solve(teacher.guided(scale), start, teacher.grid(5), teacher.encode(["a red one", "7"]))
    torch.testing.assert_close(teacher.decode(x0).clamp(-1, 1), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("sampler", ["renoise", "ddim"])
def test_diffusers_draws_the_students_picture(folder, tmp_path, sampler):
    teacher = load_teacher("dit", folder)
    prediction = teacher.denoiser.prediction
    place = save(tmp_path / "student", teacher, teacher.net, prediction, 4, sampler=sampler)
    student, pipeline = load_student(place), DiTPipeline.from_pretrained(place)
    assert pipeline.labels == DiTPipeline.from_pretrained(folder).labels
    noise = student.table.draw((2, *teacher.sample_shape), torch.Generator().manual_seed(11))
    ours = student.teacher.decode(student.sample(student.teacher.encode(["red", "2"]), noise))
    theirs = pictures(
        pipeline, pipeline.get_label_ids(["red", "red blue"]), 11,
        num_inference_steps=4, guidance_scale=1.0,
    )  # fmt: skip
    torch.testing.assert_close(ours.clamp(-1, 1), theirs, atol=1e-3, rtol=1e-3)


def test_a_class_is_named_or_numbered(folder):
    teacher = load_teacher("dit", folder)
    found = teacher.encode(["red blue", "2", "blue blue", "999", ""])["class_labels"]
    assert found.tolist() == [2, 2, 1, 999, NULL]
    assert teacher.null()["class_labels"].tolist() == [NULL]


@pytest.mark.parametrize("name", ["bleu", "1000", "red, blue"])
def test_an_unknown_class_is_refused(folder, name):
    with pytest.raises(ValueError, match=f"unknown class '{name}'.* from 0 to 999 or a name"):
        load_teacher("dit", folder).encode([name])


def test_no_label_is_dropped_while_training(folder):
    denoiser = load_teacher("dit", folder).spawn().train()
    x, t, cond = torch.ones(64, 4, 4, 4), torch.tensor(0.5), {"class_labels": torch.arange(64)}
    torch.testing.assert_close(denoiser(x, t, cond), denoiser.eval()(x, t, cond))


def test_a_scheduler_whose_noise_the_pipeline_does_not_scale_is_refused(folder):
    pipeline = DiTPipeline.from_pretrained(folder)
    pipeline.register_modules(scheduler=EulerDiscreteScheduler())
    with pytest.raises(ValueError, match=r"EulerDiscreteScheduler needs its first noise scaled"):
        DiT("tiny", str(folder), pipeline)
