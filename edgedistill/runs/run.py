"""A run: recipe -> teacher, objective, trainer -> student dir."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from diffusers import ModelMixin
from torch import nn

from edgedistill.common.files import atomic_folder
from edgedistill.common.pictures import save_samples
from edgedistill.diffusion.denoiser import Denoiser, Guided
from edgedistill.diffusion.solvers import student_times
from edgedistill.diffusion.step_table import Boundary, TorchStepTable, few_step_table
from edgedistill.networks.adapters import Role
from edgedistill.objectives.base import Objective
from edgedistill.objectives.conversion import NEAR_ZERO, Conversion, as_target
from edgedistill.objectives.prelude import Prelude
from edgedistill.recipes.checks import (
    check_adapters,
    check_steps,
    choose_prediction,
    parameters,
    unplayed,
)
from edgedistill.recipes.opening import open_teacher
from edgedistill.recipes.schema import Recipe
from edgedistill.recipes.setup import build_setup, compose
from edgedistill.rewards import reward_of
from edgedistill.runs.data import RunData
from edgedistill.runs.networks import PrunedStudent, first_of
from edgedistill.runs.preview import preview, preview_roles
from edgedistill.students.folder import GuidanceInfo, StudentInfo, load_student, save_student
from edgedistill.students.routing import Part
from edgedistill.teachers.base import DataSource
from edgedistill.training.trainer import Hooks, Trainer, engine

__all__ = ["Run"]

Say = Callable[[str], None]
Progress = Callable[[int, "dict[str, float] | None"], None]


class Held:
    """Lines that wait: for the first that announces a wait, or for the end of the checks.

    Args:
        lines: Those that wait from the start.
        say: Where they go.
    """

    def __init__(self, lines: list[str], say: Say) -> None:
        self._lines, self._say = lines, say

    def add(self, line: str) -> None:
        """Let a line wait."""
        self._lines.append(line)

    def tell(self, line: str) -> None:
        """Say a line at once, after those that waited."""
        self.flush()
        self._say(line)

    def flush(self) -> None:
        """Say those that waited."""
        while self._lines:
            self._say(self._lines.pop(0))


class Run:
    """One distillation.

    Args:
        recipe: Its choices.
        folder: The run dir; must exist.
        say: Called with a line at each stage.
        part: The conditions that the student is for, if not for all.
    """

    def __init__(self, recipe: Recipe, folder: Path, say: Say, part: Part | None = None) -> None:
        self.recipe, self.folder, self.part = recipe, folder, part
        accelerator = engine(recipe.train.precision)
        device = accelerator.device

        # The teacher.
        self.teacher, proof = open_teacher(recipe, device)
        denoiser, few = self.teacher.denoiser, recipe.student

        # The recipe, checked with it: what is wrong shows before the first line of progress.
        check_steps(recipe, denoiser.schedule)
        self.times = student_times(denoiser.schedule, few.steps, few.spacing, few.sampler)
        self.prediction = choose_prediction(recipe, denoiser, self.times[0])
        data = RunData(recipe, self.teacher, folder, part)
        self._check_table(None)
        if recipe.train.roles == "adapters":
            check_adapters(recipe, self.teacher)
        self.reward = reward_of(recipe.reward, self.teacher) if recipe.reward else None
        self.init = load_student(few.init) if few.init else None

        # The data and the objective, whose lines wait until the request is known to be right.
        lines = Held([*self._header(), *([proof] if proof else []), *self._conversion()], say)
        with accelerator.main_process_first():  # which writes files that the others read
            self.paths = data.paths(self.times, lines.tell)
            self.source: DataSource = self.paths or data.source(lines.tell)
            self.objective = self._objective(device, lines.add)
        for line in unplayed(self.objective, recipe):
            lines.add(line)
        if isinstance(self.student.net, Role):
            rank = recipe.train.adapter.rank
            lines.add(f"adapters of rank {rank}: {parameters(self.student):,} parameters a role")
        lines.flush()

        # The trainer.
        self.trainer = Trainer(
            self.objective,
            self.source,
            recipe.train,
            folder,
            Hooks(self._progress, self._preview, say),
            self.paths,
            prompted=self.reward is not None,
            pictured=bool(data.wants_originals),
        )
        self._watch: Progress = lambda step, figures: None

    def _header(self) -> list[str]:
        teacher, method = self.teacher, self.recipe.objective["name"]
        about = f"teacher {teacher.name}: {parameters(teacher.denoiser):,} parameters"
        return [f"run {self.folder}  method {method}  {about}", *teacher.notes]

    def _conversion(self) -> list[str]:
        """A line on what the student learns to predict, where that is not its teacher's."""
        if not self.converts:
            return []
        own = self.teacher.denoiser
        return [
            f"the student predicts {self.prediction.value}, which it learns in its first "
            f"{self.converts} steps; its teacher predicts {own.prediction.value} "
            f"(alpha {float(own.schedule.alpha(self.times[0])):.1e} at the student's first step)"
        ]

    def _check_table(self, boundary: Boundary | None) -> None:
        """ValueError if a student with such steps could not be saved."""
        schedule, few = self.teacher.denoiser.schedule, self.recipe.student.sampler
        self.teacher.check(few_step_table(schedule, self.prediction, self.times, few, boundary))

    def _objective(self, device: torch.device, say: Say) -> Objective:
        recipe, teacher = self.recipe, self.teacher
        first = first_of(recipe, teacher, device)
        self.student = student = copy.deepcopy(first)
        if self.init is not None:
            student.net = self.init.net.to(device).requires_grad_(True)
            student.prediction = self.init.info.prediction
        elif self.converts:
            student.prediction = self.prediction
        pruned = PrunedStudent(recipe, teacher, self.source, self.times, self.folder, say)
        smaller = pruned.smaller(student)
        self.depths = pruned.depths(student)
        x0, cond = self.source.draw(2, torch.Generator().manual_seed(recipe.train.seed))
        setup = build_setup(
            recipe,
            teacher,
            teacher=self._target(say),
            student=student,
            spawn=lambda: copy.deepcopy(first),
            times=self.times,
            example=(x0.to(device), {k: v.to(device) for k, v in cond.items()}),
            init=self.init.table if self.init else None,
            core=teacher.core,
            smaller=smaller,
            autoencoder=teacher.autoencoder,
            scaling=teacher.scaling,
            train_steps=recipe.method_steps - self.converts,
            reward=self.reward,
        )
        method = compose(recipe, setup, self.depths)
        if method.boundary() is not None and not recipe.method().own_coefficients:
            self._check_table(method.boundary())
        if not self.converts:
            return method
        return Prelude(method, Conversion(Conversion.Config(), setup), self.converts)

    def _target(self, say: Say) -> Denoiser | Guided:
        """The guided teacher as the method learns from it."""
        teacher = self.teacher
        guided = teacher.guided(self.recipe.teacher.guidance)
        target = as_target(guided, teacher.denoiser.prediction, teacher.x0_limit)
        if target is not guided:
            say(
                f"the teacher predicts noise, which says nothing of x0 where alpha is below "
                f"{NEAR_ZERO}: as a target, its x0 is clipped there at {teacher.x0_limit:g}"
            )
        return target

    @property
    def converts(self) -> int:
        """Steps in which the student learns to predict something else than its teacher."""
        if self.init or self.prediction is self.teacher.denoiser.prediction:
            return 0
        steps = self.recipe.train.steps
        return min(self.recipe.student.prediction_steps or -(-steps // 5), steps)

    @property
    def table(self) -> TorchStepTable:
        """The step table of the student."""
        own = self.objective.table()
        return own or few_step_table(
            self.student.schedule,
            self.student.prediction,
            self.times,
            self.recipe.student.sampler,
            self.objective.boundary(),
        )

    def runs(self) -> Iterator[Run]:
        """What is to be trained: itself, as a `parts.Group` gives several."""
        yield self

    def restore(self) -> int:
        """Take up the newest checkpoint; returns the step it stands at, 0 without one."""
        return self.trainer.resume()

    def train(self, progress: Progress) -> Path:
        """Train to the end, write the student dir and return it."""
        self._watch = progress
        trainer = self.trainer
        net = trainer.fit()
        if isinstance(net, Denoiser):
            net = self.objective.finished(net)
        made = self.part.place if self.part else self.folder / self.objective.product
        if trainer.accelerator.is_main_process:
            self._preview(net, trainer.step)
            if isinstance(net, Denoiser):
                save_student(made, self._info(), self.teacher, net.net)
            else:
                assert isinstance(net, ModelMixin)
                with atomic_folder(made) as work:
                    net.save_pretrained(work)
        trainer.accelerator.wait_for_everyone()
        return made

    def _preview(self, net: nn.Module, step: int) -> None:
        if isinstance(net, Denoiser):
            preview(self, net, step)
            preview_roles(self, step)
            return
        assert isinstance(net, ModelMixin)
        x0, _ = self.source.draw(64, torch.Generator().manual_seed(0))
        with torch.no_grad():
            pictures = net.decode(x0.to(net.device), return_dict=False)[0]
        save_samples(self.folder / "samples" / f"step-{step:08d}.png", pictures, None)

    def _progress(self, step: int, figures: dict[str, float] | None) -> None:
        self._watch(step, figures)

    def _info(self) -> StudentInfo:
        section, teacher = self.recipe.teacher, self.teacher
        mode = "none" if section.guidance == 1 else "baked"
        return StudentInfo(
            method=self.recipe.objective["name"],
            family=teacher.family,
            step_table=self.table.to_json(),
            prediction=self.student.prediction,
            schedule=self.student.schedule.to_json(),
            guidance=GuidanceInfo(mode=mode, scale=section.guidance),
            latent=teacher.describe(),
            teacher={
                "name": teacher.name,
                "path": section.path,
                "family": teacher.family,
                "guidance": section.guidance,
                **({"config": section.config} if section.config else {}),
                **({"lora": [list(each) for each in section.loras]} if section.loras else {}),
                **teacher.told(),
            },
            recipe=self.recipe.model_dump(mode="json"),
            depths={name: plan.to_json() for name, plan in self.depths.items()},
        )
