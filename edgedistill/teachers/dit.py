"""DiT: any folder or Hub id in DiTPipeline's layout.

Peebles & Xie 2022 (arXiv 2212.09748): a transformer over latents that reads a class, and predicts
a variance besides, which no sampler here needs. A prompt is the name of a class or its number as
text; the empty prompt is the null class of guidance, which has the number after the last.

To a bundle the names are a tokenizer with one token a prompt, and the text encoder drops its axis.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.embeddings import LabelEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from edgedistill.files import read_json, write_json
from edgedistill.prediction import Prediction
from edgedistill.sampling import StepTable
from edgedistill.schedule import Discrete
from edgedistill.teachers.pipeline import PipelineTeacher
from edgedistill.teachers.stable_diffusion import discrete_border, discrete_schedulers

__all__ = ["DiT"]

NULL = "<null>"
"""Token of the null class: the empty prompt has no other, and is padded."""


class Transformer(nn.Module):
    """DiTTransformer2DModel called as net(x, t, class_labels)."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
        result: Tensor = self.transformer(
            x, timestep=t, class_labels=class_labels, return_dict=False
        )[0]
        # The variance stands behind eps.
        return result[:, : x.shape[1]]


class Labels(nn.Module):
    """Tokens class_ids (N, 1) -> class_labels (N,).

    Args:
        numbers: Class by token; a class has a token for each of its names.
    """

    numbers: Tensor

    def __init__(self, numbers: Iterable[int]) -> None:
        super().__init__()
        self.register_buffer("numbers", torch.tensor(list(numbers)), persistent=False)

    def forward(self, class_ids: Tensor) -> Tensor:
        return self.numbers[class_ids[:, 0]]


class DiT(PipelineTeacher):
    """A DiTPipeline."""

    family = "dit"
    pipelines = ("DiTPipeline",)
    core = "transformer"
    tap = "transformer.norm_out"
    tokenizers = {"classes": "class_ids"}  # noqa: RUF012
    conditions = ("class_labels",)
    usage = PipelineTeacher.usage.replace("pipe(PROMPT,", "pipe([CLASS],")

    def __init__(self, name: str, path: str, pipeline: Any) -> None:
        self.classes = _classes(pipeline)
        super().__init__(name, path, pipeline)
        self.prompts = tuple(list(self.classes)[:4])

    def border(self) -> tuple[Discrete, Prediction]:
        return discrete_border(self.pipeline.scheduler, self.path)

    def wrap(self, core: nn.Module) -> Transformer:
        for module in core.modules():
            if isinstance(module, LabelEmbedding):
                # Training drops labels by it, from the global generator; distillation drops none.
                module.dropout_prob = 0.0
        return Transformer(core)

    def encoder(self) -> Labels:
        return Labels(self.classes.values())

    def tokenizer(self, name: str) -> Any:
        words = Tokenizer(WordLevel({prompt: i for i, prompt in enumerate(self.classes)}))
        return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=NULL, model_max_length=1)

    def tokenize(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        for prompt in prompts:
            if prompt and prompt not in self.classes:
                near = difflib.get_close_matches(prompt, self.classes, 3)
                hint = f"; near it: {', '.join(near)}" if near else ""
                raise ValueError(f"unknown class {prompt!r}{hint}; a name or a number expected")
        return super().tokenize(prompts)

    def schedulers(self, table: StepTable) -> Iterator[Any]:
        return discrete_schedulers(self.pipeline.scheduler, table)

    def save(self, folder: Path, net: nn.Module, table: StepTable) -> None:
        super().save(folder, net, table)
        names: dict[str, list[str]] = {}
        for label, number in self.pipeline.labels.items():
            names.setdefault(str(number), []).append(label)
        index = folder / "model_index.json"
        # diffusers reads the names from here, and does not write them.
        labels = {number: ", ".join(given) for number, given in names.items()}
        write_json(index, {**read_json(index), "id2label": labels})


def _classes(pipeline: Any) -> dict[str, int]:
    """Classes by name and by number as text, and the null class."""
    count = pipeline.transformer.config.num_embeds_ada_norm
    numbers = {str(number): number for number in range(count)}
    return {**pipeline.labels, **numbers, NULL: count}
