"""Complete a pipeline's tokenizers from its text encoders where their files lack settings."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgedistill.common.files import read_json

__all__ = ["UNBOUNDED", "complete", "nulls", "several_vectors"]

UNBOUNDED = 10**9
"""Length from which on transformers means that none is given."""

_VOCABULARIES = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("spiece.model",),
    ("tokenizer.model",),
    ("vocab.txt",),
)
"""Sets of vocabulary files; a tokenizer needs one complete set."""


def complete(pipeline: Any, names: Iterable[str], path: str) -> None:
    """Give a pipeline's tokenizers the lengths that their files lack.

    A tokenizer without `model_max_length` takes `max_position_embeddings` of its text encoder, and
    is saved with it. If its encoder has none either, the tokenizer is not changed: the family
    knows a length of its own, or says what is missing when it needs one.

    Args:
        pipeline: A pipeline of diffusers.
        names: Names of tokenizers; those that the pipeline does not have are skipped.
        path: Folder or Hub id, for messages.

    Raises:
        ValueError: If a tokenizer has no vocabulary, cannot pad, or is longer or has more tokens
            than its text encoder supports; names the file and the key.
    """
    for name in names:
        tokenizer = getattr(pipeline, name, None)
        if tokenizer is None:
            continue
        _check_vocabulary(Path(path) / name)
        part = name.replace("tokenizer", "text_encoder")
        encoder = getattr(pipeline, part, None)
        config = None if encoder is None else encoder.config
        most = getattr(config, "max_position_embeddings", None)
        file = f"{path}/{name}/tokenizer_config.json"
        length = tokenizer.model_max_length
        if isinstance(length, str) or length != length // 1 or length < 1:
            raise ValueError(f"{file}: model_max_length={length!r}; a number of tokens expected")
        if most and length >= UNBOUNDED:
            tokenizer.model_max_length = length = most
        if most and length > most:
            raise ValueError(
                f"{file}: model_max_length={length}, and {part}/config.json takes "
                f"max_position_embeddings={most}; make the former no larger"
            )
        if tokenizer.pad_token is None:
            raise ValueError(f'{file}: no "pad_token"; name the token that fills short prompts')
        known = getattr(config, "vocab_size", None)
        if known and len(tokenizer) > known:
            raise ValueError(
                f"{path}/{name}: {len(tokenizer)} tokens, and {part}/config.json has "
                f"vocab_size={known}; they are not of one model, or only one of them was saved "
                "with textual inversions loaded"
            )
        if many := several_vectors(tokenizer):
            raise ValueError(
                f"{path}/{name}: {', '.join(many)}: textual inversions of several vectors, which "
                "diffusers puts in while it reads a prompt and a bundle's tokenizer cannot; "
                "leave them out, or load them with one vector each"
            )
    if hasattr(pipeline, "tokenizer_max_length"):  # set before the tokenizer had a length
        pipeline.tokenizer_max_length = pipeline.tokenizer.model_max_length


def several_vectors(tokenizer: Any) -> list[str]:
    """Return added words for which a pipeline reads several vectors: `cat` if `cat_1` exists."""
    added = tokenizer.added_tokens_encoder
    return sorted(word for word in added if f"{word}_1" in added)


def nulls(folder: Path) -> str:
    """Return a special token that a tokenizer of a pipeline folder sets to null; "" if none.

    CLIP's tokenizer fails on one without saying which.
    """
    for file in sorted(folder.glob("tokenizer*/tokenizer_config.json")):
        config = read_json(file)
        for key in ("bos_token", "eos_token"):
            if key in config and config[key] is None:
                return f"{file}: {key} is null; name a token or leave the key out"
    return ""


def _check_vocabulary(folder: Path) -> None:
    """Raise a ValueError if a local folder has no vocabulary; transformers would make one up."""
    there = {file.name for file in folder.glob("*") if file.is_file()}
    if folder.is_dir() and not any(there.issuperset(files) for files in _VOCABULARIES):
        raise ValueError(
            f"{folder}: no vocabulary (tokenizer.json, or its older forms); copy the folder whole"
        )
