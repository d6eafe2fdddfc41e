"""Convert a network that predicts noise to predict v or x0.

Where there is almost no signal, eps gives no information on x0: x0 = (x_t - sigma eps) / alpha
multiplies every error of eps by sigma / alpha. A student that starts there predicts v or x0
instead (Salimans & Ho 2022, arXiv 2202.00512, Sec. 4; Lin et al. 2023, arXiv 2305.08891, Sec.
3.2).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from edgedistill.diffusion.denoiser import Bound, Denoiser, Guided
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.times import stratified
from edgedistill.objectives.base import Batch, Losses, Objective, Player, Settings, Setup

__all__ = ["NEAR_ZERO", "Conversion", "as_target", "student_prediction"]

NEAR_ZERO = 0.01
"""Signal level below which an eps-prediction gives no information on x0: errors grow 100 times."""

CLEAR = 0.05
"""Signal level above which the teacher's own estimate of x0 is the target."""


def student_prediction(teacher: Denoiser, first: Tensor) -> Prediction:
    """Return the default prediction of a student of this teacher.

    Args:
        teacher: The unguided teacher.
        first: The student's first time, a scalar.

    Returns:
        v if the teacher predicts noise and `first` has almost no signal, else the teacher's
            prediction.
    """
    blind = float(teacher.schedule.alpha(first.double())) < NEAR_ZERO
    return Prediction.V if blind and teacher.prediction is Prediction.EPS else teacher.prediction


def as_target(
    teacher: Denoiser | Guided, prediction: Prediction, limit: float
) -> Denoiser | Guided:
    """Return the teacher as methods learn from it.

    A teacher that predicts noise and has no bound gets one where noise gives no information on x0.

    Args:
        teacher: The teacher, guided or not.
        prediction: Prediction type of the teacher's network.
        limit: The largest absolute value of clean data.
    """
    blind = float(teacher.schedule.alpha(torch.tensor(1.0).double())) < NEAR_ZERO
    if teacher.bound is not None or prediction is not Prediction.EPS or not blind:
        return teacher
    return teacher.with_bound(Bound(limit, below=NEAR_ZERO))


class Conversion(Objective):
    """Trains the student's output to be its own prediction type of the teacher's x0 and eps.

    Where the teacher's x0 is uninformative, the clean data replaces it.
    """

    class Config(Settings):
        """Empty, since there are no hyperparameters."""

    name = "conversion"

    def __init__(self, config: Conversion.Config, setup: Setup) -> None:
        self.teacher, self.student, self.optim = setup.teacher, setup.student, setup.optim

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.optim)]

    def loss(self, player: str, batch: Batch) -> Losses:
        student, x0 = self.student, batch.x0
        t = student.schedule.snap(stratified(len(x0), batch.generator)).to(x0.device)
        eps = batch.noise()
        x_t = student.noised(x0, t, eps)
        with torch.no_grad():
            theirs, noise = self.teacher.x0_and_eps(x_t, t, batch.cond)
        clear = _clear(student.schedule, t, x0)
        target = student.target(torch.where(clear, theirs, x0), t, torch.where(clear, noise, eps))
        loss = F.mse_loss(student.output(x_t, t, batch.cond), target)
        return Losses(loss, {"conversion": loss.detach()})


def _clear(schedule: Schedule, t: Tensor, like: Tensor) -> Tensor:
    alpha, _ = schedule.at(t, like=like)
    return alpha >= CLEAR
