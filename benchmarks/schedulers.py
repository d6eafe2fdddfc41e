"""Families of teachers x the schedulers of diffusers, on tiny pipelines of their real classes.

`python benchmarks/schedulers.py [--families A,B] [--schedulers X,Y]` prints a table. A cell says
how many settings of the scheduler are drawn as diffusers draws them: the same path as by the
deterministic sibling (DDIM, Euler, first-order DPM-Solver++) on a probe in the place of the
network, and with its first setting the same guided sample by the family's own pipeline. The same
x0 from the same x_t is compared where a scheduler tells it. `refused` is an error by name before
anything is drawn; anything drawn otherwise is `DIFFERENT`, and the command ends with exit code 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import diffusers
import torch

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.proof.drawing import TOLERANCE, differences
from edgedistill.teachers import load_teacher
from edgedistill.teachers.pipeline import PipelineTeacher
from edgedistill.teachers.schedulers import SIBLINGS, Probe, takes
from edgedistill.tiny import TINY, make_tiny

COMMON: dict[str, tuple[Any, ...]] = {
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "steps_offset": (0, 1),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "clip_sample": (False, True),
    "thresholding": (False, True),
    "set_alpha_to_one": (True, False),
    "rescale_betas_zero_snr": (False, True),
    "final_sigmas_type": ("zero", "sigma_min"),
    "use_karras_sigmas": (False, True),
    "use_exponential_sigmas": (False, True),
    "use_lu_lambdas": (False, True),
    "interpolation_type": ("linear", "log_linear"),
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++", "deis"),
    "solver_order": (2, 1, 3),
    "timestep_type": ("discrete", "continuous"),
    "trained_betas": (None, torch.linspace(0.001, 0.03, 1000).tolist()),
}
"""Settings of schedulers over trained timesteps, the first of each in the base setting."""

FLOW: dict[str, tuple[Any, ...]] = {
    "shift": (1.0, 3.0),
    "flow_shift": (1.0, 3.0),
    "use_dynamic_shifting": (False, True),
    "shift_terminal": (None, 0.05),
    "use_karras_sigmas": (False, True),
    "use_exponential_sigmas": (False, True),
    "invert_sigmas": (False, True),
    "final_sigmas_type": ("zero", "sigma_min"),
    "solver_order": (2, 1, 3),
}
"""Settings of flow schedulers, and of solvers on a flow's noise levels."""

SOLVER = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}

PAIRS = (
    ("timestep_spacing", "steps_offset"),
    ("timestep_spacing", "beta_schedule"),
    ("timestep_spacing", "prediction_type"),
    ("beta_schedule", "clip_sample"),
    ("prediction_type", "thresholding"),
)
"""Settings tried in every combination; the others one by one."""

EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
FLOWS = {"flux", "sana", "sd3", "wan"}


