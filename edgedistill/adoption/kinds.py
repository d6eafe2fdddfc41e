"""The kinds of published few-step students, one row each: a table, no code a kind.

Every row repeats what the model cards say. A kind whose cards ask for guidance at run time takes
two network calls a step, which a step table cannot express, so it has no row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgedistill.adoption.tables import (
    Grid,
    ancestral,
    at_timesteps,
    flux_grid,
    lcm_grid,
    sd3_grid,
    tcd,
    trailing_grid,
)
from edgedistill.common.plugins import unknown
from edgedistill.diffusion.few_step import Lander, ddim, renoise
from edgedistill.diffusion.prediction import Prediction
from edgedistill.students.folder import GuidanceInfo

__all__ = ["FOLDER", "KINDS", "LORA", "SOLVERS", "WEIGHTS", "Kind", "TeacherSolver", "find_kind"]

FOLDER = "a diffusers pipeline folder"
WEIGHTS = "a U-Net or transformer in safetensors"
LORA = "a LoRA in safetensors"

UNETS = ("stable_diffusion", "sdxl")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Storage and sampling of one kind of student.

    Attributes:
        source: Place where it is published.
        families: Keys of `teachers.TEACHERS` it is published for.
        forms: Allowed forms of a checkpoint: FOLDER, WEIGHTS, LORA.
        steps: Numbers of steps it is made for, the usual one first.
        tied: Whether each number of steps has a checkpoint of its own.
        grid: Times at which it is called.
        lands: The rule by which a call lands on the next time.
        scheduler: diffusers' class that its authors recommend.
        settings: Settings that its authors give the scheduler.
        listed: Whether its authors list the timesteps in the call.
        eta: Value of eta that its authors give the scheduler's step.
        owns: Scheduler classes that a published folder of this kind may hold.
        boundary: Whether LCM's c_skip and c_out apply.
        end: Time at which the last step ends: "clean"; "first", the first trained time; or
            "config", the first trained time unless the scheduler's config has set_alpha_to_one.
        scaled_start: Whether the first noise is scaled by sigma, as in Euler's classes.
        one_step: Prediction type of the one-step checkpoint, where it differs from the others.
        lora_scale: Scale at which the LoRA is fused.
        embedded: Whether the U-Net reads its guidance scale as an input (time_cond_proj_dim).
        guidance: Way in which guidance was built into the student.
    """

    source: str
    families: tuple[str, ...]
    forms: tuple[str, ...]
    steps: tuple[int, ...]
    tied: bool = False
    grid: Grid
    lands: Lander
    scheduler: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    listed: bool = False
    eta: float | None = None
    owns: tuple[str, ...] = ()
    boundary: bool = False
    end: str = "clean"
    scaled_start: bool = False
    one_step: Prediction | None = None
    lora_scale: float = 1.0
    embedded: bool = False
    guidance: GuidanceInfo = field(default_factory=lambda: GuidanceInfo(mode="none"))

    @property
    def flow(self) -> bool:
        """Whether this kind is a rectified flow."""
        return self.scheduler.startswith("FlowMatch")


_TRAILING = {"timestep_spacing": "trailing"}
_UNSHIFTED = {"shift": 1.0, "use_dynamic_shifting": False}
_BAKED = GuidanceInfo(mode="baked")
_LCM: dict[str, Any] = {
    "families": UNETS,
    "steps": (4, 8, 6, 5, 3, 2, 1),
    "grid": lcm_grid,
    "lands": renoise,
    "scheduler": "LCMScheduler",
    "settings": {"original_inference_steps": 50},
    "boundary": True,
}
_TCD: dict[str, Any] = {
    "families": UNETS,
    "forms": (LORA,),
    "grid": lcm_grid,
    "scheduler": "TCDScheduler",
    "settings": {"original_inference_steps": 50},
    "end": "first",
}
_LIGHTNING: dict[str, Any] = {
    "source": "ByteDance/SDXL-Lightning",
    "families": ("sdxl",),
    "tied": True,
    "grid": trailing_grid,
    "lands": ddim,
    "scheduler": "EulerDiscreteScheduler",
    "settings": _TRAILING,
    "scaled_start": True,
}
_DMD2: dict[str, Any] = {
    "source": "tianweiy/DMD2",
    "families": ("sdxl",),
    "tied": True,
    "grid": at_timesteps({4: (999, 749, 499, 249), 1: (399,)}),
    "lands": renoise,
    "scheduler": "LCMScheduler",
    "listed": True,
    "boundary": True,
    "guidance": GuidanceInfo(mode="baked", scale=8.0),
}
_FLOW: dict[str, Any] = {"lands": ddim, "scheduler": "FlowMatchEulerDiscreteScheduler"}
_FLUX_LORA: dict[str, Any] = {
    "families": ("flux",),
    "forms": (LORA,),
    "grid": flux_grid,
    "guidance": GuidanceInfo(mode="embedded", scale=3.5),
    **_FLOW,
}

