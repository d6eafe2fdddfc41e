"""Read a teacher's diffusers scheduler: noise levels, prediction, bound, steps.

A scheduler is read through its deterministic first-order sibling: DDIM, Euler or first-order
DPM-Solver++, which share its timesteps, its noise levels and its estimate of x0. A scheduler whose
samples differ from its sibling's is refused.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from edgedistill.common.plugins import unknown
from edgedistill.diffusion.denoiser import Bound, Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.schedules import Discrete, Karras
from edgedistill.diffusion.solvers import TimeGrid, solve
from edgedistill.diffusion.tensors import expand_like
from edgedistill.teachers.base import EDM, FLOWS, TRAINED

__all__ = [
    "EDM",
    "FLOW",
    "FLOWS",
    "PREDICTIONS",
    "SIBLINGS",
    "TRAINED",
    "Probe",
    "bound_of",
    "check_flow_prediction",
    "check_grid",
    "check_kind",
    "check_start",
    "check_unscaled",
    "discrete_border",
    "grid_of",
    "kind_of",
    "level_grid",
    "setting",
    "settings_of",
    "sibling",
]

PREDICTIONS = {
    "epsilon": Prediction.EPS,
    "sample": Prediction.X0,
    "v_prediction": Prediction.V,
    "flow_prediction": Prediction.FLOW,
}
"""Predictions by their names in diffusers."""

TOLERANCE = 1e-3
"""Largest difference between our samples of a probe and diffusers', relative to the largest."""


@dataclass(frozen=True)
class Sibling:
    """The deterministic scheduler that stands for another one.

    Attributes:
        kind: Name of its class in diffusers.
        choices: Settings that override the other's.
    """

    kind: str
    choices: tuple[tuple[str, Any], ...] = ()


_DDIM = Sibling("DDIMScheduler")
_EULER = Sibling("EulerDiscreteScheduler")
_DPM = Sibling(
    "DPMSolverMultistepScheduler",
    (("solver_order", 1), ("algorithm_type", "dpmsolver++"), ("solver_type", "midpoint")),
)
_EDM = Sibling("EDMEulerScheduler")
FLOW = Sibling("FlowMatchEulerDiscreteScheduler", (("stochastic_sampling", False),))
"""Sibling of the flow schedulers."""

