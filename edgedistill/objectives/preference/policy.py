"""A step table as a policy: a row with noise chooses at random where it lands.

Black et al. 2023, "Training Diffusion Models with Reinforcement Learning" (arXiv 2305.13301),
Sec. 4: the denoising of one sample is an episode, each of its steps a Gaussian action around
what the network says, and the reward is that of the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgedistill.diffusion.denoiser import Condition
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.objectives.base import Batch

__all__ = ["actions", "check_random", "log_prob", "walk"]


def check_random(what: str, table: TorchStepTable) -> None:
    """ValueError if no row of the table draws noise: nothing is left to chance."""
    if table.draws == 1:
        raise ValueError(
            f"{what}: no step of this student draws noise to learn from; it takes "
            "student.sampler=renoise and student.steps=2 or more"
        )


@torch.no_grad()
def walk(net: nn.Module, table: TorchStepTable, cond: Condition, batch: Batch) -> list[Tensor]:
    """Where each row of the table sets out, and where the last one ends: (N, ...) each."""
    places = [table.init_scale * batch.noise()]
    for row in table.rows:
        x = row.mean(net, places[-1], cond)
        places.append(x + row.c * batch.noise() if row.c else x)
    return places


def actions(table: TorchStepTable) -> list[int]:
    """The rows that draw noise."""
    return [i for i, row in enumerate(table.rows) if row.c]


def log_prob(
    net: nn.Module, table: TorchStepTable, index: int, places: Sequence[Tensor], cond: Condition
) -> Tensor:
    """Log-density of where row `index` landed on a walk, (N,), without its constant.

    The mean over the sample's elements in place of their sum, as every implementation has it
    (DDPO, D3PO, PSO, RTDMD): sizes of steps then depend on no resolution.
    """
    row = table.rows[index]
    gap = (places[index + 1] - row.mean(net, places[index], cond)).float() / row.c
    return -0.5 * gap.square().flatten(1).mean(1)
