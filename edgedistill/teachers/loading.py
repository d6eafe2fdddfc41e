"""Loading checks: weights that libraries would skip or make up with a mere warning are errors."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from edgedistill_runtime.hub import hub_name

__all__ = [
    "BROKEN",
    "FAMILIES",
    "check_configs",
    "check_place",
    "reason",
    "whole_weights",
]

FAMILIES = {
    "StableDiffusionPipeline": "stable_diffusion",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3",
    "FluxPipeline": "flux",
    "PixArtAlphaPipeline": "pixart",
    "PixArtSigmaPipeline": "pixart",
    "SanaPipeline": "sana",
    "DiTPipeline": "dit",
    "DDPMPipeline": "unet2d",
    "DDIMPipeline": "unet2d",
    "WanPipeline": "wan",
}
"""Family by the pipeline class that a folder's model_index.json names."""


_WORDED = (OSError, ValueError, RuntimeError, SafetensorError)
"""Errors of libraries whose message says what is wrong."""

BROKEN = (*_WORDED, TypeError, AttributeError, LookupError, ArithmeticError)
"""Errors of libraries on a folder whose configurations are wrong, or do not fit its weights."""

_LIBRARIES = ("diffusers", "transformers")

_MISSING = (
    re.compile(r"Some weights of (?P<model>\w+) were not initialized.*?\[(?P<names>.*?)\]", re.S),
    re.compile(r"(?P<model>\w+) LOAD REPORT.*?\n(?P<names>\S+)\s*\| MISSING", re.S),
)
_OTHER = re.compile(r"(?P<model>\w+) LOAD REPORT.*?\n(?P<names>\S+)\s*\| MISMATCH", re.S)
_UNUSED = re.compile(
    r"Some weights of the model checkpoint.*initializing (?P<model>\w+).*?\[(?P<names>.*?)\]", re.S
)
"""Pattern of diffusers' warning only: a text encoder's file may hold further weights by design."""


def reason(error: Exception) -> str:
    """Return in one line a library's message on a folder that it cannot load."""
    name = type(error).__name__
    first = (str(error).strip().splitlines() or [name])[0]
    return first if isinstance(error, _WORDED) else f"its configs do not fit ({name}: {first})"


def check_configs(folder: Path) -> None:
    """Raise a ValueError if a text encoder lacks its config.json, as transformers makes one up."""
    for part in sorted(folder.glob("text_encoder*/")):
        if part.is_dir() and not (part / "config.json").is_file():
            raise ValueError(f"{part / 'config.json'}: no such file; copy the folder whole")


class _Ear(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())


@contextmanager
def whole_weights(place: str) -> Iterator[list[str]]:
    """Load networks in this block; raise a ValueError if a weight is made up or left over.

    diffusers and transformers fill weights that a file lacks with random numbers, and skip weights
    that they have no place for. They report this in their logs, which are read here and not shown.

    Args:
        place: File or folder, for the message.

    Yields:
        The warnings heard so far.

    Raises:
        ValueError: At the end of the block; names the network and the first weight.
    """
    ear = _Ear()
    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    before = [(each.level, each.handlers, each.propagate) for each in loggers]
    for each in loggers:
        each.handlers, each.propagate = [ear], False
        each.setLevel(logging.WARNING)
    try:
        yield ear.heard
    except RuntimeError as error:
        if found := _OTHER.search(_plain(ear.heard)):
            raise ValueError(f"{place}: {_told(found)} has another shape in its config") from error
        raise
    finally:
        for each, (level, handlers, propagate) in zip(loggers, before, strict=True):
            each.handlers, each.propagate = handlers, propagate
            each.setLevel(level)
    plain = _plain(ear.heard)
    for pattern in _MISSING:
        if found := pattern.search(plain):
            raise ValueError(f"{place}: no weights for {_told(found)}; the file is not whole")
    if found := _UNUSED.search(plain):
        raise ValueError(
            f"{place}: weights that its config.json has no place for: {_told(found)}; "
            "they belong to another configuration"
        )


def _plain(heard: list[str]) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n\n".join(heard))


def _told(found: re.Match[str]) -> str:
    names = [name.strip(" '\"\n") for name in found["names"].split(",")]
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{found['model']}'s {names[0]}{others}"


def check_place(folder: Path, path: str) -> None:
    """Raise a ValueError if `path` is neither a Hub id nor the folder of a pipeline."""
    if (folder / "model_index.json").is_file():
        return
    if folder.is_dir():
        raise ValueError(f"{folder}: no model_index.json; not a diffusers pipeline folder")
    if hub_name(path) is None:
        raise ValueError(f"no teacher at {path!r}: no such folder, asset or Hub id")
