"""The whole student as one graph."""

import numpy as np
import pytest

from edgedistill_export import export_student
from edgedistill_export.bundle import ExportSettings
from edgedistill_export.fuse import fuse, inside
from edgedistill_runtime import Pipeline
from edgedistill_runtime.manifest import Manifest

FUSED = ExportSettings(fused=True)
TEXTS = ["red apple", "blue car"]


@pytest.fixture(scope="module")
def fused(student_dir, tmp_path_factory):
    place = tmp_path_factory.mktemp("fused") / "ort-fp32"
    return export_student(student_dir, out=place, settings=FUSED)


def test_one_graph_draws_what_three_draw(fused, bundle):
    one, three = Pipeline.load(fused), Pipeline.load(bundle)
    assert list(one.graphs) == ["pipeline"]
    found, wanted = one(TEXTS, seed=3), three(TEXTS, seed=3)
    np.testing.assert_allclose(found.samples, wanted.samples, atol=1e-5)
    assert np.abs(found.images.astype(int) - wanted.images).max() <= 1
    assert set(found.timings) == {"pipeline", "other", "total"}


def test_its_parity_covers_sample_and_picture(fused):
    manifest = Manifest.read(fused)
    assert manifest.parity.graphs["pipeline"].worst > 60
    assert [port.name for port in manifest.graphs["pipeline"].outputs] == ["x0", "image"]
    assert manifest.image is not None


def test_a_planar_student_fuses_to_points(planar_dir, tmp_path):
    one = Pipeline.load(export_student(planar_dir, out=tmp_path / "one", settings=FUSED))
    three = Pipeline.load(export_student(planar_dir, out=tmp_path / "three"))
    np.testing.assert_allclose(
        one.samples(5, seed=1).samples, three.samples(5, seed=1).samples, atol=1e-6
    )


def test_layers_keep_their_names_inside(student):
    graph = fuse(student)
    paths = dict(graph.module.named_modules())
    wanted = inside({"denoiser": frozenset({"unet.conv_in"})})
    assert wanted <= paths.keys()
    assert paths["denoiser.unet.conv_in"] is student.net.unet.conv_in


def test_a_tracer_may_give_the_inputs_by_name(student_dir, tmp_path):
    """Core ML's does, the others give them by position."""
    place = export_student(student_dir, "coreml", "fp32", tmp_path / "one", settings=FUSED)
    manifest = Manifest.read(place)
    assert set(manifest.graphs) == {"pipeline"}
    assert manifest.parity.final.worst > 60


@pytest.mark.parametrize(("target", "precision"), [("ort", "int8"), ("openvino", "fp16")])
def test_other_precisions_and_targets_fuse_too(student_dir, tmp_path, target, precision):
    keep = {"denoiser": frozenset({"unet.conv_in"})}
    settings = ExportSettings(fused=True, strict=False, keep=keep)
    place = export_student(student_dir, target, precision, tmp_path / "one", settings=settings)
    manifest = Manifest.read(place)
    assert manifest.parity.final.mean > (40 if precision == "fp16" else 20)
    kept = manifest.graphs["pipeline"].notes.get("float_layers", "")
    assert kept == "denoiser.unet.conv_in"


def test_a_fused_bundle_that_lacks_its_tokenizer_is_refused(fused, tmp_path):
    import json
    import shutil

    copy = shutil.copytree(fused, tmp_path / "copy")
    data = json.loads((copy / "manifest.json").read_text())
    data["tokenizer"] = None
    (copy / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"tokenizer: must be there exactly when an input"):
        Manifest.read(copy)
