"""Floating-point operations of drawing one sample, counted on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgedistill.denoiser import Denoiser, expand
from edgedistill.plan.cast import SCHEDULE, Cast
from edgedistill.plan.inputs import Net
from edgedistill.plan.live import Accelerator
from edgedistill.prediction import Prediction
from edgedistill.sampling import solve, time_grid

__all__ = ["calls", "decoder_flops", "denoiser_flops", "flops"]


@torch.no_grad()
def flops(run: Callable[[], Any]) -> int:
    """Operations of `run` in products of matrices and convolutions; multiply and add are two."""
    with Accelerator(), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def denoiser_flops(cast: Cast, core: nn.Module) -> int:
    """One call of the diffusers model `core` for one sample."""
    net = Net(cast.core, core, cast.inputs)
    x, t = torch.empty(1, *cast.inputs.sample, device="meta"), torch.empty(1, device="meta")
    return flops(lambda: net(x, t, **expand(cast.inputs.cond, 1)))


def decoder_flops(cast: Cast) -> int:
    """The decoder on one sample; 0 where x0 is the data itself."""
    vae: Any = cast.networks.get("vae")
    if vae is None:
        return 0
    latent = torch.empty(1, *(cast.inputs.latent or cast.inputs.sample), device="meta")
    return flops(lambda: vae.decode(latent, return_dict=False))


class _Counter(nn.Module):
    calls = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return torch.zeros_like(x)


def calls(solver: str, steps: int) -> int:
    """How often a solver asks the denoiser in so many steps."""
    counter = _Counter()
    denoiser = Denoiser(counter, SCHEDULE, Prediction.EPS)
    solve(denoiser, torch.zeros(1, 1), time_grid(SCHEDULE, steps), {}, solver)
    return counter.calls
