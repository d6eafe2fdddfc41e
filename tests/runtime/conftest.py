"""Two real, tiny bundles made by hand: no torch, no exporter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from graphs import FLOAT, INT, node, write_graph
from tokenizers import models, pre_tokenizers, processors

from edgedistill_runtime import manifest as schema
from edgedistill_runtime.steps import Row, StepTable

TABLE = StepTable(
    init_scale=2.0,
    rows=(
        Row(t=0.75, scale=0.5, a=0.3, b=0.6, c=0.25),
        Row(t=0.25, scale=1.0, a=0.5, b=-0.5, c=0.0),
    ),
)
WORDS = ["<start>", "<end>", "red", "blue", "apple", "car"]


def planar_graph(folder: Path) -> schema.Graph:
    """f = 0.5 x + t."""
    return write_graph(
        folder / "denoiser.onnx",
        [
            node("Mul", ["x", "half"], "scaled"),
            node("Unsqueeze", ["t", "one"], "column"),
            node("Add", ["scaled", "column"], "f"),
        ],
        {"x": (["batch", 2], FLOAT), "t": (["batch"], FLOAT)},
        {"f": (["batch", 2], FLOAT)},
        {"half": np.float32(0.5), "one": np.array([1])},
    )


def make_manifest(graphs, shape, image=None, tokenizer=None) -> schema.Manifest:
    equal = schema.Figures(mean=200.0, worst=200.0)
    return schema.Manifest(
        schema_version=schema.schema_for(TABLE),
        target="ort",
        backend="ort",
        precision="fp32",
        steps=TABLE,
        latent=schema.Latent(shape=shape, scaling_factor=1.0, shift_factor=0.0),
        image=image,
        tokenizer=tokenizer,
        graphs=graphs,
        parity=schema.Parity(
            tier="fp32",
            backend="ort",
            text_image_floor=0.0,
            worst_prompt="",
            perceptual=None,
            text_image=None,
            samples=8,
            floor_db=60.0,
            final_floor_db=40.0,
            passed=True,
            graphs={"denoiser": equal},
            final=equal,
        ),
        student=schema.Source(
            sha256="0" * 64, method="lcm", family="mixture", teacher="tiny", licences=()
        ),
        versions={},
        made_from="",
    )


@pytest.fixture(scope="session")
def planar_bundle(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("planar")
    make_manifest({"denoiser": planar_graph(folder)}, (2,)).write(folder)
    return folder


@pytest.fixture(scope="session")
def picture_bundle(tmp_path_factory) -> Path:
    """Text to 2x2 pictures: a prompt's mean embedding shifts the latent (3, 1, 1)."""
    folder = tmp_path_factory.mktemp("picture")
    embedding = np.linspace(-1, 1, len(WORDS) * 3, dtype=np.float32).reshape(-1, 3)
    graphs = {
        "text_encoder": write_graph(
            folder / "text_encoder.onnx",
            [node("Gather", ["embedding", "input_ids"], "encoder_hidden_states")],
            {"input_ids": (["batch", 6], INT)},
            {"encoder_hidden_states": (["batch", 6, 3], FLOAT)},
            {"embedding": embedding},
        ),
        "denoiser": write_graph(
            folder / "denoiser.onnx",
            [
                node("ReduceMean", ["encoder_hidden_states", "one"], "mean", keepdims=0),
                node("Reshape", ["mean", "shape"], "shift"),
                node("Reshape", ["t", "shape_t"], "time"),
                node("Mul", ["x", "time"], "scaled"),
                node("Add", ["scaled", "shift"], "f"),
            ],
            {
                "x": (["batch", 3, 1, 1], FLOAT),
                "t": (["batch"], FLOAT),
                "encoder_hidden_states": (["batch", 6, 3], FLOAT),
            },
            {"f": (["batch", 3, 1, 1], FLOAT)},
            {
                "one": np.array([1]),
                "shape": np.array([-1, 3, 1, 1]),
                "shape_t": np.array([-1, 1, 1, 1]),
            },
        ),
        "decoder": write_graph(
            folder / "decoder.onnx",
            [node("Resize", ["x0", "", "scales"], "image", mode="nearest")],
            {"x0": (["batch", 3, 1, 1], FLOAT)},
            {"image": (["batch", 3, 2, 2], FLOAT)},
            {"scales": np.array([1, 1, 2, 2], np.float32)},
        ),
    }
    tokenizer = tokenizers.Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<end>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    entry = schema.TokenizerFile(
        file="tokenizer.json",
        sha256={"tokenizer.json": schema.sha256(folder / "tokenizer.json")},
        length=6,
        pad_id=1,
    )
    image = schema.Image(height=2, width=2)
    make_manifest(graphs, (3, 1, 1), image, entry).write(folder)
    return folder


def rehash(folder: Path) -> None:
    """Make manifest.sha256 that of the manifest beside it."""
    (folder / "manifest.sha256").write_text(
        f"{schema.sha256(folder / 'manifest.json')}  manifest.json\n"
    )


@pytest.fixture
def change(planar_bundle, tmp_path):
    """A function that copies the planar bundle with its manifest.json edited."""

    def edit(update) -> Path:
        for file in planar_bundle.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        path = tmp_path / "manifest.json"
        data = json.loads(path.read_text())
        update(data)
        path.write_text(json.dumps(data))
        rehash(tmp_path)
        return tmp_path

    return edit
