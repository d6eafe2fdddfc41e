"""A run: recipe -> teacher, objective, trainer -> student dir."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from edgedistill.common.files import atomic_folder, read_json, write_json
from edgedistill.common.pictures import save_samples
from edgedistill.compress import Plan, count
from edgedistill.compress.pruned import Smaller, choose, depths, record
from edgedistill.compress.variance import keep_variance
from edgedistill.data import find_captions, open_source
from edgedistill.data.latents import Pictures, find_pictures
from edgedistill.data.paths import Paths, captions_of, make_paths, open_paths, spec_of
from edgedistill.diffusion.denoiser import Denoiser, Guided
from edgedistill.diffusion.solvers import student_times
from edgedistill.diffusion.step_table import StepTable, few_step_table
from edgedistill.networks.adapters import Role, adapt
from edgedistill.networks.bf16 import lower
from edgedistill.objectives.base import Batch, Objective, RewardOf, Setup
from edgedistill.objectives.compose import ordered
from edgedistill.objectives.conversion import NEAR_ZERO, Conversion, as_target
from edgedistill.objectives.prelude import Prelude
from edgedistill.recipes.checks import (
    check_adapters,
    check_coefficients,
    check_depths,
    check_paths,
    check_reward,
    check_steps,
    choose_prediction,
    has_weights,
    parameters,
    unplayed,
)
from edgedistill.recipes.opening import open_teacher
from edgedistill.recipes.schema import Recipe
from edgedistill.rewards import reward_of
from edgedistill.students.folder import Guidance, StudentInfo, load_student, save_student
from edgedistill.students.routing import Part
from edgedistill.teachers.base import Source
from edgedistill.teachers.latents import Captioned
from edgedistill.training.trainer import Hooks, Trainer, engine

__all__ = ["Run", "preview"]

PLANS = "compress.json"
"""In a run dir: how the student was made smaller."""

Say = Callable[[str], None]
Progress = Callable[[int, "dict[str, float] | None"], None]


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
        section = recipe.teacher
        self.teacher, proof = open_teacher(recipe, device)
        denoiser, few = self.teacher.denoiser, recipe.student
        check_steps(recipe, denoiser.schedule)
        self.times = student_times(denoiser.schedule, few.steps, few.spacing, few.sampler)
        self.prediction = choose_prediction(recipe, denoiser, self.times[0])
        # What can be wrong with the request shows before the first line of progress.
        check_paths(recipe)
        data, pictures = recipe.data, self._pictures()
        captions = self._own(
            find_captions(self.teacher, data.prompts, data.samples, data.caption)
            if data.paths is None and pictures is None
            else []
        )
        check_coefficients(recipe, self.teacher)
        self.teacher.check(
            few_step_table(denoiser.schedule, self.prediction, self.times, few.sampler)
        )
        if recipe.train.roles == "adapters":
            check_adapters(recipe, self.teacher)
        self.reward = self._reward()
        self.init = load_student(few.init) if few.init else None
        # Said once the request is known to be right, or before the first wait.
        lines = [
            f"run {folder}  method {recipe.objective['name']}  "
            f"teacher {self.teacher.name}: {parameters(denoiser):,} parameters",
            *self.teacher.notes,
        ]
        lines += [proof] if proof else []
        if self.converts:
            alpha = float(denoiser.schedule.alpha(self.times[0]))
            lines.append(
                f"the student predicts {self.prediction.value}, which it learns in its first "
                f"{self.converts} steps; its teacher predicts {denoiser.prediction.value} "
                f"(alpha {alpha:.1e} at the student's first step)"
            )
        self._say = lines.append

        def tell(line: str) -> None:
            while lines:
                say(lines.pop(0))
            say(line)

        def show(made: int) -> None:
            tell(f"teacher samples {made}/{len(captions) or self._samples}")

        with accelerator.main_process_first():  # which writes files that the others read
            self.paths = self._paths(show) if recipe.method().needs_paths else None
            self.source = self.paths or self._shared(
                pictures.open(tell)
                if pictures
                else open_source(
                    self.teacher,
                    captions,
                    section.guidance,
                    section.steps,
                    recipe.train.seed,
                    folder,
                    show,
                )
            )
            self.objective = self._objective(device)
        for line in (*lines, *unplayed(self.objective, recipe)):
            say(line)
        if isinstance(self.student.net, Role):
            rank = recipe.train.adapter.rank
            say(f"adapters of rank {rank}: {parameters(self.student):,} parameters a role")
        self.trainer = Trainer(
            self.objective,
            self.source,
            recipe.train,
            folder,
            Hooks(self._progress, self._preview, say),
            self.paths,
            prompted=self.reward is not None,
            pictured=bool(self._wants_originals()),
        )
        self._watch: Progress = lambda step, figures: None

    def _check_table(self, method: Objective) -> None:
        """ValueError if the student, with its method's boundary, could not be saved."""
        boundary, few = method.boundary(), self.recipe.student.sampler
        if boundary is not None and not self.recipe.method().own_coefficients:
            schedule = self.student.schedule
            self.teacher.check(
                few_step_table(schedule, self.prediction, self.times, few, boundary)
            )

    def _reward(self) -> RewardOf | None:
        """What the recipe's reward says of x0, if it names one."""
        check_reward(self.recipe)
        return reward_of(self.recipe.reward, self.teacher) if self.recipe.reward else None

    def _pictures(self) -> Pictures | None:
        """The recipe's own pictures, if it names any."""
        recipe, data = self.recipe, self.recipe.data
        asked = self._wants_originals()
        if data.pictures is None:
            if asked:
                self._check_originals(*asked)
            return None
        if recipe.method().needs_paths:
            name = recipe.objective["name"]
            raise ValueError(f"data.pictures={data.pictures}: method {name!r} needs paths instead")
        home = self.part.home if self.part else self.folder
        cache = Path(data.cache or home / "data" / "pictures")
        return find_pictures(
            self.teacher, data.pictures, cache, data.caption, home, keep=bool(asked)
        )

    def _check_originals(self, choice: str, other: str) -> None:
        """ValueError if the teacher's own data does not serve, or has no pictures."""
        own = self.teacher.source() if self.recipe.data.prompts is None else None
        if own is None or own.originals(1, torch.Generator()) is None:
            raise ValueError(
                f"objective.{choice}: the run's clean data come without the pictures they were "
                f"encoded from; name some with data.pictures, or choose {other}"
            )

    def _wants_originals(self) -> tuple[str, str] | None:
        return self.recipe.method().wants_originals(self.recipe.method_config())

    @property
    def _samples(self) -> int:
        """Samples the teacher makes: of several students each has its share."""
        return -(-self.recipe.data.samples // self.recipe.parts.count)

    def _own(self, captions: list[str]) -> list[str]:
        """Those that the student is for."""
        if self.part is None or not captions:
            return captions
        return [captions[row] for row in self.part.rows(self.teacher, captions)]

    def _shared(self, source: Source) -> Source:
        """Clean data of the conditions that the student is for."""
        if self.part and isinstance(source, Captioned):
            source.only(self.part.rows(self.teacher, source.captions))
        return source

    def _paths(self, progress: Callable[[int], None]) -> Paths:
        """The teacher's paths at the student's times: the recipe's, or made into the run dir."""
        recipe, teacher = self.recipe, self.teacher
        section = recipe.teacher
        captions = self._own(captions_of(teacher, recipe.data.prompts, recipe.data.caption))
        spec = spec_of(
            teacher,
            captions,
            guidance=section.guidance,
            solver=section.solver,
            steps=section.steps,
            times=self.times,
            seed=recipe.train.seed,
        )
        folder = Path(recipe.data.paths or self.folder / "data" / "paths")
        if recipe.data.paths is None:
            make_paths(folder, teacher, spec, captions, self._samples, self._say, progress)
        return open_paths(folder, teacher, spec, self.times)

    def _objective(self, device: torch.device) -> Objective:
        recipe, teacher = self.recipe, self.teacher

        first = self._first(device)
        student = copy.deepcopy(first)
        if self.init is not None:
            student.net = self.init.net.to(device).requires_grad_(True)
            student.prediction = self.init.info.prediction
        elif self.converts:
            student.prediction = self.prediction
        smaller = self._smaller(student)
        self.depths = self._depths(student)
        x0, cond = self.source.draw(2, torch.Generator().manual_seed(recipe.train.seed))
        setup = Setup(
            teacher=self._target(),
            student=student,
            spawn=lambda: copy.deepcopy(first),
            times=self.times,
            sampler=recipe.student.sampler,
            optim=recipe.train.optim,
            tap=teacher.tap,
            example=(x0.to(device), {k: v.to(device) for k, v in cond.items()}),
            init=self.init.table if self.init else None,
            core=teacher.core,
            smaller=smaller,
            autoencoder=teacher.autoencoder,
            scaling=teacher.scaling,
            train_steps=recipe.method_steps - self.converts,
            time_layer=teacher.time_layer,
            reward=self.reward,
        )
        self.student = student
        with torch.random.fork_rng(devices=[]):
            # Networks of the method's own, such as heads, draw their weights from the global one.
            torch.manual_seed(recipe.train.seed)
            method = recipe.method()(recipe.method_config(), setup)
            sections = (recipe.embedding, recipe.reward)
            whole = ordered(method, setup, recipe.compress, self.depths, *sections)
        self._check_table(whole)
        if not self.converts:
            return whole
        return Prelude(whole, Conversion(Conversion.Config(), setup), self.converts)

    def _target(self) -> Denoiser | Guided:
        """The guided teacher as the method learns from it."""
        teacher = self.teacher
        guided = teacher.guided(self.recipe.teacher.guidance)
        target = as_target(guided, teacher.denoiser.prediction, teacher.x0_limit)
        if target is not guided:
            self._say(
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

    def _smaller(self, student: Denoiser) -> Smaller | None:
        """Make the student's network smaller as the recipe says; the same again when resumed."""
        section, teacher = self.recipe.compress, self.teacher
        if not section.active:
            return None
        core, kept = self._core(student), self._kept_plans()
        if kept:
            smaller = Smaller.make(list(kept.values()), core)
        else:
            smaller = choose(section, core, lambda: self._calls(student, core))
            self._keep_plans({str(i): plan for i, plan in enumerate(smaller.plans)})
        if section.variance:
            keep_variance(core, smaller, self._calls(student, core))
        student.net.set_submodule(teacher.core, smaller.net.requires_grad_(True))
        left = parameters(student.net)
        self._say(f"compressed to {left:,} parameters, {left / parameters(teacher.net):.0%}")
        return smaller

    def _depths(self, student: Denoiser) -> dict[str, Plan]:
        """The smaller students inside this one; the same again when resumed."""
        section = self.recipe.compress
        check_depths(self.recipe)
        if not section.elastic:
            return {}
        core, plans = self._core(student), self._kept_plans()
        if not plans:
            plans = depths(section, core, lambda: self._calls(student, core))
            self._keep_plans(plans)
        for name, plan in plans.items():
            left = count(plan, core)
            self._say(f"depth {name}: {left:,} parameters, {left / parameters(core):.0%}")
        return plans

    def _core(self, student: Denoiser) -> nn.Module:
        """What of the student can be made smaller."""
        if not self.teacher.core:
            raise ValueError(f"compress: {self.teacher.family} teachers have no blocks to remove")
        if self.recipe.train.roles == "adapters":
            raise ValueError(
                "compress: a smaller student has no base to share; choose train.roles=copies"
            )
        return student.net.get_submodule(self.teacher.core)

    def _kept_plans(self) -> dict[str, Plan]:
        file = self.folder / PLANS
        if not file.is_file():
            return {}
        return {name: Plan.from_json(plan) for name, plan in read_json(file)["plans"].items()}

    def _keep_plans(self, plans: Mapping[str, Plan]) -> None:
        data = {name: plan.to_json() for name, plan in plans.items()}
        write_json(self.folder / PLANS, {"schema_version": 1, "plans": data})

    def _calls(self, student: Denoiser, core: nn.Module) -> list[dict[str, Tensor]]:
        """What the network sees at the student's times."""
        generator = torch.Generator().manual_seed(self.recipe.train.seed)
        x0, cond = self.source.draw(8, generator)
        noise, device = torch.randn(x0.shape, generator=generator), self.times.device

        def run() -> None:
            for t in self.times[:-1]:
                student(student.noised(x0, t, noise).to(device), t, cond)

        return record(core, run)

    def _first(self, device: torch.device) -> Denoiser:
        """What every role starts as a copy of; the teacher's own weights are final then."""
        train, own = self.recipe.train, self.teacher.denoiser
        shares, low = train.roles == "adapters", train.base == "bf16"
        if shares and has_weights(own):
            if low:
                lower(own.net)
            return own.with_net(adapt(own.net, train.adapter, train.seed))
        first = self.teacher.spawn(torch.Generator().manual_seed(train.seed)).to(device)
        if low:
            lower(first.net if shares else own.net)
        return first.with_net(adapt(first.net, train.adapter, train.seed)) if shares else first

    @property
    def table(self) -> StepTable:
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
            guidance=Guidance(mode=mode, scale=section.guidance),
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


@torch.no_grad()
def preview(run: Run, denoiser: Denoiser, step: int) -> None:
    """Draw the student's samples at `step` into the run dir: always the same noise."""
    teacher, table = run.teacher, run.table
    prompts = teacher.preview_prompts()
    if run.part:
        prompts = run.part.own(teacher, prompts) or run.source.prompts(8, torch.Generator())
    count = len(prompts) or (2000 if len(teacher.sample_shape) == 1 else 64)
    generator = torch.Generator().manual_seed(0)
    cond = teacher.encode(prompts)
    device = next(denoiser.parameters()).device
    noise = table.draw((count, *teacher.sample_shape), generator, device)
    decoded = teacher.decode(table.sample(denoiser.net, noise, cond))
    truth = None
    if decoded.ndim == 2:
        truth = run.source.draw(count, generator)[0].numpy()
    save_samples(run.folder / "samples" / f"step-{step:08d}.png", decoded, truth)


@torch.no_grad()
def preview_roles(run: Run, step: int) -> None:
    """Draw what each role makes of one noised sample, a row each, always of the same noise.

    Of pictures, where the method has such roles.
    """
    # A network in shards can be called on all processes only.
    if len(run.teacher.sample_shape) == 1 or run.trainer.accelerator.num_processes > 1:
        return
    generator, shared = (torch.Generator().manual_seed(0) for _ in range(2))
    x0, cond = run.source.draw(8, generator)
    device = run.trainer.accelerator.device
    cond = {name: value.to(device) for name, value in cond.items()}
    batch = Batch(x0.to(device), cond, generator, shared, step)
    if run.trainer.pictured:
        originals = run.source.originals(8, torch.Generator().manual_seed(0))
        batch = replace(batch, originals=None if originals is None else originals.to(device))
    found = run.objective.predictions(batch)
    if found:
        decoded = run.teacher.decode(torch.cat(list(found.values())))
        save_samples(run.folder / "samples" / f"roles-{step:08d}.png", decoded)