KINDS: dict[str, Kind] = {
    "lcm": Kind(
        source="SimianLuo/LCM_Dreamshaper_v7, latent-consistency/lcm-sdxl",
        forms=(FOLDER, WEIGHTS),
        owns=("LCMScheduler",),
        embedded=True,
        guidance=GuidanceInfo(mode="baked", scale=8.0),
        **_LCM,
    ),
    "lcm-lora": Kind(
        source="latent-consistency/lcm-lora-sdv1-5, lcm-lora-sdxl",
        forms=(LORA,),
        guidance=_BAKED,
        **_LCM,
    ),
    "turbo": Kind(
        source="stabilityai/sdxl-turbo",
        families=UNETS,
        forms=(FOLDER, WEIGHTS),
        steps=(1, 2, 3, 4),
        grid=trailing_grid,
        lands=ancestral,
        scheduler="EulerAncestralDiscreteScheduler",
        settings=_TRAILING,
        owns=("EulerAncestralDiscreteScheduler",),
        scaled_start=True,
    ),
    "sd-turbo": Kind(
        source="stabilityai/sd-turbo",
        families=("stable_diffusion",),
        forms=(FOLDER, WEIGHTS),
        steps=(1, 2, 3, 4),
        grid=trailing_grid,
        lands=ddim,
        scheduler="EulerDiscreteScheduler",
        settings=_TRAILING,
        owns=("EulerDiscreteScheduler",),
        scaled_start=True,
    ),
    "lightning": Kind(forms=(WEIGHTS,), steps=(4, 8, 2, 1), one_step=Prediction.X0, **_LIGHTNING),
    "lightning-lora": Kind(forms=(LORA,), steps=(4, 8, 2), **_LIGHTNING),
    "hyper-sd": Kind(
        source="ByteDance/Hyper-SD, Hyper-SD15-Nsteps-lora and Hyper-SDXL-Nsteps-lora",
        families=UNETS,
        forms=(LORA,),
        steps=(4, 8, 2),
        tied=True,
        grid=trailing_grid,
        lands=ddim,
        scheduler="DDIMScheduler",
        settings=_TRAILING,
        end="config",
    ),
    "hyper-sd-unified": Kind(
        source="ByteDance/Hyper-SD, Hyper-SD15-1step-lora and Hyper-SDXL-1step-lora",
        steps=(1, 2, 4, 8),
        lands=tcd(1.0),
        eta=1.0,
        **_TCD,
    ),
    "hyper-sd-1step": Kind(
        source="ByteDance/Hyper-SD, Hyper-SDXL-1step-Unet",
        families=("sdxl",),
        forms=(WEIGHTS,),
        steps=(1,),
        tied=True,
        grid=at_timesteps({1: (800,)}),
        lands=renoise,
        scheduler="LCMScheduler",
        listed=True,
        boundary=True,
    ),
    "dmd2": Kind(forms=(WEIGHTS,), steps=(4, 1), **_DMD2),
    "dmd2-lora": Kind(forms=(LORA,), steps=(4,), **_DMD2),
    "pcm": Kind(
        source="wangfuyun/PCM_Weights, the smallcfg LoRAs",
        steps=(4, 2, 8),
        tied=True,
        lands=tcd(0.0),
        eta=0.0,
        guidance=_BAKED,
        **_TCD,
    ),
    "tcd": Kind(
        source="h1t/TCD-SD15-LoRA, h1t/TCD-SDXL-LoRA",
        steps=(4, 8, 6, 5, 3, 2, 1),
        lands=tcd(0.3),
        eta=0.3,
        guidance=_BAKED,
        **_TCD,
    ),
    "sd3-turbo": Kind(
        source="stabilityai/stable-diffusion-3.5-large-turbo",
        families=("sd3",),
        forms=(FOLDER, WEIGHTS),
        steps=(4, 8, 2, 1),
        grid=sd3_grid,
        owns=("FlowMatchEulerDiscreteScheduler",),
        **_FLOW,
    ),
    "sd3-turbo-lora": Kind(
        source="tensorart/stable-diffusion-3.5-medium-turbo",
        families=("sd3",),
        forms=(LORA,),
        steps=(8, 4),
        grid=sd3_grid,
        settings={"shift": 5.0},
        **_FLOW,
    ),
    "schnell": Kind(
        source="black-forest-labs/FLUX.1-schnell",
        families=("flux",),
        forms=(FOLDER, WEIGHTS),
        steps=(4, 3, 2, 1),
        grid=flux_grid,
        settings=_UNSHIFTED,
        owns=("FlowMatchEulerDiscreteScheduler",),
        **_FLOW,
    ),
    "flux-turbo-lora": Kind(
        source="alimama-creative/FLUX.1-Turbo-Alpha", steps=(8,), **_FLUX_LORA
    ),
    "hyper-sd-flux": Kind(
        source="ByteDance/Hyper-SD, Hyper-FLUX.1-dev-Nsteps-lora",
        steps=(8, 16),
        tied=True,
        lora_scale=0.125,
        **_FLUX_LORA,
    ),
}


