"""Students whose steps grow: one denoiser for every size, and the same picture everywhere."""

import json

import numpy as np
import pytest
import torch
from javascript import draw, needs_node, node
from tiny import save
from torch import nn

from edgedistill.draw.generate import open_subject
from edgedistill.draw.subjects import student_subject
from edgedistill.draw.teacher_help import TeacherAssistance
from edgedistill.students.folder import load_student
from edgedistill.teachers.base import ExportGraph
from edgedistill.teachers.families.stable_diffusion import StableDiffusion
from edgedistill_export import export_student
from edgedistill_export.bundle import ExportSettings
from edgedistill_export.targets import TARGETS, UnsupportedError
from edgedistill_export.trace import trace
from edgedistill_export.walk import networks
from edgedistill_runtime import BundleError, Manifest, Pipeline
from edgedistill_runtime.bench import measure
from edgedistill_runtime.noise import noise
from edgedistill_runtime.steps import resized

PROMPTS = ["red", "a longer prompt than fits", ""]


@pytest.fixture(scope="module")
def growing_dir(tiny_sd, tmp_path_factory):
    """Three steps on 2x2, 2x2 and 4x4 latents."""
    folder = tmp_path_factory.mktemp("growing") / "student"
    teacher = StableDiffusion.load(str(tiny_sd))
    kind = teacher.denoiser.prediction
    return save(folder, teacher, teacher.net, kind, steps=3, sizes=[0.5, 0.5, 1])


@pytest.fixture(scope="module")
def growing(growing_dir, tmp_path_factory):
    return export_student(growing_dir, out=tmp_path_factory.mktemp("bundles") / "ort-fp32")


def test_the_bundle_draws_what_the_student_draws(growing_dir, growing):
    student, pipe = load_student(growing_dir), Pipeline.load(growing, threads=1)
    drawn = student.table.draw((3, 4, 4, 4), torch.Generator().manual_seed(3))
    assert [z.shape[-1] for z in drawn] == [2, 2, 4]
    x0 = student.sample(student.teacher.encode(PROMPTS), drawn)
    found = pipe(PROMPTS, noise=[z.numpy() for z in drawn])
    np.testing.assert_allclose(found.samples, x0.numpy(), atol=1e-4)
    # From the same seed too.
    ours = student_subject("student", student, noise).draw(PROMPTS, 5, lambda done: None)
    assert np.abs(ours.astype(int) - pipe(PROMPTS, seed=5).images).max() <= 1
    assert measure(growing, 1, threads=1)["p50_s"] > 0


def test_the_manifest_says_sizes_and_what_is_free(growing_dir, growing):
    manifest = Manifest.read(growing)
    assert manifest.parity.passed
    assert [row.size for row in manifest.steps.rows] == [0.5, 0.5, 1]
    steps = json.loads((growing / "manifest.json").read_text())["steps"]
    assert steps == load_student(growing_dir).table.to_json()
    ports = manifest.graphs["denoiser"]
    for port in (ports.inputs[0], *ports.outputs):
        assert port.shape == ("batch", 4, "height", "width")
    assert ports.inputs[2].shape == ("batch", 8, 16)


def test_a_manifest_with_wrong_sizes_is_refused(growing, tmp_path):
    data = json.loads((growing / "manifest.json").read_text())
    data["steps"]["rows"][0]["size"] = 0.3
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match=r"steps\.rows: sizes do not divide latent\.shape"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("target", "precision", "floor"),
    [("ort", "int8", 20), ("openvino", "fp32", 60), ("openvino", "int8", 20)],
)
def test_other_precisions_and_targets(growing_dir, tmp_path, target, precision, floor):
    if problem := TARGETS[target].problem():
        pytest.skip(problem)
    settings = ExportSettings(strict=False)
    place = export_student(growing_dir, target, precision, tmp_path / "b", settings=settings)
    assert Manifest.read(place).parity.final.mean > floor


@needs_node
def test_the_web_runtime_draws_the_same(growing_dir, tmp_path):
    place = export_student(growing_dir, "web", out=tmp_path / "web")
    assert Manifest.read(place).parity.backend == "web"
    drawn = draw(place, *((prompt, 7, i) for i, prompt in enumerate(PROMPTS)))
    expected = Pipeline.load(place, threads=1)(PROMPTS, seed=7)
    found = np.array([each["picture"] for each in drawn]).reshape(-1, 8, 8, 4)
    assert np.abs(found[..., :3] - expected.images.astype(int)).max() <= 1
    samples = np.array([each["sample"] for each in drawn]).reshape(-1, 4, 4, 4)
    np.testing.assert_allclose(samples, expected.samples, atol=1e-4)


