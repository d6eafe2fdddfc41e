"""What tests of preference methods share: a linear reward and a student in closed form."""

import torch
from scored import FAR, located

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.solvers import time_grid
from edgedistill.objectives.base import Optim, Setup

SIDE = torch.tensor([0.6, -0.8])
"""Direction of the reward."""
SCALE = 0.5
"""Scale of the student's steps, x0 = FAR + SCALE x."""


def linear(x0, prompts):
    return x0 @ SIDE.to(x0)


def preferring(kind, *, steps=2, sampler="renoise", reward=linear, **config):
    """The method `kind` for a student that takes these steps."""
    student: Denoiser = located(FAR, SCALE)
    times = time_grid(Trig(), steps)
    setup = Setup(
        teacher=student,
        student=student,
        spawn=lambda: student,
        times=times,
        sampler=sampler,
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 2), {}),
        init=few_step_table(Trig(), Prediction.X0, times, sampler),
        reward=reward,
    )
    return kind(kind.Config(**config), setup)


def stepped(objective, given):
    """Losses of the student's turn, and their gradient in its mean."""
    losses = objective.loss("student", given)
    torch.autograd.backward(losses.total)
    return losses, objective.student.net.mean.grad
