import json

import pytest

from edgedistill_runtime import BundleError, Manifest, Pipeline


def test_reads_what_it_wrote(picture_bundle, tmp_path):
    manifest = Manifest.read(picture_bundle)
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    assert {file.name for file in tmp_path.iterdir()} == {"manifest.json", "manifest.sha256"}


def remove(*keys):
    def update(data):
        for key in keys[:-1]:
            data = data[key]
        del data[keys[-1]]

    return update


def put(*keys, value):
    def update(data):
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return update


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (remove("steps"), "steps: missing"),
        (remove("graphs", "denoiser", "inputs"), r"graphs\.denoiser\.inputs: missing"),
        (remove("graphs", "denoiser"), r"graphs\.denoiser: missing"),
        (
            put("schema_version", value=99),
            "schema_version: 99 is unknown; this runtime reads 2, 3, 4, 5",
        ),
        (put("graphs", "denoiser", "sha", value=1), r"graphs\.denoiser\.sha: unknown key; choose"),
        (
            put("steps", "rows", 0, "c", value="0"),
            r"steps\.rows\[0\]\.c: expected float, found '0'",
        ),
        (put("latent", "shape", 0, value=True), r"latent\.shape\[0\]: expected int, found True"),
        (put("graphs", value=[]), r"graphs: expected dict, found \[\]"),
        (put("parity", value=None), "parity: expected an object, found None"),
        (put("graphs", "unet", value={}), r"graphs\.unet\.file: missing"),
        (put("backend", value="tpu"), "backend: unknown 'tpu'; choose from "),
        (put("graphs", "denoiser", "file", value="../x.onnx"), "leaves the bundle"),
        (put("graphs", "denoiser", "file", value="y.onnx"), "sha256: no entry for 'y.onnx'"),
        (
            put("graphs", "denoiser", "sha256", "denoiser.onnx", value="0" * 64),
            "damaged or changed",
        ),
    ],
)
def test_a_wrong_manifest_is_named_in_one_line(change, update, message):
    folder = change(update)
    with pytest.raises(BundleError, match=message) as caught:
        Pipeline.load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_graph_names_the_choices(change):
    def update(data):
        data["graphs"]["unet"] = data["graphs"]["denoiser"]

    with pytest.raises(BundleError, match="unknown 'unet'; choose from text_encoder, denoiser"):
        Manifest.read(change(update))


def test_a_changed_file_is_named(change):
    folder = change(lambda data: None)
    with (folder / "denoiser.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(
        BundleError,
        match=r"denoiser\.onnx: damaged or changed: its SHA-256 is not that in manifest\.json",
    ):
        Pipeline.load(folder)
    (folder / "denoiser.onnx").unlink()
    with pytest.raises(BundleError, match=r"denoiser\.onnx: missing"):
        Pipeline.load(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": NaN}'])
def test_a_broken_file_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=r"manifest\.json: "):
        Manifest.read(tmp_path)


def test_no_manifest_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match="no such file"):
        Pipeline.load(tmp_path)


def test_a_failed_write_leaves_the_old_manifest(planar_bundle, tmp_path):
    from dataclasses import replace

    manifest = Manifest.read(planar_bundle)
    manifest.write(tmp_path)
    broken = replace(manifest, latent=replace(manifest.latent, scaling_factor=float("nan")))
    with pytest.raises(ValueError, match="not JSON compliant"):
        broken.write(tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text())["latent"]["scaling_factor"] == 1
