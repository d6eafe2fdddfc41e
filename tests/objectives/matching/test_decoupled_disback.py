"""Decoupled DMD and DisBack on Gaussians."""

import pytest
import torch
from oracles import Affine
from scored import (
    DATA,
    FAR,
    Conditioned,
    TimeConditioned,
    batch,
    guided,
    located,
    method,
    seed_of,
    told,
)
from torch import Tensor

from edgedistill.diffusion.denoiser import Denoiser, Guided
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.solvers import time_grid
from edgedistill.objectives.base import Optim, Setup
from edgedistill.objectives.matching.decoupled_dmd import DecoupledDMD
from edgedistill.objectives.matching.disback import DisBack


def test_decoupled_dmd_adds_guidance_to_the_unguided_matching():
    """Fake score and teacher agree where guidance is none; what is left is (scale - 1) 0.3."""
    fake = Denoiser(Conditioned(), Trig(), Prediction.X0)
    student = Denoiser(TimeConditioned(DATA.mean.tolist(), 0.5), Trig(), Prediction.X0)
    objective = method(DecoupledDMD, student, fake, teacher=guided(3.0))
    losses = objective.loss("student", told(batch()))
    assert losses.logs["matching"] < 1e-5
    torch.autograd.backward(losses.total)
    assert (student.net.mean.grad < -0.1).all()
    alike = method(DecoupledDMD, student, fake, teacher=guided(1.0))
    assert alike.loss("student", told(batch())).total < 1e-10


def test_guidance_is_added_below_the_students_time():
    seen: list[Tensor] = []

    class Watched(Conditioned):
        def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            seen.append(t)
            return super().forward(x, t, y)

    teacher = Guided(Denoiser(Watched(), Trig(), Prediction.X0), {"y": torch.zeros(1, 1)}, 3.0)
    student = Denoiser(TimeConditioned(FAR, 0.5), Trig(), Prediction.X0)
    fake = Denoiser(Conditioned(), Trig(), Prediction.X0)
    objective = method(DecoupledDMD, student, fake, teacher=teacher, steps=4)
    objective.loss("student", told(batch(256, shared=seed_of(2, 4))))
    matching, guidance = seen
    assert matching.max() > 0.95
    assert 0.48 < guidance.max() <= 0.5
    assert len(guidance) == 512


def test_disback_keeps_the_way_and_goes_back_along_it():
    def spawn() -> Denoiser:
        return Denoiser(Affine(DATA.posterior), Trig(), Prediction.X0)

    setup = Setup(
        teacher=DATA.denoiser(),
        student=located(FAR, 0.5),
        spawn=spawn,
        times=time_grid(Trig(), 1),
        sampler="renoise",
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 2), {}),
        train_steps=35,
    )
    objective = DisBack(DisBack.Config(regression=3, warmup=8, checkpoints=2), setup)
    for step in range(3, 12):  # the trainer's turns: a loss, then an update
        objective.started(step)
        objective.loss("fake_score", batch(4, step=step))
        objective.fake_score.denoiser.net.shift.data += 1
    shifts = [net.net.shift.item() for net in objective.path]
    assert shifts == [4, 8]
    aims = [objective.target(step) for step in (11, 18, 19, 26, 27, 34)]
    late, early = reversed(objective.path)
    assert aims == [late, late, early, early, setup.teacher, setup.teacher]
    assert list(objective.followers()) == ["degraded-1", "degraded-2"]


def test_disback_wants_steps_to_degrade_in():
    with pytest.raises(ValueError, match=r"warmup=3: fewer steps than checkpoints=4"):
        method(DisBack, located(FAR, 0.5), warmup=3)
