"""Complete a pipeline folder for transformers 4, which reads other files than 5 writes."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from edgedistill.common.files import read_json

__all__ = ["open_to_transformers_4"]

PREFIX = "text_model."
"""Begin of the names of a CLIPTextModel's weights up to transformers 4; 5 reads both."""


def open_to_transformers_4(folder: Path) -> None:
    """Add what transformers 4 needs to read CLIP's tokenizers and text encoders in a new folder.

    transformers 5 saves a tokenizer.json alone, and leaves "text_model." out of the names of a
    CLIPTextModel's weights. transformers 4 needs vocab.json and merges.txt, and fills weights of
    other names with random numbers.

    Args:
        folder: A pipeline folder that is being written.
    """
    for file in sorted(folder.glob("tokenizer*/tokenizer.json")):
        _write_vocabulary(file)
    for file in sorted(folder.glob("text_encoder*/*.safetensors")):
        if "CLIPTextModel" in (read_json(file.parent / "config.json").get("architectures") or ()):
            _name_weights(file)


def _write_vocabulary(file: Path) -> None:
    """Write vocab.json and merges.txt beside the tokenizer.json of a CLIP tokenizer."""
    kind = str(read_json(file.parent / "tokenizer_config.json").get("tokenizer_class"))
    vocab, merges = file.parent / "vocab.json", file.parent / "merges.txt"
    if not kind.startswith("CLIPTokenizer") or (vocab.is_file() and merges.is_file()):
        return
    model = read_json(file)["model"]
    vocab.write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    pairs = (pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    lines = "\n".join(["#version: 0.2", *pairs])
    merges.write_text(lines + "\n", encoding="utf-8", newline="\n")


def _name_weights(file: Path) -> None:
    """Begin the names of a text encoder's weights with "text_model."."""
    with safe_open(file, "pt") as weights:
        names = list(weights.keys())
        if any(name.startswith(PREFIX) for name in names):
            return
        tensors = {PREFIX + name: weights.get_tensor(name) for name in names}
        header = weights.metadata()
    save_file(tensors, file, header)
    index = file.with_name("model.safetensors.index.json")
    if index.is_file():
        data = json.loads(index.read_text(encoding="utf-8"))
        data["weight_map"] = {
            name if name.startswith(PREFIX) else PREFIX + name: place
            for name, place in data["weight_map"].items()
        }
        index.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
