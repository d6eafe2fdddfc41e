"""Students whose self-attention takes fewer keys and values, and so do their graphs."""

import numpy as np
import onnx
import pytest
import torch
from onnx import shape_inference
from tiny import save

from edgedistill.common.files import read_json
from edgedistill.compress.token_stride import TokenStride, stride_attention
from edgedistill.draw.bench import measure
from edgedistill.students.folder import load_student
from edgedistill.teachers.families.stable_diffusion import StableDiffusion
from edgedistill_export import export_student
from edgedistill_export.layouts import check_layouts
from edgedistill_runtime import Manifest, Pipeline

PROMPTS = ["red", "a longer prompt than fits", ""]


def strided(folder, attentive_sd, stages=1, **choices):
    """A student of the teacher as it is, whose outermost attention has a stride of 2."""
    teacher = StableDiffusion.load(str(attentive_sd))
    stride_attention(teacher.net.unet, TokenStride(stride=2, stages=stages))
    return save(folder, teacher, teacher.net, teacher.denoiser.prediction, 2, **choices)


@pytest.fixture(scope="module")
def student(attentive_sd, tmp_path_factory):
    return strided(tmp_path_factory.mktemp("stride") / "student", attentive_sd)


def drawn_alike(folder, place):
    """The largest distance of a bundle's samples from its student's, relative to the largest."""
    student = load_student(folder)
    noise = student.table.draw((3, 4, 8, 8), torch.Generator().manual_seed(3))
    wanted = student.sample(student.teacher.encode(PROMPTS), noise).numpy()
    pipe = Pipeline.load(place, threads=1)
    found = pipe(PROMPTS, noise=[z.numpy() for z in noise]).samples
    return np.abs(found - wanted).max() / np.abs(wanted).max()


def softmaxes(file):
    """Number of queries and keys of each self-attention in a graph, by the path of its block."""
    graph = shape_inference.infer_shapes(onnx.load(file)).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in graph.value_info}
    return {
        node.name.partition(".attentions")[0].removeprefix("unet."): tuple(
            dim.dim_value for dim in shapes[node.output[0]][-2:]
        )
        for node in graph.node
        if node.op_type == "Softmax" and ".attn1/" in node.name
    }


def test_the_graph_has_the_smaller_products(student, tmp_path):
    place = export_student(student, "ort", "fp32", tmp_path / "b")
    manifest = Manifest.read(place)
    assert manifest.parity.graphs["denoiser"].worst > 60
    assert manifest.parity.final.worst > 60
    assert softmaxes(place / manifest.graphs["denoiser"].file) == {
        "down_blocks.0": (64, 16),
        "down_blocks.1": (16, 16),
        "mid_block": (16, 16),
        "up_blocks.0": (16, 16),
        "up_blocks.1": (64, 16),
    }
    assert drawn_alike(student, place) < 1e-4


def test_openvino_draws_the_student(student, tmp_path):
    place = export_student(student, "openvino", "fp32", tmp_path / "b")
    assert Manifest.read(place).parity.final.worst > 60
    assert drawn_alike(student, place) < 1e-4


def test_a_student_whose_steps_grow_has_its_stride_at_each_size(attentive_sd, tmp_path):
    folder = strided(tmp_path / "student", attentive_sd, stages=2, sizes=[0.5, 1])
    place = export_student(folder, "ort", "fp32", tmp_path / "b")
    assert Manifest.read(place).graphs["denoiser"].inputs[0].shape == (
        *("batch", 4),
        *("height", "width"),
    )
    assert drawn_alike(folder, place) < 1e-4


def test_a_layout_of_graphs_is_possible(student):
    check_layouts(student, [("ort", "fp32")], "optimum")


def test_the_student_is_timed_with_its_stride(student, attentive_sd, monkeypatch):
    """diffusers alone would run the whole attention, so edgedistill draws."""
    monkeypatch.setattr("edgedistill.draw.bench._load_pipeline", None)
    assert measure(str(student), None, 1.0, 1)["steps"] == 2
    with pytest.raises(ValueError, match="NoneType"):
        measure(str(attentive_sd), 2, 1.0, 1)


def test_its_hash_is_another_and_older_readers_refuse_it(student, attentive_sd, tmp_path):
    teacher = StableDiffusion.load(str(attentive_sd))
    plain = save(tmp_path / "plain", teacher, teacher.net, teacher.denoiser.prediction, 2)
    ours, theirs = (read_json(folder / "student.json") for folder in (student, plain))
    assert (ours["schema_version"], theirs["schema_version"]) == (6, 2)
    assert ours["attention"] == {"stride": 2, "stages": 1}
    assert "attention" not in theirs
    assert load_student(student).sha256 != load_student(plain).sha256
