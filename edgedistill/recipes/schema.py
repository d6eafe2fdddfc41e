"""Schema of a recipe: its sections, typed, frozen, and closed to unknown keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from edgedistill import objectives
from edgedistill.common.plugins import unknown
from edgedistill.common.settings import Settings
from edgedistill.compress.config import Compress
from edgedistill.diffusion.few_step import SAMPLERS
from edgedistill.diffusion.solvers import SOLVERS, SPACINGS
from edgedistill.objectives.added.embedding import Embedding
from edgedistill.objectives.added.reward import Reward
from edgedistill.recipes.bounds import check_name
from edgedistill.recipes.rules import RULES
from edgedistill.training.config import Train

__all__ = [
    "INCEPTION",
    "Compress",
    "DataSection",
    "EvaluateSection",
    "EvaluationRecipe",
    "Lora",
    "Parts",
    "Recipe",
    "StudentSection",
    "TeacherSection",
]


class Lora(Settings):
    """A LoRA that is fused into the teacher's weights."""

    path: str
    """A .safetensors file in kohya's, diffusers' or peft's naming, or the folder of one."""
    scale: float = Field(1.0, ge=-100, le=100)
    """Factor on the whole LoRA."""


class TeacherSection(Settings):
    """The teacher to learn from."""

    family: str
    """The teacher's family: dit, flux, mixture, pixart, sana, sd3, sdxl, stable_diffusion, unet2d,
    wan, or one that another package adds."""
    path: str
    """A shipped asset's name, a folder, a Hub id, or a single .safetensors file in its authors'
    layout (stable_diffusion, sdxl, sd3, flux)."""
    config: str | None = None
    """For a single file: a folder or Hub id with the configurations and tokenizers, and the
    weights that the file lacks; by default found on the Hub."""
    lora: tuple[Lora, ...] = Field((), max_length=16)
    """LoRAs fused into the teacher when it is loaded, in this order: a file, {path, scale}, or a
    list."""
    guidance: float = Field(1.0, ge=0, le=1000)
    """Guidance scale while teaching and in the reference; 1 is none."""
    steps: int = Field(25, gt=0, le=10_000)
    """Solver steps of the teacher as the reference in evaluation and report."""
    solver: str = "ddim"
    """Solver of the teacher's ODE: ddim, euler, heun or dpm++2m."""
    verify: bool = True
    """Compare the teacher with its own diffusers pipeline before anything is trained, and refuse
    it if the samples differ; a teacher is compared once."""
    tiny: bool = False
    """Use a tiny random teacher of the family instead of `path`, to try a recipe."""

    @field_validator("lora", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """Convert a single LoRA or path to a list of {path}."""
        each = [value] if isinstance(value, (str, Mapping)) else value
        if not isinstance(each, (list, tuple)):
            return each
        return [{"path": one} if isinstance(one, str) else one for one in each]

    @property
    def loras(self) -> list[tuple[str, float]]:
        """Return file and factor of each LoRA; none for a tiny teacher, which they do not fit."""
        return [] if self.tiny else [(each.path, each.scale) for each in self.lora]


class StudentSection(Settings):
    """The student's sampling, initial weights and prediction."""

    steps: int = Field(4, gt=0, le=1000)
    """Number of the student's network calls for a sample."""
    sampler: str = "renoise"
    """The rule by which a step lands on the next time: renoise (LCM, DMD2) or ddim."""
    spacing: str = "trailing"
    """Spacing of the student's timesteps, as diffusers names it: trailing, leading or linspace."""
    init: str | None = None
    """A student folder to start from, instead of the teacher's weights."""
    prediction: Literal["eps", "v", "x0"] | None = None
    """Prediction type of the student. By default the teacher's; but v where the teacher predicts
    noise and the student's first step has almost no signal (alpha below 0.01), since noise gives
    no information on x0 there. Adapters, smaller students and methods that train no weights keep
    the teacher's."""
    prediction_steps: int | None = Field(None, gt=0)
    """Steps, out of `train.steps`, in which a student with another prediction than its teacher
    learns it before the method begins; by default a fifth of them."""
    reuse: tuple[int, ...] = Field((), max_length=1000)
    """A step or a list of them, counted from 0, that reuse the deep blocks' state of the step
    before and run the outer blocks of the U-Net alone; for method step-cache."""
    reuse_layers: int | None = Field(None, gt=0)
    """Number of layers of the U-Net's last block that run in these steps, from the end, with the
    layers of the first block whose outputs they read; by default all of them. Fewer layers are
    faster and less exact."""
    decoder: str | None = None
    """A decoder folder, made by the method `decoder`, instead of the teacher's decoder."""

    @field_validator("reuse", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """Convert a single step to a list."""
        return [value] if isinstance(value, int) and not isinstance(value, bool) else value


class DataSection(Settings):
    """Clean data and prompts; the teacher's own are the default."""

    prompts: str | None = None
    """A UTF-8 text file with one prompt a line, a .parquet file or webdataset shards (a .tar or a
    folder of them); the teacher makes the samples for these prompts."""
    caption: str = "caption"
    """Column of a table, and key of a .json in a tar, that holds the prompt."""
    caption_variants: bool = False
    """Whether a picture of the teacher's own data that has several captions gets another one each
    time it is drawn, as when the teacher was trained, in place of always the same one."""
    pictures: str | None = None
    """A folder of pictures with captions, or webdataset shards, instead of samples; the guide to
    data says how captions are found."""
    cache: str | None = None
    """A folder for the pictures' x0, to share between runs; by default in the run dir."""
    samples: int = Field(256, gt=0, le=10**7)
    """Number of samples that the teacher makes where there is no other data."""
    paths: str | None = None
    """A folder of `edgedistill synth`, for methods on the teacher's paths; by default paths are
    made in the run."""

    @model_validator(mode="after")
    def _one_source(self) -> DataSection:
        if self.pictures is None and self.cache is not None:
            raise ValueError("cache is for pictures; name them, or leave it out")
        if self.pictures is not None and (self.prompts is not None or self.paths is not None):
            raise ValueError("pictures have their own captions; leave prompts and paths out")
        return self


class Parts(Settings):
    """Several students, each for a part of the conditions; they share one run dir."""

    count: int = Field(1, ge=1, le=1000)
    """Number of students; from 2 on the conditions are divided among them."""
    only: int | None = Field(None, ge=0)
    """Train only this student, counted from 0, so that several machines share the work."""

    @model_validator(mode="after")
    def _among(self) -> Parts:
        if self.only is not None and self.count == 1:
            raise ValueError(f"only={self.only}: there is one student; set parts.count")
        if self.only is not None and self.only >= self.count:
            raise ValueError(f"only={self.only}: a student from 0 to {self.count - 1} expected")
        return self

    @property
    def trained(self) -> list[int]:
        """Indices of the students that a run trains."""
        return list(range(self.count)) if self.only is None else [self.only]


INCEPTION = "inception:"
"""Prefix of a file of Inception's weights in `evaluate.features`."""


class EvaluateSection(Settings):
    """Defaults of `edgedistill evaluate`."""

    samples: int = Field(512, gt=0, le=10**6)
    """Number of pictures that teacher, student and bundles draw each."""
    seed: int = Field(1234, ge=0, lt=2**63)
    """Seed of the noise, which is the same for all."""
    features: str | None = None
    """Feature network of the figures: a folder or Hub id of a vision model, `inception:FILE` for
    FID (safetensors; needs `edgedistill[metrics]`), `pixels` or `teacher`; by default the CLIP
    model that the teacher ships, else a pixel teacher's own U-Net, else pixels."""
    batch_size: int = Field(64, gt=0, le=2**16)
    """Number of pictures that are drawn at once."""


class EvaluationRecipe(BaseModel):
    """The part of a recipe that evaluation and report need; an adopted student has only this."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    description: str = ""
    teacher: TeacherSection
    data: DataSection = DataSection()
    evaluate: EvaluateSection = EvaluateSection()


class Recipe(Settings):
    """All settings of a run."""

    name: str
    """Name of the run dir, by default that of the recipe's file."""
    description: str = ""
    """A description that lists of recipes and the report show."""
    teacher: TeacherSection
    student: StudentSection = StudentSection()
    objective: dict[str, Any]
    """The method's name, and its settings: `edgedistill doctor --all` lists the methods."""
    data: DataSection = DataSection()
    compress: Compress = Compress()
    parts: Parts = Parts()
    embedding: Embedding | None = None
    """A loss added to the method's own, on random networks' features of samples and data."""
    reward: Reward | None = None
    """Reward of a sample: a loss added to the method's own, or the signal that the method learns
    from."""
    train: Train
    evaluate: EvaluateSection = EvaluateSection()

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        check_name(name)
        return name

    @model_validator(mode="after")
    def _names(self) -> Recipe:
        for what, name, table in (
            ("solver", self.teacher.solver, SOLVERS),
            ("sampler", self.student.sampler, SAMPLERS),
            ("spacing", self.student.spacing, SPACINGS),
        ):
            if name not in table:
                raise unknown(what, name, table)
        for rule in RULES:
            rule(self)
        return self

    @property
    def method_steps(self) -> int:
        """Number of steps of the method, after those of `compress.first_steps`."""
        steps, first = self.train.steps, self.compress.first_steps
        return steps - first if first < steps else steps

    def method(self) -> type[objectives.Objective]:
        """Class of the objective."""
        return objectives.find(str(self.objective.get("name", "")))

    def method_config(self) -> Settings:
        """Configuration of the objective."""
        arguments = {k: v for k, v in self.objective.items() if k != "name"}
        return self.method().Config(**arguments)
