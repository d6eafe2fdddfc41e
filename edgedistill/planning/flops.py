"""Floating-point operations of drawing one sample, counted on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from edgedistill.diffusion.denoiser import Condition, Denoiser, expand
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.sizes import shape_at
from edgedistill.diffusion.solvers import solve, time_grid
from edgedistill.planning.inputs import Net
from edgedistill.planning.networks import SCHEDULE, PlannedNetworks
from edgedistill.planning.tracker.accelerator import LOW_PRECISION, Accelerator
from edgedistill.planning.tracker.live import aliases, called

__all__ = ["calls", "counted", "decoder_flops", "denoiser_flops", "flops", "reusing_flops"]


class _Operations(TorchDispatchMode):
    """A mode that sums FLOPs of all operators by torch's own table of formulas.

    It gives the total of torch's FlopCounterMode, which takes twice as long since it separates
    modules.
    """

    total = 0
    kernels = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = called(func, args, kwargs)
        self.kernels += not aliases(func)
        if formula := flop_registry.get(func._overloadpacket):
            self.total += int(formula(*args, **kwargs, out_val=result))
        return result


@torch.no_grad()
def flops(run: Callable[[], Any], dtype: torch.dtype | None = None) -> int:
    """Count as `counted` does, without gradients, and return the operations alone."""
    return counted(run, dtype)[0]


def counted(run: Callable[[], Any], dtype: torch.dtype | None = None) -> tuple[int, int]:
    """Count the operations of `run`, and its operators that compute something.

    Operations are those in matrix products and convolutions; multiply and add are two.

    Args:
        run: Function whose operations are counted.
        dtype: Low precision of autocast; None disables it.
    """
    with Accelerator(dtype), _Operations() as counter:  # type: ignore[no-untyped-call]  # torch's is untyped
        run()
    return counter.total, counter.kernels


def denoiser_flops(planned: PlannedNetworks, core: nn.Module, size: float = 1.0) -> int:
    """Count one call of the diffusers model `core` on one sample, at a fraction of the size."""
    net, x, t, cond = _call(planned, core, size)
    return flops(lambda: net(x, t, **cond), LOW_PRECISION[planned.recipe.train.precision])


def reusing_flops(planned: PlannedNetworks, core: nn.Module, layers: int | None) -> int:
    """Count a call of the outer layers of `core` on one sample (see `diffusion.reuse`)."""
    net, x, t, cond = _call(planned, core)
    with torch.no_grad():
        _, deep = net.full(x, t, layers, **cond)
    low = LOW_PRECISION[planned.recipe.train.precision]
    return flops(lambda: net.shallow(x, t, deep, layers, **cond), low)


def _call(
    planned: PlannedNetworks, core: nn.Module, size: float = 1.0
) -> tuple[Net, Tensor, Tensor, Condition]:
    net = Net(planned.core, core, planned.inputs)
    shape = shape_at(planned.inputs.sample, size)
    x, t = torch.empty(1, *shape, device="meta"), torch.empty(1, device="meta")
    return net, x, t, expand(planned.inputs.cond, 1)


def decoder_flops(planned: PlannedNetworks) -> int:
    """Count the decoder's call on one sample; 0 where x0 is the data itself."""
    vae: Any = planned.networks.get("vae")
    if vae is None:
        return 0
    latent = torch.empty(1, *(planned.inputs.latent or planned.inputs.sample), device="meta")
    return flops(lambda: vae.decode(latent, return_dict=False))


class _Counter(nn.Module):
    calls = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return torch.zeros_like(x)


def calls(solver: str, steps: int) -> int:
    """Count the denoiser's calls of a solver in `steps` steps."""
    counter = _Counter()
    denoiser = Denoiser(counter, SCHEDULE, Prediction.EPS)
    solve(denoiser, torch.zeros(1, 1), time_grid(SCHEDULE, steps), {}, solver)
    return counter.calls
