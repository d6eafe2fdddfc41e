"""Flow schedulers of diffusers in our words and back."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from tiny import save

from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Rectified
from edgedistill.diffusion.solvers import time_grid
from edgedistill.students.folder import load_student
from edgedistill.teachers import load_teacher
from edgedistill.teachers.flow import flow_schedule, flow_schedulers
from edgedistill.tiny.sd3 import pipeline as make_sd3


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 50])
@pytest.mark.parametrize("shift", [0.7, 1.0, 1.58, 3.0, 6.0])
def test_a_scheduler_asked_for_a_number_takes_trailing_steps(shift, steps):
    schedule = Rectified(1000, shift)
    times = time_grid(schedule, steps)
    table = few_step_table(schedule, Prediction.FLOW, times, "ddim")
    (scheduler,) = flow_schedulers(1000, table)
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(
        scheduler.sigmas.double(), schedule.sigma(times), atol=1e-6, rtol=1e-5
    )


def test_steps_that_no_shift_reaches_have_no_scheduler():
    schedule = Rectified(1000)
    times = torch.tensor([1.0, 0.9999, 0.5, 0.0])
    table = few_step_table(schedule, Prediction.FLOW, times, "ddim")
    assert list(flow_schedulers(1000, table)) == []


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("tokens", [4, 1024, 4096])
def test_a_shift_by_size_is_diffusers(tokens, kind):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    times = torch.linspace(1, 0.1, 10, dtype=torch.float64)
    scheduler.set_timesteps(sigmas=times.numpy().astype(np.float32), mu=calculate_shift(tokens))
    ours = flow_schedule(scheduler, tokens, "here").sigma(times)
    torch.testing.assert_close(ours, scheduler.sigmas[:-1].double(), atol=1e-6, rtol=1e-5)


def test_other_schedulers_are_refused():
    with pytest.raises(
        ValueError,
        match=r"DDIMScheduler is .* with one of flow matching",
    ):
        flow_schedule(DDIMScheduler(), 4, "here")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd3") / "teacher"
    make_sd3(shift=2.0).save_pretrained(folder)
    return load_teacher("sd3", folder)


def test_a_students_folder_keeps_its_teachers_schedule(teacher, tmp_path):
    place = save(tmp_path / "student", teacher, teacher.net, Prediction.FLOW, 4)
    student = load_student(place)
    assert student.teacher.pipeline.scheduler.config.shift != 2.0
    assert student.teacher.denoiser.schedule.to_json() == Rectified(1000, 2.0).to_json()


def test_steps_that_no_scheduler_takes_are_refused(teacher, tmp_path):
    with pytest.raises(ValueError, match=r"choose student\.spacing=trailing"):
        save(tmp_path / "s", teacher, teacher.net, Prediction.FLOW, 4, spacing="leading")
