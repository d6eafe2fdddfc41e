"""A teacher's scheduler, read through its deterministic sibling, against diffusers' own."""

import diffusers
import pytest
import torch

from edgedistill.diffusion.denoiser import Bound, Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Rectified
from edgedistill.diffusion.step_table import Step, TorchStepTable
from edgedistill.teachers import schedulers
from edgedistill.teachers.flow import flow_schedule, shift_asked
from edgedistill.teachers.schedulers import (
    EDM,
    FLOW,
    FLOWS,
    SIBLINGS,
    TRAINED,
    Probe,
    bound_of,
    check_grid,
    check_start,
    discrete_border,
    grid_of,
    kind_of,
    sibling,
)
from edgedistill.teachers.student_schedulers import discrete_schedulers

V = {"prediction_type": "v_prediction"}
COSINE = {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "leading"}

SETTINGS = [
    {},
    {"timestep_spacing": "trailing"},
    {"timestep_spacing": "linspace", "steps_offset": 1},
    {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False},
    {"final_sigmas_type": "sigma_min"},
    {"prediction_type": "sample", "beta_schedule": "scaled_linear"},
    {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", **V},
    {"clip_sample": False, **COSINE},
    {"clip_sample": True, "clip_sample_range": 0.5, **COSINE},
    {"thresholding": True, "sample_max_value": 1.5, **V},
    {"use_karras_sigmas": True, "beta_schedule": "scaled_linear"},
    {"use_exponential_sigmas": True, "beta_schedule": "scaled_linear"},
    {"interpolation_type": "log_linear", "beta_schedule": "scaled_linear"},
    {"trained_betas": torch.linspace(0.001, 0.03, 1000).tolist()},
    {"beta_schedule": "laplace"},
]
"""Each is tried on the classes that know all its keys."""

DISCRETE = [
    name
    for name, found in SIBLINGS.items()
    if found.kind not in (FLOW.kind, "EDMEulerScheduler") and name != "DPMSolverSDEScheduler"
]


def made(name, **settings):
    """The scheduler; None where its class does not know the settings."""
    kind = getattr(diffusers, name)
    scheduler = kind()
    if not all(schedulers.takes(scheduler, key) for key in settings):
        return None
    try:
        return kind(**settings)
    except (NotImplementedError, ValueError):  # a value that the class does not know
        return None


def read(scheduler):
    schedule, prediction = discrete_border(scheduler, "here")
    return Denoiser(Probe(), schedule, prediction, bound_of(scheduler))


@pytest.mark.parametrize("name", DISCRETE)
def test_every_setting_is_drawn_as_diffusers_draws_it(name):
    tried = 0
    for settings in SETTINGS:
        scheduler = made(name, **settings)
        if scheduler is None:
            continue
        denoiser = read(scheduler)
        for steps in (3, 7):
            walker = sibling(scheduler)
            walker.set_timesteps(steps)
            check_grid(walker, grid_of(walker, denoiser.schedule), denoiser, "here")
        tried += 1
    assert tried >= 3


def test_a_grid_of_other_steps_is_refused():
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    denoiser, walker = read(scheduler), sibling(scheduler)
    walker.set_timesteps(4)
    grid = grid_of(walker, denoiser.schedule)
    walker.set_timesteps(5)
    with pytest.raises(ValueError, match=r"here: DDIMScheduler takes other steps"):
        check_grid(walker, grid, denoiser, "here")
    walker.set_timesteps(4)
    clipped = denoiser.with_bound(Bound(0.5))
    with pytest.raises(ValueError, match="takes other steps"):
        check_grid(walker, grid, clipped, "here")


X0 = [
    *("DDIMScheduler", "DDPMScheduler", "LCMScheduler", "EulerDiscreteScheduler"),
    *("EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"),
]
"""Schedulers whose steps tell their estimate of x0."""


@pytest.mark.parametrize("settings", [{}, V, {"clip_sample": True, "clip_sample_range": 0.7}])
@pytest.mark.parametrize("name", X0)
def test_x0_is_the_schedulers_own(name, settings):
    scheduler = made(name, **settings)
    if scheduler is None:
        return
    denoiser = read(scheduler).double()
    scheduler.set_timesteps(4)
    t = scheduler.timesteps[1]
    walker = sibling(scheduler)
    walker.set_timesteps(4)
    index = int((walker.timesteps.double() - float(t)).abs().argmin())
    time = grid_of(walker, denoiser.schedule).starts[index]
    x_t = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    scaled = hasattr(scheduler, "sigmas") and "Sigma" not in name and "DD" not in name
    alpha = float(denoiser.schedule.alpha(time))
    theirs_x = x_t / alpha if scaled and "LCM" not in name else x_t
    seen = scheduler.scale_model_input(theirs_x, t)
    step = scheduler.step(Probe()(seen, t), t, theirs_x)
    theirs = getattr(step, "pred_original_sample", None)
    if theirs is None:
        theirs = step.denoised
    if name == "LCMScheduler":  # its boundary is a student's
        return
    ours = denoiser(x_t, time, {}, net_time=t.double())
    torch.testing.assert_close(ours, theirs.to(ours), atol=1e-3, rtol=1e-3)


WALKED = [
    *((kind, {}) for kind, found in SIBLINGS.items() if found is FLOW),
    *((kind, {"shift": 3.0}) for kind, found in SIBLINGS.items() if found is FLOW),
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 2.0, "shift_terminal": 0.02}),
    ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}),
    *(
        (kind, {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"})
        for kind in (
            *("DPMSolverMultistepScheduler", "UniPCMultistepScheduler"),
            *("DEISMultistepScheduler", "DPMSolverSinglestepScheduler", "SASolverScheduler"),
        )
    ),
]


@pytest.mark.parametrize(("name", "settings"), WALKED)
def test_flows_are_drawn_as_diffusers_draws_them(name, settings):
    scheduler = getattr(diffusers, name)(**settings)
    schedule = flow_schedule(scheduler, 1024, "here")
    assert isinstance(schedule, Rectified)
    denoiser = Denoiser(Probe(), schedule, Prediction.FLOW)
    for steps in (3, 7):
        walker = sibling(scheduler)
        walker.set_timesteps(steps, **shift_asked(walker, schedule))
        check_grid(walker, grid_of(walker, schedule), denoiser, "here")


def test_flow_levels_under_another_prediction_are_refused():
    scheduler = diffusers.UniPCMultistepScheduler(use_flow_sigmas=True)
    with pytest.raises(ValueError, match="prediction_type=epsilon with use_flow_sigmas"):
        flow_schedule(scheduler, 4, "here")


OTHERS = [
    (diffusers.EDMEulerScheduler(), EDM),
    (diffusers.EDMDPMSolverMultistepScheduler(), EDM),
    (diffusers.FlowMatchEulerDiscreteScheduler(), FLOWS),
    (diffusers.UniPCMultistepScheduler(use_flow_sigmas=True), FLOWS),
    (diffusers.CMStochasticIterativeScheduler(), "of a kind that no family reads"),
    (diffusers.IPNDMScheduler(), "of a kind that no family reads"),
]


@pytest.mark.parametrize(("scheduler", "kind"), OTHERS)
def test_a_scheduler_of_another_kind_is_refused_in_a_sentence(scheduler, kind):
    """It names no other class: to exchange the scheduler of a network makes it no teacher."""
    assert kind_of(scheduler) == kind
    name = type(scheduler).__name__
    with pytest.raises(ValueError, match=f"here: {name} is a scheduler {kind}; ") as refused:
        discrete_border(scheduler, "here")
    said = str(refused.value).partition(name)[2]
    assert said.endswith(f"with one {TRAINED} only")
    assert "Scheduler" not in said
    assert len(said) < 150


def test_a_setting_that_no_teacher_may_have_is_refused_by_name():
    scheduler = diffusers.EulerDiscreteScheduler(timestep_type="continuous", **V)
    with pytest.raises(ValueError, match="EulerDiscreteScheduler has timestep_type=continuous"):
        discrete_border(scheduler, "here")


def test_a_flow_scheduler_whose_time_runs_the_other_way_is_refused():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    with pytest.raises(ValueError, match="invert_sigmas=True"):
        flow_schedule(scheduler, 4, "here")


def test_clipping_is_read_from_classes_that_know_it_alone():
    assert bound_of(diffusers.DDPMScheduler()) == Bound(1.0)
    assert bound_of(diffusers.DDIMScheduler(clip_sample=False)) is None
    assert bound_of(diffusers.PNDMScheduler()) is None
    # A key of another class lies in many a scheduler_config.json.
    stray = diffusers.PNDMScheduler.from_config({"clip_sample": True})
    assert bound_of(stray) is None
    assert bound_of(diffusers.DDIMScheduler(thresholding=True)) == Bound(1.0, 0.995)
    solver = diffusers.DPMSolverMultistepScheduler(thresholding=True)
    assert bound_of(solver) == Bound(1.0, 0.995, keeps_eps=False)


def test_noise_predicted_from_no_signal_is_refused():
    settings = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler = diffusers.DDIMScheduler(clip_sample=False, **settings)
    denoiser, walker = read(scheduler), sibling(scheduler)
    walker.set_timesteps(4)
    grid = grid_of(walker, denoiser.schedule)
    with pytest.raises(ValueError, match=r"zero terminal SNR.*rescale_betas_zero_snr=false"):
        check_start(grid, denoiser, "here")
    check_start(grid, read(diffusers.DDIMScheduler(**settings, **V)), "here")


def test_thresholding_is_diffusers():
    scheduler = diffusers.DDIMScheduler(thresholding=True, sample_max_value=1.7)
    x0 = 2 * torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    bound = bound_of(scheduler)
    torch.testing.assert_close(bound(x0), scheduler._threshold_sample(x0))


@pytest.mark.parametrize("draws", [False, True])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
def test_a_students_scheduler_has_its_teachers_noise_levels(betas, draws):
    """Classes that lack a schedule of betas are given the numbers."""
    teacher = diffusers.DDPMScheduler(beta_schedule=betas)
    rows = [Step(t=t, scale=1.0, a=0.0, b=1.0, c=0.5 * draws * (t > 500)) for t in (999.0, 499.0)]
    table = TorchStepTable(tuple(rows))
    found = [*discrete_schedulers(teacher, table)]
    assert found
    for scheduler in found:
        torch.testing.assert_close(scheduler.alphas_cumprod, teacher.alphas_cumprod)
