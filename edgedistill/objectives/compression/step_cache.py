"""A student some of whose steps run the outer blocks alone, taught by itself without reuse.

Ma et al. 2023, "DeepCache: Accelerating Diffusion Models for Free" (arXiv 2312.00858), reuse a
U-Net's deep features over many steps without training. Between the few steps of a student they
change more, so here the student learns to do with them. What is minimised is this project's
choice, the self-distillation of `qat` on the student's own steps:

    x_0 = the first noise
    for each row i:   f_i, h_i = net(x_i, t_i),  or f_i = net(x_i, t_i; h_{i-1}), h_i = h_{i-1}
                      L += |x0(f_i) - x0(frozen net(x_i, t_i))|^2
                      x_{i+1} = the table's step from x_i and f_i, without gradient

h is the deep state, and the frozen network is the student at the start of the run, every block of
which runs in every row. Gradients flow through one row at a time, but through h into the row that
made it, which thus learns what the rows after it need.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from edgedistill.diffusion.few_step import row_times
from edgedistill.diffusion.reuse import as_reusing
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.objectives.base import (
    Batch,
    Losses,
    Objective,
    Player,
    Settings,
    Setup,
    table_of_init,
)

__all__ = ["StepCache"]


class StepCache(Objective):
    """Trains a student to reuse deep states in the rows that `student.reuse` names."""

    class Config(Settings):
        """There is nothing to choose but `student.reuse`."""

    name = "step-cache"
    reuses = True
    learns_from_start = True

    def __init__(self, config: StepCache.Config, setup: Setup) -> None:
        table = table_of_init(self.name, setup)
        net = as_reusing(setup.student.net)
        last = len(table.rows) - 1
        if any(not 1 <= row <= last for row in setup.reuse):
            valid = f"choose from 1 to {last}" if last else "none of them has one before it"
            raise ValueError(
                f"student.reuse={list(setup.reuse)}: the student in student.init has "
                f"{last + 1} step{'s' * (last > 0)}; {valid}"
            )
        self._table = table.reusing(setup.reuse, setup.reuse_layers)
        if not 1 <= (setup.reuse_layers or 1) <= net.outer_layers:
            raise ValueError(
                f"student.reuse_layers={setup.reuse_layers}: the last up block of the student has "
                f"{net.outer_layers} layers; choose from 1 to {net.outer_layers}, or leave it out "
                "for all of them"
            )
        self.student, self.optim = setup.student, setup.optim
        self.frozen_net = copy.deepcopy(setup.student.net).requires_grad_(False)
        self.times = row_times(table, setup.student.schedule)

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.optim)]

    def table(self) -> TorchStepTable:
        return self._table

    def loss(self, player: str, batch: Batch) -> Losses:
        student, table, cond = self.student, self._table, batch.cond
        noise = iter([batch.noise() for _ in range(table.draws)])
        x = table.init_scale * next(noise)
        deep: Tensor | None = None
        errors = []
        for index, (row, t) in enumerate(zip(table.rows, self.times, strict=True)):
            f, deep = table.call(index, student.net, x, cond, deep)
            with torch.no_grad():
                wanted = row.output(self.frozen_net, x, cond)
            errors.append(F.mse_loss(student.x0_of(f, x, t), student.x0_of(wanted, x, t)))
            x = row.land(x, f).detach()
            x = x + row.c * next(noise) if row.c else x
        reused = [error for error, row in zip(errors, table.rows, strict=True) if row.reuse]
        logs = {"reused_error": torch.stack(reused).mean().detach().sqrt()}
        return Losses(torch.stack(errors).mean(), logs)
