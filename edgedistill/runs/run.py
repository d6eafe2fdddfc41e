"""A run: from a recipe by teacher, objective and trainer to a student dir."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from diffusers import ModelMixin
from torch import nn

from edgedistill.common.compilers import check_compiler
from edgedistill.common.files import atomic_folder
from edgedistill.common.logs import dropped, held
from edgedistill.common.pictures import save_samples
from edgedistill.diffusion.compiling import as_they_are
from edgedistill.diffusion.denoiser import Denoiser, Guided
from edgedistill.diffusion.few_step import Boundary, few_step_table
from edgedistill.diffusion.solvers import student_times
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.networks.adapters import Role
from edgedistill.objectives.base import Objective
from edgedistill.objectives.conversion import NEAR_ZERO, Conversion, as_target
from edgedistill.objectives.prelude import Prelude
from edgedistill.recipes.checks import (
    check_adapters,
    check_attention,
    check_features,
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
from edgedistill.runs.knowledge import as_denoiser, open_knowledge
from edgedistill.runs.networks import PrunedStudent, first_of
from edgedistill.runs.preview import preview, preview_roles
from edgedistill.students.folder import (
    GuidanceInfo,
    Student,
    StudentInfo,
    load_student,
    save_student,
)
from edgedistill.students.routing import Part
from edgedistill.teachers.base import DataSource
from edgedistill.training.trainer import Hooks, Trainer, engine

__all__ = ["Run"]

log = logging.getLogger(__name__)

Progress = Callable[[int, "dict[str, float] | None"], None]


class Run:
    """One distillation run.

    Args:
        recipe: The recipe.
        folder: The run dir; must exist.
        part: The student's part of the conditions, if it is one of several.
    """

    def __init__(self, recipe: Recipe, folder: Path, part: Part | None = None) -> None:
        self.recipe, self.folder, self.part = recipe, folder, part
        accelerator = engine(recipe.train.precision)
        device = accelerator.device
        if recipe.train.compile:
            check_compiler("train.compile=true", device.type)

        # The teacher.
        self.teacher, proof = open_teacher(recipe, device)
        denoiser, few = self.teacher.denoiser, recipe.student

        # Check the recipe with the teacher: errors show before the first line of progress.
        check_steps(recipe, denoiser.schedule)
        self.times = student_times(denoiser.schedule, few.steps, few.spacing, few.sampler)
        self.prediction = choose_prediction(recipe, denoiser, self.times[0])
        check_features(recipe, self.teacher.sample_shape)
        data = RunData(recipe, self.teacher, folder, part)
        self._check_table(None)
        if recipe.train.roles == "adapters":
            check_adapters(recipe, self.teacher)
        self.reward = reward_of(recipe.reward, self.teacher) if recipe.reward else None
        self.init = self._open_init(few.init) if few.init else None
        if recipe.compress.token_stride:
            net = self.init.net if self.init else self.teacher.net
            check_attention(recipe, net.get_submodule(self.teacher.core))
        self.knowledge = open_knowledge(recipe, self.teacher, self.times)

        # Open data and objective; their lines are held back until the request is checked.
        with held() if accelerator.is_main_process else dropped():
            for line in [*self._header(), *([proof] if proof else []), *self._conversion()]:
                log.info(line)
            with accelerator.main_process_first():  # the main process writes files first
                self.paths = data.paths(self.times)
                self.source: DataSource = self.paths or data.source()
                with as_they_are():
                    self.objective = self._objective(device)
            for line in [*unplayed(self.objective, recipe), *self._roles(), *self._dropped()]:
                log.info(line)

        # The trainer.
        self.trainer = Trainer(
            self.objective,
            self.source,
            recipe.train,
            folder,
            Hooks(self._progress, self._preview, recipe.model_dump(mode="json")),
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
        """Return a line on the student's prediction, where it differs from its teacher's."""
        if not self.converts:
            return []
        own = self.teacher.denoiser
        return [
            f"the student predicts {self.prediction.value}, which it learns in its first "
            f"{self.converts} step{'s' * (self.converts != 1)}; its teacher predicts "
            f"{own.prediction.value}, and the student's first step has a signal of "
            f"{float(own.schedule.alpha(self.times[0])):.1e} only"
        ]

    def _roles(self) -> list[str]:
        """Return a line on the size of the roles' adapters, if they have any."""
        if not isinstance(self.student.net, Role):
            return []
        rank = self.recipe.train.adapter.rank
        return [f"adapters of rank {rank}: {parameters(self.student):,} parameters a role"]

    def _dropped(self) -> list[str]:
        """Return a line for what the steps of `student.init` do and those of this run do not."""
        if self.init is None:
            return []
        return [
            f"student.init={self.recipe.student.init}: its steps {words}, and those of this run "
            "do not; only its weights are taken"
            for words in self.init.table.beyond(self.table)
        ]

    def _check_table(self, boundary: Boundary | None) -> None:
        """Raise a ValueError if a student with these steps could not be saved."""
        schedule, few = self.teacher.denoiser.schedule, self.recipe.student.sampler
        self.teacher.check(few_step_table(schedule, self.prediction, self.times, few, boundary))

    def _open_init(self, folder: str) -> Student:
        """Open the student to start from; ValueError if it draws what the teacher does not."""
        init, drawn = load_student(folder), tuple(self.teacher.sample_shape)
        if (found := tuple(init.teacher.sample_shape)) != drawn:
            raise ValueError(
                f"student.init={folder}: its x has the shape {found} and the teacher's {drawn}; "
                "name a student of this teacher"
            )
        return init

    def _objective(self, device: torch.device) -> Objective:
        recipe, teacher = self.recipe, self.teacher
        first = first_of(recipe, teacher, device)
        self.student = student = copy.deepcopy(first)
        if self.init is not None:
            student.net = self.init.net.to(device).requires_grad_(True)
            student.prediction = self.init.info.prediction
        elif self.converts:
            student.prediction = self.prediction
        pruning = PrunedStudent(recipe, teacher, self.source, self.times, self.folder)
        pruned = pruning.pruned(student)
        self.depths = pruning.depths(student)
        x0, cond = self.source.draw(2, torch.Generator().manual_seed(recipe.train.seed))
        setup = build_setup(
            recipe,
            teacher,
            teacher=self._target(),
            student=student,
            spawn=lambda: copy.deepcopy(first),
            times=self.times,
            example=(x0.to(device), {k: v.to(device) for k, v in cond.items()}),
            init=self.init.table if self.init else None,
            core=teacher.core,
            pruned=pruned,
            autoencoder=teacher.autoencoder,
            scaling=teacher.scaling,
            train_steps=recipe.method_steps - self.converts,
            reward=self.reward,
            knowledge=self._knowledge(student, device),
        )
        method = compose(recipe, setup, self.depths)
        if method.boundary() is not None and not recipe.method().own_coefficients:
            self._check_table(method.boundary())
        if not self.converts:
            return method
        return Prelude(method, Conversion(Conversion.Config(), setup), self.converts)

    def _knowledge(self, student: Denoiser, device: torch.device) -> Denoiser | None:
        """Return the frozen student that the method learns from; None if it names none."""
        if self.knowledge is None:
            return None
        sampler = self.recipe.student.sampler
        return as_denoiser(self.knowledge, student, self.times, sampler).to(device)

    def _target(self) -> Denoiser | Guided:
        """Return the guided teacher as the method learns from it."""
        teacher = self.teacher
        guided = teacher.guided(self.recipe.teacher.guidance)
        target = as_target(guided, teacher.denoiser.prediction, teacher.x0_limit)
        if target is not guided:
            log.info(
                f"the teacher predicts noise, which says nothing of x0 where alpha is below "
                f"{NEAR_ZERO}: as a target, its x0 is clipped there at {teacher.x0_limit:g}"
            )
        return target

    @property
    def converts(self) -> int:
        """Number of steps in which the student learns another prediction than its teacher's."""
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
        """Yield the runs to train: only this one; a `runs.group.Group` has several."""
        yield self

    def restore(self) -> int:
        """Load the newest checkpoint; return its step, 0 without one."""
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
        with as_they_are():
            self._draw(net, step)

    def _draw(self, net: nn.Module, step: int) -> None:
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
                **teacher.terms(),
            },
            recipe=self.recipe.model_dump(mode="json"),
            depths={name: plan.to_json() for name, plan in self.depths.items()},
        )
