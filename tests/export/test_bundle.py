import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from edgedistill.students.folder import load_student
from edgedistill_export import ParityError, export_student
from edgedistill_export.bundle import ExportSettings
from edgedistill_export.targets import ort as ort_target
from edgedistill_runtime import Manifest, Pipeline

RED = ExportSettings(prompts=["red"])


def test_the_bundle_draws_what_the_student_draws(student, bundle):
    pipe = Pipeline.load(bundle, threads=1)
    prompts = ["red", "a longer prompt than fits", ""]
    generator = torch.Generator().manual_seed(3)
    noise = student.table.draw((3, *student.teacher.sample_shape), generator)
    x0 = student.sample(student.teacher.encode(prompts), noise)
    result = pipe(prompts, noise=[tensor.numpy() for tensor in noise])
    np.testing.assert_allclose(result.samples, x0.numpy(), atol=1e-4)
    picture = student.teacher.decode(x0).permute(0, 2, 3, 1).numpy() * 127.5 + 127.5
    assert np.abs(result.images - picture.clip(0, 255)).max() <= 0.51


def test_the_manifest_says_where_it_comes_from(student, bundle):
    manifest = Manifest.read(bundle)
    assert manifest.student.sha256 == student.sha256
    assert manifest.student.licences == ("mit",)
    assert (manifest.target, manifest.precision) == ("ort", "fp32")
    assert (manifest.image.height, manifest.image.width) == (8, 8)
    assert manifest.latent.shape == (4, 4, 4)
    assert manifest.latent.scaling_factor == 0.5
    assert manifest.tokenizer.length == 8
    assert manifest.parity.passed
    assert manifest.parity.samples == 8
    data = json.loads((bundle / "manifest.json").read_text())
    assert data["steps"] == student.table.to_json()
    assert {file.name for file in bundle.iterdir()} == {
        "README.md",
        "manifest.json",
        "manifest.sha256",
        "tokenizer.json",
        "text_encoder.onnx",
        "denoiser.onnx",
        "decoder.onnx",
        "worst.png",
    }


def test_fp16_halves_the_files_and_stays_above_its_floor(student_dir, bundle, tmp_path):
    half = export_student(student_dir, precision="fp16", out=tmp_path / "half")
    parity = Manifest.read(half).parity
    assert parity.floor_db == 40
    assert min(figures.worst for figures in parity.graphs.values()) > 50
    assert (half / "denoiser.onnx").stat().st_size < 0.75 * (
        bundle / "denoiser.onnx"
    ).stat().st_size


def test_a_planar_student_needs_no_text(planar_dir, tmp_path):
    seen = []
    out = export_student(
        planar_dir, out=tmp_path / "planar", progress=lambda *args: seen.append(args)
    )
    assert seen == [(0, 2, "denoiser"), (1, 2, "parity"), (2, 2, "done")]
    pipe = Pipeline.load(out, threads=1)
    assert pipe.manifest.tokenizer is None
    assert pipe.manifest.image is None
    student = load_student(planar_dir)
    noise = student.table.draw((5, 2), torch.Generator().manual_seed(0))
    result = pipe.samples(5, noise=[tensor.numpy() for tensor in noise])
    np.testing.assert_allclose(result.samples, student.sample({}, noise).numpy(), atol=1e-4)


def corrupt(monkeypatch):
    """From now on the denoiser's last bias is off by a tenth."""
    build = ort_target.build

    def build_wrong(job):
        built = build(job)
        if job.name == "denoiser":
            model = onnx.load(str(built.files[0]))
            bias = next(w for w in model.graph.initializer if w.name.endswith("conv_out.bias"))
            array = onnx.numpy_helper.to_array(bias) + np.float32(0.1)
            bias.CopyFrom(onnx.numpy_helper.from_array(array, bias.name))
            onnx.save(model, str(built.files[0]))
        return built

    monkeypatch.setattr(ort_target, "build", build_wrong)


def test_a_wrong_weight_fails_and_leaves_nothing(student_dir, tmp_path, monkeypatch):
    corrupt(monkeypatch)
    with pytest.raises(ParityError, match=r"student: denoiser \d+\.\d dB \(floor 60\)"):
        export_student(student_dir, out=tmp_path / "wrong", settings=RED)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_keeps_the_bundle_before_it(student_dir, bundle, monkeypatch):
    corrupt(monkeypatch)
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(ParityError):
        export_student(student_dir, out=bundle, settings=RED, rebuild=True)
    assert (bundle / "manifest.json").read_bytes() == before
    assert len(list(bundle.parent.iterdir())) == 1


def test_not_strict_writes_it_and_says_so(student_dir, tmp_path, monkeypatch):
    corrupt(monkeypatch)
    out = export_student(student_dir, out=tmp_path / "wrong", settings=replace(RED, strict=False))
    parity = Manifest.read(out).parity
    assert not parity.passed
    assert parity.samples == 1
    assert parity.graphs["denoiser"].worst < 60 < parity.graphs["decoder"].worst


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            {"target": "orb"},
            r"unknown target 'orb' \(did you mean 'ort'\?\); choose from coreml, exec",
        ),
        (
            {"precision": "int4"},
            "unknown precision .*'int4'.*choose from fp16, fp32, int4-weights",
        ),
    ],
)
def test_an_unknown_choice_names_the_others(student_dir, tmp_path, choice, message):
    with pytest.raises(ValueError, match=message):
        export_student(student_dir, out=tmp_path / "x", **choice)


def test_a_folder_without_student_json_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no student\.json"):
        export_student(tmp_path, out=tmp_path / "x")


def test_a_bundle_of_another_student_is_not_replaced(student_dir, planar_dir, tmp_path):
    out = export_student(planar_dir, out=tmp_path / "bundle")
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(
        ValueError, match=r"holds a bundle of another student \(lcm of .*--rebuild"
    ):
        export_student(student_dir, out=out)
    assert (out / "manifest.json").read_bytes() == before


def test_a_folder_that_is_no_bundle_is_not_replaced(student_dir, tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match="exists and is no bundle"):
        export_student(student_dir, out=tmp_path)
    assert (tmp_path / "holiday.jpg").exists()
