"""Draw a student with its teacher's help at inference time, without training anything.

- The first step is the teacher's: Gandikota & Bau 2025, "Distilling Diversity and Control in
  Diffusion Models" (arXiv 2503.10637). It decides what is drawn, and the teacher varies more.
- The teacher refines each step: Park et al. 2024, "Inference-Time Diffusion Model Distillation"
  (Distillation++, arXiv 2412.08871). The student's x0 moves by a
  share towards the x0 that the teacher gives where the student's step lands, at the next time.

Neither is a step table of the student's network, so bundles do not support them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from edgedistill.diffusion.denoiser import Condition, Denoiser, Guided
from edgedistill.diffusion.prediction import to_x0
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.solvers import SOLVERS
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.diffusion.times import refine

__all__ = ["ALONE", "TeacherAssistance", "sample_with", "time_of"]


@dataclass(frozen=True)
class TeacherAssistance:
    """Help that the teacher gives to a student.

    Attributes:
        first: DDIM steps of the teacher that replace the student's first step; 0 replaces none.
        share: Share of the way to the teacher's x0 at every step but the last, in [0, 1].
    """

    first: int = 0
    share: float = 0.0

    def __post_init__(self) -> None:
        if self.first < 0:
            raise ValueError(f"{self.first} steps of the teacher: 0 or more expected")
        if not 0 <= self.share <= 1:
            raise ValueError(f"a share of {self.share:g} of the teacher's x0: 0 to 1 expected")


ALONE = TeacherAssistance()
"""No help: the student draws alone."""


def time_of(schedule: Schedule, net_time: float) -> Tensor:
    """Return the t at which a network of this schedule reads `net_time`, a float64 scalar."""
    read = torch.tensor(net_time, dtype=torch.float64)
    return schedule.snap(schedule.time_of_net_time(read).clamp(0, 1))


@torch.no_grad()
def sample_with(
    student: Denoiser,
    table: TorchStepTable,
    teacher: Denoiser | Guided,
    given: TeacherAssistance,
    noise: Sequence[Tensor],
    cond: Condition,
) -> Tensor:
    """Sample as `TorchStepTable.sample` does, with the teacher's help, (N, ...).

    Args:
        student: The student's network, schedule and prediction.
        table: The student's steps.
        teacher: The teacher on the same schedule, with its guidance.
        given: Help by the teacher.
        noise: `table.draws` tensors (N, ...), in order of use.
        cond: Condition of N rows, for both networks.
    """
    schedule, fresh = student.schedule, iter(noise)
    x = table.init_scale * next(fresh)
    device = x.device
    times = [time_of(schedule, row.t).to(device) for row in table.rows]
    times.append(torch.zeros_like(times[0]))
    for index, (row, (t, s)) in enumerate(zip(table.rows, pairwise(times), strict=True)):
        added = row.c * next(fresh) if row.c else 0.0
        if index == 0 and given.first:
            grid = refine(schedule, torch.stack([t, s]).cpu(), given.first)
            x = SOLVERS["ddim"](teacher, x, grid.to(device), cond)
            continue
        net_time = torch.full((len(x),), row.t, device=device)
        f = student.net(row.scale * x, net_time, **cond).to(x)
        x_s = row.a * x + row.b * f + added
        if given.share and s > 0:
            linear = to_x0(student.prediction, *schedule.at(t.reshape(1), like=x))
            toward = teacher(x_s, s, cond) - (linear.x * x + linear.y * f)
            x_s = x_s + given.share * row.b / linear.y * toward
        x = x_s
    return x
