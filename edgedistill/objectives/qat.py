"""Quantization-aware training: a float student teaches its quantized self.

Jacob et al. 2018 (arXiv 1712.05877), Sec. 3, with the float network's outputs as targets
(distillation as in LLM-QAT, Liu et al. 2023, arXiv 2305.17888, Sec. 2.2), on the student's steps.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch.nn import functional as F

from edgedistill.networks.fake_quant import SCHEMES, FakeQuantize, layers
from edgedistill.objectives.base import Batch, Losses, Objective, Player, Settings, Setup
from edgedistill.sampling import StepTable

__all__ = ["QAT"]


class QAT(Objective):
    """Each step of the quantized student, on its own way, lands where the float one's does."""

    class Config(Settings):
        """Hyperparameters."""

        scheme: Literal["int8", "int8-weights", "int4-weights"] = "int8"
        """What the export will do; a key of `fake_quant.SCHEMES`."""

    name = "qat"

    def __init__(self, config: QAT.Config, setup: Setup) -> None:
        if setup.init is None:
            raise ValueError("method 'qat' starts from a student: set student.init=FOLDER")
        self.student, self.optim, self._table = setup.student, setup.optim, setup.init
        self.float_net = copy.deepcopy(setup.student.net).requires_grad_(False)
        self.quantize = FakeQuantize(layers(self.student).values(), SCHEMES[config.scheme])

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.optim)]

    def table(self) -> StepTable:
        return self._table

    def loss(self, player: str, batch: Batch) -> Losses:
        """Distance of the two students after one of the steps, both from the same noise.

        The quantized one arrives at that step by its own earlier steps, errors included; gradients
        flow through the last step alone. Divided by b, so that every step weighs as the error of
        the network's output there.
        """
        rows = self._table.rows
        last = int(torch.randint(len(rows), (), generator=batch.shared))
        row, way = rows[last], StepTable(rows[: last + 1], self._table.init_scale)
        noise = [batch.noise() for _ in range(way.draws)]
        with torch.no_grad():
            target = way.sample(self.float_net, noise, batch.cond)
            x = self._table.init_scale * noise[0]
            if last:
                before = StepTable(rows[:last], self._table.init_scale)
                with self.quantize:
                    x = before.sample(self.student.net, noise[: before.draws], batch.cond)
        after = StepTable((row,))
        with self.quantize:
            found = after.sample(self.student.net, [x, *noise[-1:]][: after.draws], batch.cond)
        loss = F.mse_loss(found, target) / row.b**2
        return Losses(loss, {"error": loss.detach().sqrt()})
