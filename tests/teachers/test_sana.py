"""What is particular to SANA: its schedulers, the scale of its time."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from edgedistill.diffusion.schedules import Rectified
from edgedistill.teachers.families.sana import Sana, SanaNet
from edgedistill.tiny.sana import pipeline

RELEASED = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


def test_the_border_reads_the_released_schedulers_steps():
    scheduler = DPMSolverMultistepScheduler(**RELEASED)
    schedule = Sana("tiny", "tiny", pipeline(scheduler=scheduler)).denoiser.schedule
    assert isinstance(schedule, Rectified)
    scheduler.set_timesteps(20)
    # Its noisiest step stands at .999, not at 1.
    times = 0.999 * torch.arange(20, 0, -1) / 20
    torch.testing.assert_close(schedule.sigma(times).float(), scheduler.sigmas[:-1])
    found, expected = schedule.net_time(times), scheduler.timesteps
    torch.testing.assert_close(found.floor().long(), expected, rtol=0, atol=1)


def test_another_scheduler_is_refused():
    with pytest.raises(ValueError, match=r"DDIMScheduler is .* with one of flow matching"):
        Sana("tiny", "tiny", pipeline(scheduler=DDIMScheduler()))


def test_the_network_reads_its_time_scaled():
    core = pipeline().transformer.eval()
    x, cond = torch.ones(1, 8, 4, 4), (torch.ones(1, 8, 16), torch.ones(1, 8))
    with torch.no_grad():
        scaled = SanaNet(core, 0.001)(x, torch.tensor([500.0]), *cond)
        torch.testing.assert_close(scaled, SanaNet(core, 1.0)(x, torch.tensor([0.5]), *cond))
