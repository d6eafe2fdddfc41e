"""Quantization-aware training: a float student teaches its quantized self.

Jacob et al. 2018 (arXiv 1712.05877), Sec. 3, with the float network's outputs as targets
(distillation as in LLM-QAT, Liu et al. 2023, arXiv 2305.17888, Sec. 2.2), on the student's steps.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedistill.diffusion.denoiser import Condition
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.networks.fake_quant import SCHEMES, FakeQuantize, Observe, layers
from edgedistill.objectives.base import (
    Batch,
    Losses,
    Objective,
    Player,
    Settings,
    Setup,
    table_of_init,
)

__all__ = ["QAT"]


class QAT(Objective):
    """Trains each step of the quantized student to land where the float student's does."""

    class Config(Settings):
        """Hyperparameters of quantization-aware training."""

        scheme: Literal["int8", "int8-weights", "int4-weights"] = "int8"
        """Quantization of the export."""

    name = "qat"
    compiles = False
    learns_from_start = True

    def __init__(self, config: QAT.Config, setup: Setup) -> None:
        self._table = table_of_init(self.name, setup)
        self.student, self.optim = setup.student, setup.optim
        self.float_net = copy.deepcopy(setup.student.net).requires_grad_(False)
        self.scheme = SCHEMES[config.scheme]

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.optim)]

    def table(self) -> TorchStepTable:
        return self._table

    def loss(self, player: str, batch: Batch) -> Losses:
        """Return the distance of the two students after each step, both from the same noise.

        The float student's run gives the ranges of the activations over all steps, which the
        quantized student uses, as on the device. The quantized student arrives at each step by its
        own earlier steps, including their errors; gradients flow through one step at a time. The
        distance is divided by b, so that every step is weighted as the error of the network's
        output.
        """
        net, table = self.student.net, self._table
        noise = [batch.noise() for _ in range(table.draws)]
        observe = Observe(layers(self.float_net).values())
        with torch.no_grad(), observe:
            truth = list(_steps(self.float_net, table, noise, batch.cond))
        with FakeQuantize(layers(net).values(), self.scheme, observe.ranges):
            found = list(_steps(net, table, noise, batch.cond))
        errors = [
            F.mse_loss(x, y) / row.b**2 for x, y, row in zip(found, truth, table.rows, strict=True)
        ]
        return Losses(torch.stack(errors).mean(), {"last_error": errors[-1].detach().sqrt()})


def _steps(
    net: nn.Module, table: TorchStepTable, noise: list[Tensor], cond: Condition
) -> Iterator[Tensor]:
    """Yield x after each row of the table, detached from the rows before it."""
    fresh = iter(noise)
    x = table.init_scale * next(fresh)
    for row in table.rows:
        some = [x.detach(), *([next(fresh)] if row.c else [])]
        x = TorchStepTable((row,)).sample(net, some, cond)
        yield x
