"""Pipelines conditioned on a class; a prompt is its name or its number as text.

In a bundle, a tokenizer makes one token of each prompt, and the text encoder drops the token axis.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from edgedistill.common.files import write_text
from edgedistill.common.text import read_text, split_lines
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.teachers.pipeline import PipelineTeacher

__all__ = ["NAMES", "NULL", "ClassTeacher", "Labels", "class_tokenizer", "read_classes"]

NAMES = "classes.txt"
"""File in a teacher's folder with a name a line, in the order of the classes' numbers."""

NULL = "<null>"
"""Token of the null class, since the empty prompt has no other token and is padded."""


def read_classes(folder: Path, count: int) -> dict[str, int]:
    """Read classes by prompt: their names in the folder's classes.txt, and numbers as text.

    Args:
        folder: The teacher's folder.
        count: Number of classes of the network. There may be fewer names, since the last class may
            be a null class.

    Raises:
        ValueError: If the file names more classes than there are, one name twice, or a class by
            another's number.
    """
    numbers = {str(number): number for number in range(count)}
    file = folder / NAMES
    if not count or not file.is_file():
        return numbers
    lines = [line.strip() for line in split_lines(read_text(file).rstrip())]
    if len(lines) > count:
        raise ValueError(f"{file}: {len(lines)} names, and the network has {count} classes")
    names: dict[str, int] = {}
    for number, name in enumerate(lines):
        if not name or name in names:
            wrong = f"{name!r} is there twice" if name else "is empty"
            raise ValueError(f"{file}: line {number + 1} {wrong}; a name for each class expected")
        if numbers.get(name, number) != number:
            raise ValueError(
                f"{file}: line {number + 1} calls class {number} {name!r}, the number of another"
            )
        names[name] = number
    return {**names, **numbers}


class Labels(nn.Module):
    """A text encoder of class tokens: class_ids (N, 1) -> class_labels (N,).

    Args:
        numbers: Class by token; a class has a token for each of its names.
    """

    numbers: Tensor

    def __init__(self, numbers: Iterable[int]) -> None:
        super().__init__()
        self.register_buffer("numbers", torch.tensor(list(numbers)), persistent=False)

    def forward(self, class_ids: Tensor) -> Tensor:
        return self.numbers[class_ids[:, 0]]


def class_tokenizer(words: Iterable[str]) -> Any:
    """Return a tokenizer whose tokens are the words, in their order; "" is `NULL`, padded."""
    known = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}))
    return PreTrainedTokenizerFast(tokenizer_object=known, pad_token=NULL, model_max_length=1)


class ClassTeacher(PipelineTeacher):
    """A pipeline whose network takes class_labels.

    Attributes:
        classes: Classes by prompt, with `NULL` where there is a null class.
    """

    tokenizers = {"classes": "class_ids"}  # noqa: RUF012
    conditions = ("class_labels",)
    classes: dict[str, int]

    @property
    def each(self) -> list[str]:
        """Return one prompt for every class, in the order of numbers."""
        first: dict[int, str] = {}
        for prompt, number in self.classes.items():
            if prompt != NULL:
                first.setdefault(number, prompt)
        return [first[number] for number in sorted(first)]

    def save(self, folder: Path, net: nn.Module, table: TorchStepTable) -> None:
        super().save(folder, net, table)
        names = self.each
        if any(name != str(number) for number, name in enumerate(names)):
            write_text(folder / NAMES, "".join(f"{name}\n" for name in names))

    def encoder(self) -> nn.Module | None:
        return Labels(self.classes.values())

    def tokenizer(self, name: str) -> Any:
        return class_tokenizer(self.classes)

    def tokenize(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        for prompt in prompts:
            if (prompt or NULL) not in self.classes:
                raise ValueError(f"unknown class {prompt!r}{self._near(prompt)} expected")
        return super().tokenize(prompts)

    def _near(self, prompt: str) -> str:
        """Say which classes there are instead of an unknown one."""
        each = self.each
        numbers = f"a number from 0 to {len(each) - 1}"
        if all(name.isdecimal() for name in each):
            return f"; {numbers}"
        near = [] if prompt.isdecimal() else difflib.get_close_matches(prompt, self.classes, 3)
        hint = f"; near it: {', '.join(near)}" if near else ""
        return f"{hint}; {numbers} or a name of {NAMES} in the teacher's folder"
