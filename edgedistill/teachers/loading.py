"""Loading checks: weights that libraries would skip or make up with a mere warning are errors."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from edgedistill.common.files import read_json
from edgedistill.common.pickles import check_pickles
from edgedistill_runtime.hub import hub_name

__all__ = [
    "BROKEN",
    "FAMILIES",
    "check_configs",
    "check_parts",
    "check_place",
    "check_variants",
    "check_weights",
    "damaged",
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


def reason(error: Exception, place: str | Path | None = None) -> str:
    """Return in one line what is wrong with weights that a library cannot load.

    Args:
        error: The library's error.
        place: The file or folder, in which a file that is no whole safetensors is looked for.
    """
    damage = damaged(Path(place)) if place is not None else ""
    if damage:
        return damage
    name = type(error).__name__
    first = (str(error).strip().splitlines() or [name])[0]
    return first if isinstance(error, _WORDED) else f"its configs do not fit ({name}: {first})"


def damaged(place: Path) -> str:
    """Say which .safetensors file at a place is cut or damaged; "" if none is."""
    for file in sorted(place.rglob("*.safetensors")) if place.is_dir() else [place]:
        try:
            with safe_open(file, "pt"):
                pass
        except SafetensorError:
            size = file.stat().st_size
            return f"{file} is cut or damaged ({size:,} bytes); copy or download it again"
        except OSError:
            continue  # which the library's own message names
    return ""


def check_parts(folder: Path, unused: Collection[str]) -> None:
    """Raise a ValueError if a component that model_index.json lists has no folder.

    diffusers would look for its files beside model_index.json, and name those.
    """
    index = read_json(folder / "model_index.json")
    if not all(index.get("scheduler") or [None]):
        raise ValueError(
            f"{folder}: its model_index.json lists no scheduler; copy the folder whole"
        )
    for part, listed in index.items():
        used = isinstance(listed, list) and all(listed) and part not in unused
        if used and not part.startswith("_") and not (folder / part).is_dir():
            raise ValueError(
                f"{folder} has no {part}/, which its model_index.json lists; copy the folder whole"
            )


def check_variants(folder: Path) -> None:
    """Raise a ValueError if a component has its weights in a variant alone, such as fp16.

    Diffusers would look for files without the variant in their names, and name those.
    """
    for file in sorted(folder.glob("*/*.*.safetensors")):
        variant = file.stem.rpartition(".")[2]
        plain = (each for each in file.parent.glob("*.safetensors") if "." not in each.stem)
        if variant.isalnum() and not any(plain):
            raise ValueError(
                f"{file.parent} has its weights in the variant {variant} alone ({file.name}); "
                f"load the pipeline with variant={variant!r}, and save it without one"
            )


def check_weights(folder: Path, unused: Collection[str]) -> None:
    """Raise a ValueError if a pipeline folder's files cannot be opened, at the price of a look.

    A folder of configurations alone, which has no weights, is left as it is.

    Args:
        folder: The folder.
        unused: Components that the family does not open.
    """
    check_pickles(folder)
    if not any(folder.glob("*/*.safetensors")):
        return
    check_variants(folder)
    check_parts(folder, unused)
    if damage := damaged(folder):
        raise ValueError(damage)


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
    if folder.is_file():
        raise ValueError(f"{folder}: not a .safetensors file, nor a diffusers pipeline folder")
    if hub_name(path) is None:
        raise ValueError(f"no teacher at {path!r}: no such folder, asset or Hub id")
