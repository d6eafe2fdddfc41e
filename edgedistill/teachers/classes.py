"""Pipelines that read a class: a prompt is its name or its number as text.

To a bundle the prompts are a tokenizer with one token a prompt, and the text encoder drops its
axis.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from edgedistill.teachers.pipeline import PipelineTeacher

__all__ = ["NULL", "ClassTeacher", "Labels"]

NULL = "<null>"
"""Token of the null class: the empty prompt has no other, and is padded."""


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


class ClassTeacher(PipelineTeacher):
    """A pipeline whose network takes class_labels.

    Attributes:
        classes: Classes by prompt, with `NULL` where there is a null class.
    """

    tokenizers = {"classes": "class_ids"}  # noqa: RUF012
    conditions = ("class_labels",)
    classes: dict[str, int]

    def encoder(self) -> nn.Module | None:
        return Labels(self.classes.values())

    def tokenizer(self, name: str) -> Any:
        words = Tokenizer(WordLevel({prompt: i for i, prompt in enumerate(self.classes)}))
        return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=NULL, model_max_length=1)

    def tokenize(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        for prompt in prompts:
            if (prompt or NULL) not in self.classes:
                near = difflib.get_close_matches(prompt, self.classes, 3)
                hint = f"; near it: {', '.join(near)}" if near else ""
                raise ValueError(f"unknown class {prompt!r}{hint}; a name or a number expected")
        return super().tokenize(prompts)
