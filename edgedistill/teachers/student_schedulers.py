"""Find the diffusers scheduler to save with a student: the first that walks its step table."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    LCMScheduler,
    TCDScheduler,
)
from torch import Tensor, nn

from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.teachers.schedulers import PREDICTIONS, settings_of

FLOW = "flow_prediction"

__all__ = ["discrete_schedulers", "find_scheduler", "takes_timesteps", "walk"]


def discrete_schedulers(scheduler: Any, table: TorchStepTable) -> Iterator[Any]:
    """Yield schedulers over trained timesteps that may walk a table, the plainest first.

    The student's prediction may differ from its teacher's.
    """
    config = settings_of(scheduler)
    own = config["prediction_type"]
    for prediction in (own, *(each for each in PREDICTIONS if each not in (own, FLOW))):
        for kind, choices in _kinds(table, config["num_train_timesteps"]):
            asked = {"prediction_type": prediction, **choices}
            yield _made(kind, config, clip_sample=False, thresholding=False, **asked)


def _made(kind: Any, config: Mapping[str, Any], **asked: Any) -> Any:
    """Make a scheduler of a class; its betas are listed where it cannot make the config's own."""
    try:
        return kind.from_config(config, **asked)
    except NotImplementedError:
        betas = DDPMScheduler.from_config(config).betas.tolist()
        return kind.from_config(config, beta_schedule="linear", trained_betas=betas, **asked)


def _kinds(table: TorchStepTable, n: int) -> Iterator[tuple[Any, dict[str, Any]]]:
    if any(row.c for row in table.rows):
        yield LCMScheduler, {"original_inference_steps": n}
        return
    trailing = {"timestep_spacing": "trailing"}
    yield DDIMScheduler, {"set_alpha_to_one": True, **trailing}
    leading = {"timestep_spacing": "leading", "steps_offset": 0}
    yield DDIMScheduler, {"set_alpha_to_one": True, **leading}
    # DDIM's class steps by 1000 // steps whatever the next timestep is; this class steps to it.
    order_one = {"solver_order": 1, "algorithm_type": "dpmsolver++", "final_sigmas_type": "zero"}
    yield DPMSolverMultistepScheduler, {**order_one, **trailing}


def find_scheduler(
    candidates: Sequence[Any],
    table: TorchStepTable,
    set_steps: Callable[[Any, int], None],
    by_timesteps: bool,
) -> tuple[Any, list[int] | None]:
    """Return the scheduler that walks a table, and the timesteps it must be given, if any.

    Args:
        candidates: Schedulers, the plainest first.
        table: The student's table, at one size.
        set_steps: Sets a scheduler's number of steps as the pipeline does.
        by_timesteps: Whether the pipeline can be given the timesteps one by one.

    Raises:
        ValueError: If no scheduler walks it.
    """
    for scheduler in candidates:
        if _walks(scheduler, table, partial(set_steps, scheduler, len(table.rows))):
            return scheduler, None
    timesteps = [round(row.t) for row in table.rows]
    for scheduler in candidates if by_timesteps else ():
        ask = partial(scheduler.set_timesteps, timesteps=timesteps)
        if takes_timesteps(scheduler.set_timesteps) and _walks(scheduler, table, ask):
            return scheduler, timesteps
    raise ValueError(
        f"no diffusers scheduler walks the timesteps {timesteps} with these noises; "
        "choose student.spacing=trailing"
    )


def takes_timesteps(function: Any) -> bool:
    """Whether a pipeline's call, or a scheduler, accepts a list of timesteps."""
    return "timesteps" in inspect.signature(function).parameters


def _choices(scheduler: Any) -> tuple[dict[str, float], ...]:
    """Return optional arguments of a scheduler's step to try: TCD's share of fresh noise."""
    if isinstance(scheduler, TCDScheduler):
        return {"eta": 0.0}, {"eta": 0.3}, {"eta": 1.0}
    return ({},)


def _walks(scheduler: Any, table: TorchStepTable, set_steps: Callable[[], None]) -> bool:
    """Whether scheduler, with its steps set, and table give the same result for the same noise."""
    for choices in _choices(scheduler):
        set_steps()
        if _agree(scheduler, table, choices):
            return True
    return False


def walk(
    scheduler: Any, net: nn.Module, shape: tuple[int, ...], choices: Mapping[str, Any]
) -> Tensor:
    """Sample by a scheduler, with its steps set, from noise of seed 0 with a network net(x, t).

    Args:
        scheduler: A scheduler of diffusers.
        net: Network called with x of `shape` and one timestep a sample, (N,).
        shape: Shape of the noise (N, ...).
        choices: Further arguments of each step.
    """
    generator = torch.Generator().manual_seed(0)
    # Flow schedulers have neither an initial scale nor one for each step.
    x = torch.randn(*shape, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    if "generator" in inspect.signature(scheduler.step).parameters:
        choices = {"generator": generator, **choices}
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        f = net(seen, t.expand(len(x)))
        x = scheduler.step(f, t, x, **choices).prev_sample
    return x


class _Probe(nn.Module):
    """A network that does not read time, since diffusers' timesteps may be rounded."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x.tanh()


def _agree(scheduler: Any, table: TorchStepTable, choices: dict[str, float]) -> bool:
    wanted = torch.tensor([row.t for row in table.rows])
    if not torch.allclose(scheduler.timesteps.float(), wanted, atol=0.5):
        return False
    ours = table.sample(_Probe(), table.draw((4, 1, 4, 4), torch.Generator().manual_seed(0)), {})
    x = walk(scheduler, _Probe(), (4, 1, 4, 4), choices)
    return bool((x - ours).abs().max() <= 1e-4 * ours.abs().max().clamp(min=1))