SIBLINGS = {
    **dict.fromkeys(
        (
            *("DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler"),
            *("PNDMScheduler", "LCMScheduler", "TCDScheduler"),
        ),
        _DDIM,
    ),
    **dict.fromkeys(
        (
            *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"),
            *("HeunDiscreteScheduler", "LMSDiscreteScheduler", "KDPM2DiscreteScheduler"),
            *("KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler"),
        ),
        _EULER,
    ),
    **dict.fromkeys(
        (
            *("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
            *("UniPCMultistepScheduler", "DEISMultistepScheduler", "SASolverScheduler"),
        ),
        _DPM,
    ),
    **dict.fromkeys(("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"), _EDM),
    **dict.fromkeys(
        (
            *("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"),
            "FlowMatchLCMScheduler",
        ),
        FLOW,
    ),
}
"""Supported diffusers schedulers of a teacher, and their siblings, by name."""

_KINDS = {_DDIM: TRAINED, _EULER: TRAINED, _DPM: TRAINED, _EDM: EDM, FLOW: FLOWS}

_UNKNOWN = "of a kind that no family reads"

_ABSENT = {
    "clip_sample": False,
    "thresholding": False,
    "set_alpha_to_one": True,
    "final_sigmas_type": "zero",
}
"""Settings of a sibling where the class of the teacher's scheduler does not have them."""

_REFUSED = {
    "timestep_type": ("continuous", "the network reads a logarithm of the noise level"),
    "invert_sigmas": (True, "time runs the other way"),
}
"""Settings that no teacher may have: the value, and its meaning."""


def takes(scheduler: Any, key: str) -> bool:
    """Whether the scheduler's class has a setting; a config may also hold other classes'."""
    return key in inspect.signature(type(scheduler).__init__).parameters


def setting(scheduler: Any, key: str, default: Any = None) -> Any:
    """Return a setting that the scheduler's class has, else the default."""
    return scheduler.config.get(key, default) if takes(scheduler, key) else default


def settings_of(scheduler: Any) -> dict[str, Any]:
    """Return a scheduler's settings, for a scheduler of another class.

    Settings that its file leaves out have the defaults of its own class; diffusers' from_config
    would take those of the other class.
    """
    return {key: v for key, v in scheduler.config.items() if key != "_use_default_values"}


def kind_of(scheduler: Any) -> str:
    """Return the kind of a scheduler, as messages name it: TRAINED, EDM, FLOWS or another."""
    if setting(scheduler, "use_flow_sigmas"):
        return FLOWS
    found = SIBLINGS.get(type(scheduler).__name__)
    return _KINDS[found] if found else _UNKNOWN


def check_kind(scheduler: Any, path: str, kinds: Sequence[str]) -> None:
    """Raise a ValueError for a scheduler that a teacher may not have.

    Args:
        scheduler: The teacher's scheduler.
        path: The teacher's path, for the message.
        kinds: Kinds of schedulers that its family reads.
    """
    name, kind = type(scheduler).__name__, kind_of(scheduler)
    if kind not in kinds:
        raise ValueError(
            f"{path}: {name} is a scheduler {kind}; teachers of this family are read with one "
            f"{' or '.join(kinds)} only"
        )
    for key, (value, meaning) in _REFUSED.items():
        if setting(scheduler, key) == value:
            raise ValueError(f"{path}: {name} has {key}={value}, with which {meaning}; no teacher")


def check_unscaled(scheduler: Any, path: str) -> None:
    """Raise a ValueError if a pipeline that scales no noise has a scheduler that needs it."""
    name = type(scheduler).__name__
    if SIBLINGS.get(name) is _EULER:
        raise ValueError(
            f"{path}: {name} needs its first noise scaled, which this pipeline of diffusers does "
            "not do; choose DDIMScheduler or DPMSolverMultistepScheduler in model_index.json"
        )


def check_flow_prediction(scheduler: Any, path: str) -> None:
    """Raise a ValueError if a solver on a flow's noise levels has another prediction."""
    found = scheduler.config.prediction_type
    if found != "flow_prediction":
        raise ValueError(
            f"{path}: prediction_type={found} with use_flow_sigmas; flow_prediction expected"
        )


def discrete_border(
    scheduler: Any, path: str, kinds: Sequence[str] = (TRAINED,)
) -> tuple[Schedule, Prediction]:
    """Return schedule and prediction of a scheduler over trained timesteps.

    Args:
        scheduler: The teacher's scheduler.
        path: The teacher's path, for messages.
        kinds: All kinds of schedulers that its family reads, for messages.

    Raises:
        ValueError: If the scheduler is of another kind, or its prediction is unknown; names
            `path`.
    """
    check_kind(scheduler, path, kinds)
    prediction = scheduler.config.prediction_type
    known = {key: kind for key, kind in PREDICTIONS.items() if kind is not Prediction.FLOW}
    if prediction not in known:
        raise ValueError(f"{path}: {unknown('prediction_type', prediction, known)}")
    levels = scheduler.alphas_cumprod.double()
    if setting(scheduler, "rescale_betas_zero_snr"):
        levels = torch.cat([levels[:-1], torch.zeros(1, dtype=levels.dtype)])  # some have 2^-24
    try:
        return Discrete(levels), known[prediction]
    except ValueError as error:
        raise ValueError(
            f"{path}: no noise levels follow from the betas in its scheduler_config.json: {error}"
        ) from None


def bound_of(scheduler: Any) -> Bound | None:
    """Return the scheduler's bound on its estimate of x0; None if there is none.

    diffusers' DDPM, DDIM, LCM and TCD classes clip by default.
    """
    keeps_eps = SIBLINGS.get(type(scheduler).__name__) is _DDIM
    if setting(scheduler, "thresholding"):
        config = scheduler.config
        return Bound(config.sample_max_value, config.dynamic_thresholding_ratio, keeps_eps)
    if setting(scheduler, "clip_sample"):
        return Bound(setting(scheduler, "clip_sample_range", 1.0), None, keeps_eps)
    return None


def sibling(scheduler: Any) -> Any:
    """Make a new scheduler of the sibling's class with the scheduler's own settings.

    A setting that the scheduler's class does not have is off, and steps end in clean data.
    """
    found = SIBLINGS[type(scheduler).__name__]
    kind = getattr(diffusers, found.kind)
    known = inspect.signature(kind.__init__).parameters.keys() - {"self"}
    settings = {key: value for key, value in _ABSENT.items() if key in known}
    settings |= {key: scheduler.config[key] for key in known if takes(scheduler, key)}
    if settings.get("beta_schedule") not in (None, "linear", "scaled_linear", "squaredcos_cap_v2"):
        settings |= {"trained_betas": scheduler.betas.tolist(), "beta_schedule": "linear"}
    return kind(**{**settings, **dict(found.choices)})


def grid_of(scheduler: Any, schedule: Schedule) -> TimeGrid:
    """Return the call and landing times of a sibling whose steps are set.

    Args:
        scheduler: A sibling.
        schedule: The teacher's schedule.
    """
    read = _GRIDS[type(scheduler).__name__]
    return read(scheduler, schedule)


def _ddim_grid(scheduler: Any, schedule: Schedule) -> TimeGrid:
    n = scheduler.config.num_train_timesteps
    timesteps = scheduler.timesteps.double()
    last = 0.0 if float(scheduler.final_alpha_cumprod) == 1 else 1 / n
    before = timesteps - n // scheduler.num_inference_steps
    ends = torch.where(before < 0, torch.full_like(before, last), (before + 1) / n)
    return TimeGrid((timesteps + 1) / n, ends, 1.0, timesteps)


def _euler_grid(scheduler: Any, schedule: Schedule) -> TimeGrid:
    sigmas = scheduler.sigmas.double()
    starts, ends = _split(scheduler, schedule.time_of(-2 * sigmas.log()))
    scale = float(scheduler.init_noise_sigma) / math.hypot(1, float(sigmas[0]))
    return TimeGrid(starts, ends, scale, scheduler.timesteps.double())


def level_grid(scheduler: Any, schedule: Schedule) -> TimeGrid:
    """Return the grid of a multistep scheduler, whose sigmas are ratios or a flow's levels."""
    sigmas = scheduler.sigmas.double()
    flow = getattr(scheduler.config, "use_flow_sigmas", False)
    log_snr = 2 * ((1 - sigmas).log() - sigmas.log()) if flow else -2 * sigmas.log()
    starts, ends = _split(scheduler, schedule.time_of(log_snr))
    return TimeGrid(starts, ends, 1.0, scheduler.timesteps.double())


def _edm_grid(scheduler: Any, schedule: Schedule) -> TimeGrid:
    assert isinstance(schedule, Karras)
    sigmas, data = scheduler.sigmas.double(), schedule.sigma_data
    times = schedule.time_of_angle((sigmas / data).atan())
    # The smallest level is at t = 0, where a grid would land on clean data.
    starts, ends = _split(scheduler, times.clamp(min=1e-9))
    scale = float(scheduler.init_noise_sigma) / math.hypot(data, float(sigmas[0]))
    return TimeGrid(starts, ends, scale, scheduler.timesteps.double())


def _flow_grid(scheduler: Any, schedule: Schedule) -> TimeGrid:
    sigmas = scheduler.sigmas.double()
    times = schedule.time_of(2 * ((1 - sigmas).log() - sigmas.log()))
    starts, ends = _split(scheduler, times)
    return TimeGrid(starts, ends, 1.0, scheduler.timesteps.double())


def _split(scheduler: Any, times: Tensor) -> tuple[Tensor, Tensor]:
    """Return starts and ends of the steps between `times`; no noise is t = 0 in every schedule."""
    steps = len(scheduler.timesteps)
    times = torch.where(scheduler.sigmas > 0, times, torch.zeros_like(times))
    return times[:steps], times[1 : steps + 1]


_GRIDS: dict[str, Callable[[Any, Schedule], TimeGrid]] = {
    _DDIM.kind: _ddim_grid,
    _EULER.kind: _euler_grid,
    _DPM.kind: level_grid,
    _EDM.kind: _edm_grid,
    FLOW.kind: _flow_grid,
}


# --- The probe ----------------------------------------------------------------------------------


class Probe(nn.Module):
    """A simple network that is nonlinear in x and depends on t.

    Args:
        sign: Factor on the output.
    """

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return f(x, t), shaped as x (N, ...); t is (N,) or a scalar."""
        time = expand_like(torch.as_tensor(t).double(), x).to(x) / 1000
        return self.sign * ((x * (1 + time)).tanh() + 0.3 * time)


def check_start(grid: TimeGrid, denoiser: Denoiser, path: str) -> None:
    """Raise a ValueError if eps is predicted from pure noise, where x0 is not finite."""
    alpha = float(denoiser.schedule.alpha(grid.starts[0]))
    if denoiser.prediction is Prediction.EPS and alpha < 1e-9:
        raise ValueError(
            f"{path}: its network predicts noise, and its scheduler starts where there is no "
            "signal (zero terminal SNR), from which no x0 follows; in scheduler_config.json set "
            "rescale_betas_zero_snr=false, or the prediction_type it was trained with"
        )


def check_grid(scheduler: Any, grid: TimeGrid, denoiser: Denoiser, path: str) -> None:
    """Raise a ValueError if a probe's samples differ from diffusers' sibling scheduler's.

    Args:
        scheduler: The sibling, with its steps set.
        grid: Our grid of its steps.
        denoiser: The teacher's denoiser, for its schedule, prediction and bound.
        path: The teacher's path, for the message.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 1, 4, 4, generator=generator, dtype=torch.float64)
    # An EDM scheduler's eps is minus the v of its preconditioning, which the teacher's wrapper
    # applies.
    minus = isinstance(denoiser.schedule, Karras) and scheduler.config.prediction_type == "epsilon"
    net = Probe(-1.0 if minus else 1.0)
    # Euler's class has no bound; it only shows the steps.
    bound = denoiser.bound if takes(scheduler, "thresholding") else None
    probe = Denoiser(net, denoiser.schedule, denoiser.prediction, bound)
    ours = solve(probe, noise, grid, {})
    x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # some schedules have a timestep twice
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(Probe()(seen, t), t, x).prev_sample
    if isinstance(denoiser.schedule, Karras):
        x = x / denoiser.schedule.sigma_data
    steps, kind = len(grid.starts), type(scheduler).__name__
    if not bool(x.isfinite().all()):
        raise ValueError(f"{path}: diffusers' own {kind} has no finite steps with these settings")
    apart = float((x - ours).abs().max() / ours.abs().max().clamp(min=1))
    if not apart <= TOLERANCE:
        raise ValueError(
            f"{path}: {kind} takes other steps than ours in {steps} steps (apart by {apart:.2g} "
            "of the range); no teacher"
        )
