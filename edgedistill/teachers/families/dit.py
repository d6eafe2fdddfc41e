"""DiT: any folder or Hub id in DiTPipeline's layout.

Peebles & Xie 2022 (arXiv 2212.09748): a transformer over latents that reads a class. It also
predicts a variance, which no sampler here needs. A prompt is the name of a class or its number as
text; the empty prompt is the null class of guidance, which has the number after the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffusers.models.embeddings import LabelEmbedding
from torch import Tensor, nn

from edgedistill.common.files import read_json, write_json
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.teachers.classes import NULL, ClassTeacher
from edgedistill.teachers.schedulers import check_unscaled, discrete_border
from edgedistill.teachers.student_schedulers import discrete_schedulers

__all__ = ["DiT"]


IMAGENET = 1000
"""Number of ImageNet's classes."""


class DiTNet(nn.Module):
    """A DiTTransformer2DModel called as net(x, t, class_labels)."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
        result: Tensor = self.transformer(
            x, timestep=t, class_labels=class_labels, return_dict=False
        )[0]
        # The variance channels follow eps.
        return result[:, : x.shape[1]]


class DiT(ClassTeacher):
    """A teacher in DiTPipeline's layout."""

    family = "dit"
    pipelines = ("DiTPipeline",)
    core = "transformer"
    tap = "transformer.norm_out"
    usage = ClassTeacher.usage.replace("pipe(PROMPT,", "pipe([CLASS],")

    def __init__(self, name: str, path: str, pipeline: Any) -> None:
        self.classes = _classes(pipeline)
        super().__init__(name, path, pipeline)
        self.prompts = tuple(list(self.classes)[:4])

    @classmethod
    def check_scheduler(cls, scheduler: Any, path: str) -> None:
        check_unscaled(scheduler, path)
        super().check_scheduler(scheduler, path)

    def parametrization(self) -> tuple[Schedule, Prediction]:
        check_unscaled(self.pipeline.scheduler, self.path)
        return discrete_border(self.pipeline.scheduler, self.path)

    def as_denoiser(self, core: nn.Module) -> DiTNet:
        for module in core.modules():
            if isinstance(module, LabelEmbedding):
                # training would drop labels with it, from the global generator; distillation drops
                # none.
                module.dropout_prob = 0.0
        return DiTNet(core)

    def asks(self, x0: Tensor, prompt: str) -> dict[str, Any] | None:
        # The pipeline's null class is the one after ImageNet's 1000, whatever the network has.
        scale = 2.0 if self.classes[NULL] == IMAGENET else 1.0
        return {"class_labels": [self.classes[prompt]], "guidance_scale": scale}

    def schedulers(self, table: TorchStepTable) -> Iterator[Any]:
        return discrete_schedulers(self.pipeline.scheduler, table)

    def save(self, folder: Path, net: nn.Module, table: TorchStepTable) -> None:
        super().save(folder, net, table)
        names: dict[str, list[str]] = {}
        for label, number in self.pipeline.labels.items():
            names.setdefault(str(number), []).append(label)
        index = folder / "model_index.json"
        # diffusers reads the names from here, and does not write them.
        labels = {number: ", ".join(given) for number, given in names.items()}
        write_json(index, {**read_json(index), "id2label": labels})


def _classes(pipeline: Any) -> dict[str, int]:
    """Return classes by name and by number as text, and the null class."""
    count = pipeline.transformer.config.num_embeds_ada_norm
    numbers = {str(number): number for number in range(count)}
    return {**pipeline.labels, **numbers, NULL: count}