@needs_node
def test_resizing_in_javascript_is_numpys():
    x = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    code = """
    import { resized } from "./steps.mjs";
    give([...resized(Float32Array.from(input[0]), [3, 5, 4], [3, 7, 8])]);
    """
    found = np.array(node(code, x.ravel().tolist()), np.float32).reshape(3, 7, 8)
    np.testing.assert_array_equal(found, resized(x, 7, 8))


@needs_node
def test_wrong_sizes_are_named_in_javascript():
    code = """
    import { findRowsProblem } from "./steps.mjs";
    give(input[0].map(([rows, shape]) => findRowsProblem({ rows }, shape) ?? null));
    """
    good, still, bad = [{"c": 1, "size": 0.5}, {"c": 0}], [{"c": 0, "size": 0.5}, {"c": 0}], 0.3
    cases = [
        (good, [4, 8, 8]),
        ([{"c": 0}], [2]),
        (good, [4, 7, 8]),
        (still, [4, 8, 8]),
        ([{"c": 1}, {"c": 0, "size": bad}], [4, 8, 8]),
    ]
    said = node(code, cases)
    assert said[:2] == [None, None]
    for problem, words in zip(said[2:], ["whole numbers", "draw noise", "end at 1"], strict=True):
        assert words in problem


@pytest.mark.parametrize("target", sorted(t.name for t in TARGETS.values() if not t.grows))
def test_targets_of_one_size_refuse_before_any_work(growing_dir, tmp_path, target, monkeypatch):
    monkeypatch.setattr(type(TARGETS[target]), "problem", lambda self: None)
    monkeypatch.setattr(type(TARGETS[target]), "options", lambda self, given: None)
    line = rf"target '{target}': .* grow; choose from ort, openvino, web"
    with pytest.raises(UnsupportedError, match=line):
        export_student(growing_dir, target, out=tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_steps_that_grow_are_not_one_graph(growing_dir, tmp_path):
    with pytest.raises(ValueError, match=r"--fused: the steps of .* grow"):
        export_student(growing_dir, out=tmp_path / "b", settings=ExportSettings(fused=True))


def test_the_teacher_does_not_help_where_steps_grow(growing_dir):
    with pytest.raises(ValueError, match="the student's steps grow"):
        open_subject(growing_dir, TeacherAssistance(first=1))


def test_the_card_says_that_diffusers_does_not_grow(growing_dir):
    card = (growing_dir / "README.md").read_text()
    assert "edgedistill generate" in card
    assert "runs every step at one size" in card


def test_one_unet_for_sizes_that_do_and_do_not_halve(tiny_sd, tmp_path):
    teacher = StableDiffusion.load(str(tiny_sd))
    kind = teacher.denoiser.prediction
    folder = save(tmp_path / "s", teacher, teacher.net, kind, steps=3, sizes=[0.5, 0.75, 1])
    graph = networks(load_student(folder))["denoiser"]
    assert graph.inputs["x"].shape == (2, 4, 5, 5)
    assert graph.step == (1, 1)
    place = export_student(folder, out=tmp_path / "b")
    parity = Manifest.read(place).parity
    assert parity.passed
    assert parity.graphs["denoiser"].worst > 100


class Halving(nn.Module):
    """Halves x and doubles it again."""

    def forward(self, x, t):
        return x[..., ::2, ::2].repeat_interleave(2, -1).repeat_interleave(2, -2)


def test_a_network_that_halves_further_is_refused(student, tmp_path):
    inputs = {"x": torch.zeros(2, 1, 8, 8), "t": torch.zeros(2)}
    trace(ExportGraph(Halving(), inputs, ("f",), step=(2, 2)), tmp_path / "denoiser.onnx")
    inputs["x"] = torch.zeros(2, 1, 9, 9)
    graph = ExportGraph(Halving(), inputs, ("f",), step=(1, 3))
    with pytest.raises(ValueError, match=r"denoiser: no one graph for .* multiples of 1 x 3"):
        trace(graph, tmp_path / "denoiser.onnx")
    assert networks(student)["denoiser"].step is None
