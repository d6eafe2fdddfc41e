"""Networks without weights, built on the meta device from their config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import ConfigMixin
from diffusers.utils import logging as diffusers_logging
from torch import nn

from edgedistill.common.files import read_json

__all__ = ["LIBRARIES", "build", "build_class"]

LIBRARIES: dict[str, Any] = {"diffusers": diffusers, "transformers": transformers}


def build(folder: Path, library: str, kind: str) -> nn.Module:
    """Build the frozen network of class `kind` in folder/config.json, without weights.

    Raises:
        ValueError: If this version of the library has no such network, or the config is wrong.
    """
    found = getattr(LIBRARIES[library], kind, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        version = LIBRARIES[library].__version__
        raise ValueError(f"{folder / 'config.json'}: {library} {version} has no {kind}")
    return build_class(folder, found)


def build_class(folder: Path, found: Any) -> nn.Module:
    """Build the frozen network of class `found` in folder/config.json, without weights."""
    file, kind = folder / "config.json", found.__name__
    config = {key: value for key, value in read_json(file).items() if key != "_name_or_path"}
    diffusers_logging.set_verbosity_error()
    try:
        with torch.device("meta"):
            if issubclass(found, ConfigMixin):
                net: Any = found.from_config(config)
            else:
                net = found(found.config_class.from_dict(config))
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{file}: no {kind} can be built from it: {error}") from None
    result: nn.Module = net.eval().requires_grad_(False)
    return result
