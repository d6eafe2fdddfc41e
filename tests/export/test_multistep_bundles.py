"""A student whose rows use earlier ones draws the same picture wherever it runs."""

import numpy as np
import pytest
from javascript import draw as draw_in_node
from javascript import needs_node

from edgedistill.adoption import adopt
from edgedistill.draw.generate import draw_samples
from edgedistill_export import export_student
from edgedistill_export.bundle import ExportSettings
from edgedistill_runtime import Manifest, Pipeline

PROMPT, SEED, STEPS = "red", 3, 4


@pytest.fixture(scope="module")
def adopted(tiny_sd, tmp_path_factory):
    """A teacher on UniPC, whose rows use up to three earlier ones."""
    return adopt(str(tiny_sd), "unipc", steps=STEPS, out=tmp_path_factory.mktemp("a") / "student")


@pytest.fixture(scope="module")
def expected(adopted):
    return draw_samples(str(adopted), PROMPT, seed=SEED, count=1).astype(int)


@pytest.mark.parametrize(
    ("target", "fused"), [("ort", False), ("ort", True), ("openvino", False), ("openvino", True)]
)
def test_the_runtime_draws_the_student_s_picture(adopted, expected, tmp_path, target, fused):
    settings = ExportSettings(fused=fused)
    out = export_student(adopted, target, "fp32", tmp_path / "b", settings=settings)
    manifest = Manifest.read(out)
    assert manifest.schema_version == 4
    assert max(len(row.past) for row in manifest.steps.rows) >= 2
    found = Pipeline.load(out, threads=1)(PROMPT, seed=SEED).images
    assert np.abs(found.astype(int) - expected).max() <= 1


@needs_node
def test_javascript_draws_the_student_s_picture(adopted, expected, tmp_path):
    out = export_student(adopted, "web", "fp32", tmp_path / "b")
    (drawn,) = draw_in_node(out, (PROMPT, SEED, 0))
    height, width = expected.shape[1:3]
    pixels = np.array(drawn["picture"]).reshape(height, width, 4)[..., :3]
    assert np.abs(pixels - expected[0]).max() <= 1
