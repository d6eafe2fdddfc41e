"""Several bundles, each asked for the prompts that its student learned."""

import json

import numpy as np
import pytest
import torch
from tiny import save

from edgedistill.draw.generate import generate, open_subject
from edgedistill.draw.subjects import student_subject
from edgedistill.students.group import Students
from edgedistill.students.routing import divide
from edgedistill.teachers import load_teacher
from edgedistill.teachers.families.stable_diffusion import StableDiffusion
from edgedistill.tiny import make_tiny
from edgedistill_export.bundle import ExportSettings
from edgedistill_export.many import export_group
from edgedistill_runtime import BundleError, Pipeline, Router
from edgedistill_runtime.noise import noise

PROMPTS = ["red", "a blue one", "red red", "blue", ""]


@pytest.fixture(scope="module")
def run(tiny_sd, tmp_path_factory):
    """A run dir of two students that differ, and their bundles."""
    root = tmp_path_factory.mktemp("group") / "run"
    teacher = StableDiffusion.load(str(tiny_sd))
    routes = divide(teacher, PROMPTS, 2, seed=0)
    for part in range(2):
        student = teacher.spawn()
        with torch.no_grad():
            for parameter in student.parameters():
                parameter *= 1 + 0.1 * part
        prediction = teacher.denoiser.prediction
        save(root / "students" / str(part), teacher, student.net, prediction, steps=2)
    (root / "students" / "students.json").write_text(json.dumps(routes.to_json()))
    rows = export_group(root / "students", [("ort", "fp32")], None, ExportSettings())
    assert [row.name for row in rows] == ["ort-fp32/0", "ort-fp32/1"]
    assert [row.error for row in rows] == ["", ""]
    return root


def test_bundles_draw_as_their_students(run):
    router = Router(run / "bundles" / "ort-fp32")
    students = Students(run / "students")
    owners = router.of(PROMPTS)
    assert (
        owners
        == students.routes.of(
            students.teacher.encode(PROMPTS)["encoder_hidden_states"].numpy()
        ).tolist()
    )
    assert set(owners) == {0, 1}
    expected = student_subject("x", students, noise).draw(PROMPTS, 4, lambda done: None)
    drawn = router(PROMPTS, seed=4)
    assert np.abs(drawn.images.astype(int) - expected.astype(int)).max() <= 1
    for i, (prompt, owner) in enumerate(zip(PROMPTS, owners, strict=True)):
        alone = Pipeline.load(run / "bundles" / "ort-fp32" / str(owner))
        both = alone([prompt] * len(PROMPTS), seed=4)
        np.testing.assert_allclose(drawn.samples[i], both.samples[i], atol=1e-5)


def test_one_bundle_is_open_at_a_time_unless_asked_for_all(run):
    place = run / "bundles" / "ort-fp32"
    one, every = Router(place), Router(place, keep_all=True)
    a, b = one(PROMPTS, seed=1), every(PROMPTS, seed=1)
    assert np.array_equal(a.samples, b.samples)
    assert (len(one._open), len(every._open)) == (1, 2)
    assert every.pipeline(0) is every.pipeline(0)
    with pytest.raises(ValueError, match="no prompts"):
        one([])


def test_the_folder_is_a_subject_like_any_other(run, tmp_path):
    place = run / "bundles" / "ort-fp32"
    subject, takes_prompts = open_subject(place)
    assert (subject.name, subject.calls, takes_prompts) == ("bundle:ort-fp32", 2, True)
    generate(str(place), "red", seed=2, count=2, out=tmp_path / "a.npy")
    assert np.array_equal(np.load(tmp_path / "a.npy"), Router(place)(["red"] * 2, seed=2).images)


def test_what_cannot_be_routed_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="--fused: a fused bundle has no text encoder"):
        export_group(run / "students", [("ort", "fp32")], None, ExportSettings(fused=True))
    place = run / "bundles" / "ort-fp32" / "0"
    with pytest.raises(ValueError, match="holds one bundle"):
        export_group(run / "students", [("ort", "fp32")], place, ExportSettings())
    with pytest.raises(BundleError, match=r"students\.json: no such file"):
        Router(tmp_path)


def test_classes_find_their_bundles(tmp_path):
    teacher = load_teacher("dit", make_tiny("dit", tmp_path / "teacher"))
    routes, prediction = divide(teacher, [], 2, seed=0), teacher.denoiser.prediction
    for part in range(2):
        save(tmp_path / "students" / str(part), teacher, teacher.net, prediction, steps=1)
    (tmp_path / "students" / "students.json").write_text(json.dumps(routes.to_json()))
    rows = export_group(
        tmp_path / "students", [("ort", "fp32")], tmp_path / "out", ExportSettings()
    )
    assert [row.error for row in rows] == ["", ""]
    router = Router(tmp_path / "out")
    assert router.of(["blue", "500", "499", "999", "a red one", ""]) == [0, 1, 0, 1, 0, 1]
    assert router(["red", "7", "999"]).images.shape == (3, 8, 8, 3)
