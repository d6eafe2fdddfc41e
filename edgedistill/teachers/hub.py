"""Pipelines on the Hugging Face Hub, as local folders."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path, PurePosixPath

from huggingface_hub import try_to_load_from_cache

from edgedistill.common.files import read_json
from edgedistill_runtime.hub import ROOTS, TERMS, fetch, hub_name

__all__ = ["checkpoint_at", "configs_at", "kept_at", "network_at", "pipeline_at"]

INDEX, STUDENT = "model_index.json", "student.json"

WEIGHTS = re.compile(r"(model|diffusion_pytorch_model)(-\d+-of-\d+)?\.safetensors")
"""Names of the weights that diffusers and transformers open, without variants such as fp16."""

CONFIGS = (".json", ".txt", ".model", ".jinja")
"""Endings of configurations and tokenizers."""


def pipeline_at(path: str, unused: Iterable[str] = ()) -> str:
    """Return a local path as it is; of a pipeline on the Hub, the folder of a copy.

    Of its components, the weights in safetensors are fetched, not their variants. A student is
    fetched whole.

    Args:
        path: A local path, or OWNER/NAME[@REVISION].
        unused: Components that are not fetched.

    Raises:
        HubError: If it cannot be had; says why.
    """
    name = hub_name(path)
    if name is None:
        return path
    folder = fetch(name, partial(_named, {INDEX, STUDENT}))
    if (folder / STUDENT).is_file():
        return str(fetch(name))
    file = folder / INDEX
    parts = set(read_json(file) if file.is_file() else ()) - set(unused)
    return str(fetch(name, partial(_of_pipeline, parts)))


def configs_at(path: str) -> str:
    """Return a local path as it is; of a pipeline on the Hub, the folder of its configurations.

    Raises:
        HubError: If it cannot be had; says why.
    """
    name = hub_name(path)
    return path if name is None else str(fetch(name, _configs))


def network_at(path: str) -> str:
    """Return a local path as it is; of one network on the Hub, the folder of a copy.

    Raises:
        HubError: If it cannot be had; says why.
    """
    name = hub_name(path)
    return path if name is None else str(fetch(name, partial(_of_pipeline, {"."})))


def checkpoint_at(path: str) -> str:
    """Return a local path as it is; of a checkpoint on the Hub, the folder of a copy.

    It is a pipeline, or a folder of single files such as LoRAs.

    Raises:
        HubError: If it cannot be had; says why.
    """
    name = hub_name(path)
    if name is None:
        return path
    folder = fetch(name, _index_or_files)
    return pipeline_at(path) if (folder / INDEX).is_file() else str(folder)


def _index_or_files(files: Iterable[str]) -> list[str]:
    names = list(files)
    if INDEX in names:
        return [INDEX]
    return [name for name in names if "/" not in name]


def kept_at(path: str) -> Path:
    """Return a local path as it is; of a pipeline on the Hub, the copy that was fetched.

    Nothing is fetched. If there is no copy, the path is that of no file.
    """
    name = hub_name(path)
    if name is None:
        return Path(path)
    for root in ROOTS:
        found = try_to_load_from_cache(name.repo, root, revision=name.revision)
        if isinstance(found, str):
            return Path(found).parent
    return Path(path)


def _named(names: Collection[str], files: Iterable[str]) -> list[str]:
    return [file for file in files if file in names]


def _configs(files: Iterable[str]) -> list[str]:
    return [file for file in files if file.endswith(CONFIGS)]


def _of_pipeline(parts: Collection[str], files: Iterable[str]) -> list[str]:
    """Choose the files of some components, and what is said of the whole."""
    chosen = []
    for file in files:
        path = PurePosixPath(file)
        whole = len(path.parts) == 1
        if not whole and path.parts[0] not in parts:
            continue
        told = whole and path.name.lower().startswith(("readme", *TERMS))
        weights = WEIGHTS.fullmatch(path.name) and (not whole or "." in parts)
        if told or weights or path.suffix in CONFIGS:
            chosen.append(file)
    return chosen