def settings_of(kind: Any, table: dict[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    """The base setting, each setting changed alone, and the pairs; only what the class knows."""
    known = {
        key: values
        for key, values in table.items()
        if takes(kind(), key) and _allows(kind, {key: values[0]})
    }
    base = {key: values[0] for key, values in known.items()}
    found = [base]
    found += [{**base, key: value} for key, values in known.items() for value in values[1:]]
    for first, second in PAIRS:
        if first in known and second in known:
            pairs = product(known[first], known[second])
            found += [{**base, first: one, second: other} for one, other in pairs]
    return [each for number, each in enumerate(found) if each not in found[:number]]


def _allows(kind: Any, settings: dict[str, Any]) -> bool:
    """Whether diffusers makes a scheduler with these settings."""
    try:
        kind(**settings)
    except (ValueError, NotImplementedError, ImportError):  # how diffusers refuses settings
        return False
    return True


def schedulers_of(family: str, name: str) -> list[tuple[dict[str, Any], Any]]:
    """What a family may meet of a class: settings, and the scheduler or diffusers' refusal."""
    kind = getattr(diffusers, name)
    flow = family in FLOWS
    solves_flow = flow and takes(kind(), "use_flow_sigmas")
    made = []
    for settings in settings_of(kind, FLOW if flow else COMMON):
        given = {**settings, **(SOLVER if solves_flow else {})}
        try:
            made.append((settings, kind(**given)))
        except (ValueError, NotImplementedError, ImportError) as error:  # how it refuses
            made.append((settings, error))  # diffusers itself does not allow it
    return made


class Cell:
    """What became of one family and one scheduler."""

    def __init__(self) -> None:
        self.equal = 0
        self.refused, self.different = list[str](), list[str]()

    def __str__(self) -> str:
        if self.different:
            return f"DIFFERENT {len(self.different)}"
        if not self.equal:
            return "refused" if self.refused else "none"
        return f"{self.equal}" + (f", {len(self.refused)} refused" if self.refused else "")


def tiny_teacher(family: str, folder: Path) -> PipelineTeacher:
    """A tiny pipeline of the family, made in `folder`."""
    teacher = load_teacher(family, make_tiny(family, folder))
    assert isinstance(teacher, PipelineTeacher)
    return teacher


def x0_apart(teacher: PipelineTeacher) -> float:
    """Largest relative difference of x0 from what the scheduler itself tells, 0 if it tells none.

    Both are given the same x_t and the same output at the second of four steps.
    """
    scheduler, denoiser = teacher.pipeline.scheduler, teacher.denoiser
    if type(scheduler).__name__ == "LCMScheduler" or SIBLINGS[type(scheduler).__name__].kind in (
        "FlowMatchEulerDiscreteScheduler",
        "EDMEulerScheduler",
    ):
        return 0.0  # LCM's x0 is a student's; the others tell none
    walker = type(scheduler)(**{k: v for k, v in scheduler.config.items() if takes(scheduler, k)})
    teacher.set_own_steps(walker, 4)
    grid = teacher.grid(4)
    assert grid.net_times is not None  # a sibling's timesteps
    t = walker.timesteps[0]
    if float(t) != float(grid.net_times[0]):
        return 0.0  # of another first timestep than its sibling
    x_t = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    alpha = float(denoiser.schedule.alpha(grid.starts[0]))
    ve = SIBLINGS[type(scheduler).__name__].kind == "EulerDiscreteScheduler"
    x = x_t / alpha if ve else x_t
    output = Probe()(walker.scale_model_input(x, t), t)
    try:
        step = walker.step(output, t, x)
    except (ValueError, NotImplementedError):  # how diffusers refuses a prediction
        return 0.0  # diffusers itself does not draw such a prediction with this class
    theirs = getattr(step, "pred_original_sample", None)
    if theirs is None:
        return 0.0
    probe = Denoiser(Probe(), denoiser.schedule, denoiser.prediction, denoiser.bound)
    ours = probe(x_t, grid.starts[0], {}, grid.net_times[0])
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1))


def tried(family: str, name: str, teacher: PipelineTeacher) -> Cell:
    """Every setting of one scheduler in one family's pipeline."""
    cell, kind = Cell(), type(teacher)
    for number, (settings, scheduler) in enumerate(schedulers_of(family, name)):
        changed = ", ".join(f"{key}={str(value)[:20]}" for key, value in settings.items())
        if isinstance(scheduler, Exception):
            continue
        vars(teacher.pipeline)["scheduler"] = scheduler
        try:
            again = kind(teacher.name, teacher.path, teacher.pipeline)
            for steps in (4, 25):
                again.grid(steps)  # which compares the path
            apart = x0_apart(again)
            if cell.equal == 0 or number % 10 == 0:
                apart = max(apart, *differences(again).values())
        except ValueError as error:
            cell.refused.append(f"{changed}: {error}")
            continue
        if apart <= TOLERANCE:
            cell.equal += 1
        else:
            cell.different.append(f"{changed}: apart by {apart:.1e}")
    return cell


def main() -> None:
    """Print the table, a row as soon as it is known, and why there was a refusal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", default=",".join(sorted(TINY)))
    parser.add_argument("--schedulers", default=",".join(SIBLINGS))
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    families = args.families.split(",")
    reasons: dict[str, str] = {}
    different: list[str] = []
    with tempfile.TemporaryDirectory() as work:
        teachers = {family: tiny_teacher(family, Path(work) / family) for family in families}
        print(f"| scheduler | {' | '.join(families)} |\n|---|{'---|' * len(families)}", flush=True)
        for name in args.schedulers.split(","):
            if not _allows(getattr(diffusers, name), {}):
                print(
                    f"| {name.removesuffix('Scheduler')} | {' | '.join(['-'] * len(families))} |"
                )
                continue  # it needs a package that is not installed
            cells = []
            for family in families:
                cell = tried(family, name, teachers[family])
                cells.append(str(cell))
                different += [f"{family} {name} {each}" for each in cell.different]
                for reason in cell.refused:
                    reasons.setdefault(reason.rpartition(teachers[family].path)[2], reason)
            print(f"| {name.removesuffix('Scheduler')} | {' | '.join(cells)} |", flush=True)
    print("\nRefused, each reason once:")
    for reason, whole in reasons.items():
        print(f"- {reason.lstrip(': ')[:160]}  ({whole[:80]})")
    print(f"\n{len(different)} drawn otherwise")
    print("\n".join(different))
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
