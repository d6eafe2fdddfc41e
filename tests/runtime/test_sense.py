"""A manifest's numbers are bounded, its parts agree, its files stay inside, all is hashed."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, external_data_helper, helper, load, numpy_helper
from senseless import GOLDEN, WITHOUT_SENSE, put, rehash

from edgedistill_runtime import BundleError, Manifest, Pipeline
from edgedistill_runtime.backends.onnx_data import external_files
from edgedistill_runtime.manifest import sha256


@pytest.fixture
def picture(picture_bundle, tmp_path):
    """A function that copies the picture bundle with `keys` of its manifest set to a value."""

    def edit(*keys, value) -> Path:
        folder = tmp_path / "bundle"
        shutil.copytree(picture_bundle, folder)
        put(folder, keys, value)
        rehash(folder)
        return folder

    return edit


@pytest.mark.parametrize(("keys", "value", "message"), WITHOUT_SENSE)
def test_a_manifest_without_sense_is_refused_before_anything_opens(picture, keys, value, message):
    folder = picture(*keys, value=value)
    if message is None:
        Pipeline.load(folder)
        return
    with pytest.raises(BundleError, match=message) as caught:
        Pipeline.load(folder)
    assert str(caught.value).startswith(str(folder))
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"init_scale": 2.0', '"init_scale": 1e999', "no finite number"),
        ('"init_scale": 2.0', '"init_scale": NaN', "is no number"),
        ('"init_scale": 2.0', '"init_scale": 2.0, "init_scale": 3.0', "'init_scale' twice"),
        ('"init_scale": 2.0', '"init_scale": ' + "9" * 400, "no integer"),
        ('"init_scale": 2.0', '"init_scale": ' + "[" * 10**5, "nested deeper"),
        ('"init_scale": 2.0', '"init_scale": 2.1', r"SHA-256 is not that in manifest\.sha256"),
        ('"b": 0.6', '"b": 0.606', r"SHA-256 is not that in manifest\.sha256"),
        ('"made_from": ""', '"made_from": "x"', r"SHA-256 is not that in manifest\.sha256"),
    ],
)
def test_all_of_a_manifest_is_under_its_hash(picture_bundle, tmp_path, old, new, message):
    folder = shutil.copytree(picture_bundle, tmp_path / "bundle")
    path = folder / "manifest.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(BundleError, match=message):
        Manifest.read(folder)


def test_the_hash_is_one_that_sha256sum_checks(picture_bundle, tmp_path):
    done = subprocess.run(
        ["sha256sum", "-c", "manifest.sha256"],
        cwd=picture_bundle,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0
    folder = shutil.copytree(picture_bundle, tmp_path / "bundle")
    (folder / "manifest.sha256").unlink()
    with pytest.raises(BundleError, match=r"manifest\.sha256: no such file"):
        Manifest.read(folder)


def test_a_bundle_of_schema_2_draws_as_ever_and_says_so_once(caplog):
    with caplog.at_level(logging.WARNING, "edgedistill_runtime"):
        drawn = Pipeline.load(GOLDEN / "picture")("red apple", seed=3)
        points = Pipeline.load(GOLDEN / "planar").samples(1, seed=3).samples
        Manifest.read(GOLDEN / "picture")
    assert [r.getMessage().count("schema_version 2") for r in caplog.records] == [1, 1]
    np.testing.assert_allclose(
        drawn.samples.ravel(),
        [0.13318821787834167, 0.12791965901851654, 0.28818926215171814],
        1e-6,
    )
    np.testing.assert_allclose(points.ravel(), [0.0866372287273407, -0.055459946393966675], 1e-6)


def test_links_out_of_the_bundle_are_refused_and_links_inside_are_not(picture_bundle, tmp_path):
    folder = shutil.copytree(picture_bundle, tmp_path / "bundle")
    graph = folder / "denoiser.onnx"
    graph.rename(folder / "real")
    graph.symlink_to("real")
    Pipeline.load(folder)
    (folder / "real").rename(tmp_path / "outside")
    graph.unlink()
    graph.symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match=r"denoiser\.onnx: links to a place outside"):
        Pipeline.load(folder)


def with_weights_outside(folder, location="weights.bin"):
    """Rewrite the text encoder with its table in a further file, weights.bin."""
    graph = folder / "text_encoder.onnx"
    model = load(graph)
    (tensor,) = model.graph.initializer
    (folder / "weights.bin").write_bytes(tensor.raw_data)
    external_data_helper.set_external_data(tensor, location)
    tensor.ClearField("raw_data")
    graph.write_bytes(model.SerializeToString())
    data = json.loads((folder / "manifest.json").read_text())
    data["graphs"]["text_encoder"]["sha256"]["text_encoder.onnx"] = sha256(graph)
    (folder / "manifest.json").write_text(json.dumps(data))
    rehash(folder)
    return data


@pytest.mark.parametrize("location", ["weights.bin", "./weights.bin", "../weights.bin", "/etc/x"])
def test_external_weights_must_be_hashed(picture_bundle, tmp_path, location):
    folder = shutil.copytree(picture_bundle, tmp_path / "bundle")
    with_weights_outside(folder, location)
    with pytest.raises(
        BundleError, match=r"text_encoder\.onnx: reads '.*', which is not in its sha"
    ):
        Pipeline.load(folder)


def test_external_weights_that_are_hashed_are_read(picture_bundle, tmp_path):
    folder = shutil.copytree(picture_bundle, tmp_path / "bundle")
    data = with_weights_outside(folder)
    hashes = data["graphs"]["text_encoder"]["sha256"]
    hashes["weights.bin"] = sha256(folder / "weights.bin")
    (folder / "manifest.json").write_text(json.dumps(data))
    rehash(folder)
    drawn = Pipeline.load(folder)("red", seed=1).samples
    assert np.array_equal(drawn, Pipeline.load(picture_bundle)("red", seed=1).samples)


def test_weights_are_found_wherever_a_graph_may_keep_them(tmp_path):
    def outside(name):
        tensor = numpy_helper.from_array(np.zeros(2, np.float32), name)
        external_data_helper.set_external_data(tensor, name)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        return tensor

    constant = helper.make_node("Constant", [], ["c"], value=outside("attribute"))
    inner = helper.make_graph([constant], "inner", [], [], [outside("subgraph")])
    node = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    graph = helper.make_graph([node], "outer", [], [], [outside("initializer")])
    function = helper.make_function(
        "local",
        "f",
        [],
        ["c"],
        [helper.make_node("Constant", [], ["c"], value=outside("function"))],
        [],
    )
    model = helper.make_model(graph, functions=[function])
    file = tmp_path / "x.onnx"
    file.write_bytes(model.SerializeToString())
    assert external_files(file) == {"attribute", "subgraph", "initializer", "function"}


@pytest.mark.parametrize("content", [b"", b"\0", b"\xff" * 99, b"\x3a\xff\x01", b"not a graph"])
def test_what_no_engine_opens_is_a_bundle_error_with_the_file(picture_bundle, tmp_path, content):
    for name, key in (
        ("denoiser.onnx", ("graphs", "denoiser")),
        ("tokenizer.json", ("tokenizer",)),
    ):
        folder = shutil.copytree(picture_bundle, tmp_path / name)
        (folder / name).write_bytes(content)
        data = json.loads((folder / "manifest.json").read_text())
        part = data
        for step in key:
            part = part[step]
        part["sha256"][name] = sha256(folder / name)
        (folder / "manifest.json").write_text(json.dumps(data))
        rehash(folder)
        with pytest.raises(BundleError, match=name) as caught:
            Pipeline.load(folder)
        assert "\n" not in str(caught.value)


def test_another_graph_than_the_manifest_says_is_refused(picture_bundle, tmp_path):
    folder = shutil.copytree(picture_bundle, tmp_path / "bundle")
    shutil.copy(folder / "decoder.onnx", folder / "denoiser.onnx")
    data = json.loads((folder / "manifest.json").read_text())
    data["graphs"]["denoiser"]["sha256"]["denoiser.onnx"] = sha256(folder / "denoiser.onnx")
    (folder / "manifest.json").write_text(json.dumps(data))
    rehash(folder)
    with pytest.raises(BundleError, match=r"denoiser\.onnx: inputs: x0; the manifest says x, t"):
        Pipeline.load(folder)


def test_a_pipe_in_the_place_of_the_manifest_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(BundleError, match="no regular file"):
        Manifest.read(tmp_path)
