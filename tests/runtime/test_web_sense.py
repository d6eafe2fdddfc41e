"""The JavaScript runtime reads the same manifests, and refuses the same ones."""

import json
import re
import shutil
from pathlib import Path

import pytest
from javascript import needs_node, node
from senseless import GOLDEN, WITHOUT_SENSE, put, rehash

from edgedistill_runtime import BundleError, Pipeline, strict_json

pytestmark = needs_node

LOAD = """
import { Pipeline } from "./edgedistill.mjs";
console.warn = (line) => said.push(line);
const said = [];
const results = [];
for (const place of input) {
  try {
    await Pipeline.load(place);
    results.push(["loaded", ""]);
  } catch (error) {
    results.push([error.name, error.message]);
  }
}
give({ results, said });
"""


def test_what_python_refuses_javascript_refuses(picture_bundle, tmp_path):
    folders = []
    for number, (keys, value, message) in enumerate(WITHOUT_SENSE):
        if message is None:
            continue
        folder = shutil.copytree(picture_bundle, tmp_path / str(number))
        put(folder, keys, value)
        rehash(folder)
        folders.append((str(folder), keys, value))
    told = node(LOAD, *(folder for folder, _, _ in folders))
    for (_, keys, value), (name, message) in zip(folders, told["results"], strict=True):
        if keys == ("schema_version",) or name == "BundleError":
            assert name == "BundleError", (keys, value, message)
            assert len(message) < 700
            continue
        # Keys that no language needs are not looked at.
        assert name == "loaded"
        assert len(keys[-1]) > 99, (keys, str(value)[:80], message)


PARSE = """
import { parse } from "./strict_json.mjs";
const read = (text) => {
  try {
    return [true, parse(Uint8Array.from(text))];
  } catch (error) {
    return [false, error.message];
  }
};
give(input.map(read));
"""

TEXTS = [
    (b'{"a": 1, "b": {"a": 2}, "c": [{"a": 3}, {"a": 4}]}', ""),
    (b'\xef\xbb\xbf{"a": "\\"b\\": 1, \\\\", "b": -1.5e3}', ""),
    (b'{"a:": "{", "b": "a", "a": [":"]}', ""),
    (b"[" * 64 + b"]" * 64, ""),
    (b'{"a": 1, "b": 2, "a": 1}', "twice"),
    (b'{"a": [{"b": 1, "\\u0062": 1}]}', "twice"),
    (b'{"a": 1e999}', "is no finite number"),
    (b'{"a": -1e999}', "is no finite number"),
    (b'{"a": 18446744073709551616}', "is no integer below 2^64"),
    (b"[" * 65 + b"]" * 65, "nested deeper than 64 levels"),
    (b'{"a": "\xff"}', "not UTF-8"),
    (b'{"a": NaN}', "NaN"),
]


def test_json_is_as_strict_as_in_python():
    told = node(PARSE, *(list(text) for text, _ in TEXTS))
    for (text, refusal), (taken, found) in zip(TEXTS, told, strict=True):
        if not refusal:
            assert (taken, found) == (True, strict_json.parse(text))
            continue
        assert not taken, text[:60]
        with pytest.raises(ValueError, match=re.escape(refusal)):
            strict_json.parse(text)
        assert refusal in found
        assert "\n" not in found


def test_a_key_that_is_there_twice_is_refused(planar_bundle, tmp_path):
    folder = Path(shutil.copytree(planar_bundle, tmp_path / "bundle"))
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace("{", '{"backend": "ort",', 1))
    rehash(folder)
    ((name, message),) = node(LOAD, str(folder))["results"]
    assert name == "BundleError"
    assert message.endswith('manifest.json: not JSON: key "backend" twice')
    with pytest.raises(BundleError, match="key 'backend' twice"):
        Pipeline.load(folder)


def test_the_hash_is_checked_and_old_bundles_are_read(planar_bundle, tmp_path):
    folder = shutil.copytree(planar_bundle, tmp_path / "bundle")
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"b": 0.6', '"b": 0.606'))
    bare = shutil.copytree(planar_bundle, tmp_path / "bare")
    (bare / "manifest.sha256").unlink()
    places = [planar_bundle, folder, bare, GOLDEN / "planar"]
    told = node(LOAD, *map(str, places))
    names, messages = zip(*told["results"], strict=True)
    assert names == ("loaded", "BundleError", "BundleError", "loaded")
    assert messages[1].endswith(
        "manifest.json: damaged or changed: its SHA-256 is not that in manifest.sha256"
    )
    assert "manifest.sha256: cannot be read" in messages[2]
    assert len(told["said"]) == 1
    assert "schema_version 2 of an older edgedistill" in told["said"][0]


def test_an_old_bundle_draws_the_points_that_python_draws():
    code = """
    import { Pipeline } from "./edgedistill.mjs";
    console.warn = () => {};
    const pipe = await Pipeline.load(input[0]);
    give(Array.from((await pipe.draw(null, { seed: 3 })).sample));
    """
    place = GOLDEN / "planar"
    assert node(code, str(place)) == Pipeline.load(place).samples(1, seed=3).samples[0].tolist()


def test_a_graph_that_does_not_open_is_named(planar_bundle, tmp_path):
    from edgedistill_runtime.manifest import sha256

    folder = Path(shutil.copytree(planar_bundle, tmp_path / "bundle"))
    (folder / "denoiser.onnx").write_bytes(b"\0\0")
    data = json.loads((folder / "manifest.json").read_text())
    data["graphs"]["denoiser"]["sha256"]["denoiser.onnx"] = sha256(folder / "denoiser.onnx")
    (folder / "manifest.json").write_text(json.dumps(data))
    rehash(folder)
    ((name, message),) = node(LOAD, str(folder))["results"]
    assert name == "BundleError"
    assert message.startswith("denoiser.onnx: ")
