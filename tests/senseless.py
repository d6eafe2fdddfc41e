"""Bundles whose manifests make no sense: what every runtime refuses."""

import json
from pathlib import Path

from edgedistill_runtime.manifest import sha256

__all__ = ["GOLDEN", "WITHOUT_SENSE", "put", "rehash"]

GOLDEN = Path(__file__).parent / "golden" / "bundle-2"
"""Two bundles as the second schema had them."""


def put(folder, keys, value):
    """Set a key of a manifest."""
    path = folder / "manifest.json"
    data = place = json.loads(path.read_text())
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(data))


def rehash(folder):
    digest = sha256(folder / "manifest.json")
    (folder / "manifest.sha256").write_text(f"{digest}  manifest.json\n")


ROW = {"t": 1.0, "scale": 1.0, "a": 0.0, "b": 1.0, "c": 0.0}
X = ("graphs", "denoiser", "inputs", 0, "shape")


WITHOUT_SENSE = [
    (("tokenizer", "length"), 10**9, r"tokenizer \(input_ids\)\.length: 1000000000 is not"),
    (("tokenizer", "length"), 0, r"length: 0 is not"),
    (("tokenizer", "length"), 7, r"graphs\.text_encoder\.inputs\.input_ids\.shape: \[7\] exp"),
    (("tokenizer", "pad_id"), -1, "pad_id: -1 is no id"),
    (("tokenizer", "input"), "ids", "input_ids"),
    (("tokenizer", "mask"), "mask", "mask"),
    (("more_tokenizers",), [], None),
    ((*X, 0), -(2**31), "-2147483648 is no size"),
    ((*X, 0), 10**9, "1000000000 is no size"),
    ((*X, 0), 5000, r"batch batch, elsewhere 5000|batch"),
    ((*X, 1), 4, r"graphs\.denoiser\.inputs\.x\.shape: \[3, 1, 1\] expected"),
    (("graphs", "denoiser", "inputs", 0, "shape"), [], "1 to 8 axes"),
    (("graphs", "denoiser", "inputs", 0, "shape"), [1] * 99, "1 to 8 axes"),
    (("graphs", "denoiser", "inputs"), [], "at least one"),
    (("graphs", "denoiser", "outputs"), [], "at least one"),
    (("graphs", "denoiser", "inputs", 0, "name"), "t", "a name is there twice"),
    (("graphs", "denoiser", "inputs", 0, "dtype"), "complex128", "dtype: one of float32"),
    (("graphs", "denoiser", "inputs", 0, "dtype"), "int64", "dtype: float32 expected"),
    (("graphs", "denoiser", "inputs", 2, "shape", 2), 4, "encoder_hidden_states"),
    (("graphs", "decoder", "outputs", 0, "shape", 3), 4, "image"),
    (("graphs", "decoder", "outputs", 0, "name"), "picture", "image"),
    (("latent", "shape"), [0], r"latent\.shape: 0 is no size"),
    (("latent", "shape"), [], "1 to 8 axes"),
    (("latent", "shape"), [60000, 60000, 60000], "more than"),
    (("latent", "shape", 0), 4, r"x\.shape: \[4, 1, 1\] expected"),
    (("image", "height"), 10**9, "image: 1000000000 is no size"),
    (("image", "height"), 3, "image"),
    (("steps", "rows"), [], "at least one row"),
    (("steps", "rows"), [ROW] * 1001, "more than 1000 rows"),
    (("steps", "rows", 0, "t"), 1e39, r"steps\.rows\[0\]\.t: 1e\+39 is no finite float32"),
    (("steps", "rows", 0, "size"), 0.3, "sizes"),
    (("steps", "rows", 0, "past"), [[1.0, 1.0]], "past of row 0: pairs of at most 8 rows before"),
    (("steps", "rows", 1, "past"), [[1.0]], "past of row 1: pairs"),
    (("steps", "rows", 1, "past"), [[1.0, 1.0]] * 2, "past of row 1: pairs"),
    (("steps", "rows", 1, "past"), [1.0, 1.0], r"past\[0\]: expected list"),
    (("steps", "rows", 1, "past"), [[1.0, 1e39]], r"steps\.rows\[1\]\.past.*1e\+39 is no finite"),
    (("steps", "rows", 1, "past"), None, "past: expected list"),
    (("steps", "init_scale"), 0, "init_scale: 0.0 is not above 0"),
    (("graphs", "denoiser", "file"), "C:denoiser.onnx", "leaves the bundle"),
    (("graphs", "denoiser", "file"), "C:/denoiser.onnx", "leaves the bundle"),
    (("graphs", "denoiser", "file"), "a/../../x", "leaves the bundle"),
    (("graphs", "denoiser", "file"), "", "leaves the bundle"),
    (("graphs", "denoiser", "file"), ".", "leaves the bundle"),
    (("graphs", "denoiser", "file"), "a\0b", "leaves the bundle"),
    (("graphs", "denoiser", "file"), "a\x1b[2J", "leaves the bundle"),
    (("graphs", "denoiser", "file"), "x" * 300, "leaves the bundle"),
    (("graphs", "denoiser", "sha256"), {"x" * 300: ""}, "leaves the bundle"),
    (("backend",), "x" * 10**5, "unknown 'xxx"),
    (("graphs", "x" * 10**5), {}, "missing"),
    (("x" * 10**5,), 1, "unknown key"),
    (("schema_version",), True, "schema_version: True is unknown"),
]
"""Keys, a value, and what the refusal says; None where there is none."""