@dataclass(frozen=True, kw_only=True)
class TeacherSolver:
    """A solver that samples a teacher as it is.

    Attributes:
        source: Paper of the solver.
        table: A key of `multistep.MULTISTEP`.
        scheduler: diffusers' class of it.
        settings: Settings of that class.
    """

    source: str
    table: str
    scheduler: str
    settings: Mapping[str, Any]


_DPM = {"algorithm_type": "dpmsolver++", "solver_type": "midpoint", "final_sigmas_type": "zero"}
_LAST = {"lower_order_final": True}
SOLVERS: dict[str, TeacherSolver] = {
    "ddim": TeacherSolver(
        source="DDIM (arXiv 2010.02502)",
        table="ddim",
        scheduler="DPMSolverMultistepScheduler",
        settings={**_DPM, **_LAST, "solver_order": 1},
    ),
    "dpm++2m": TeacherSolver(
        source="DPM-Solver++(2M) (arXiv 2211.01095)",
        table="dpm++2m",
        scheduler="DPMSolverMultistepScheduler",
        settings={**_DPM, **_LAST, "solver_order": 2},
    ),
    "unipc": TeacherSolver(
        source="UniPC, order 2 (arXiv 2302.04867)",
        table="unipc",
        scheduler="UniPCMultistepScheduler",
        settings={**_LAST, "solver_order": 2, "solver_type": "bh2", "final_sigmas_type": "zero"},
    ),
    "deis": TeacherSolver(
        source="DEIS, order 2 in log rho (arXiv 2204.13902)",
        table="deis",
        scheduler="DEISMultistepScheduler",
        settings={**_LAST, "solver_order": 2, "solver_type": "logrho", "algorithm_type": "deis"},
    ),
}
"""Solvers with which `adopt` takes a teacher as it is."""


def find_kind(name: str) -> Kind:
    """The kind called `name`; ValueError names the nearest and all."""
    if name not in KINDS:
        raise unknown("kind", name, {**KINDS, **SOLVERS})
    return KINDS[name]
