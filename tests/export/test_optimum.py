"""Bundles in optimum's layout: its names, the bundle's numbers."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
import torch
from tiny import make_pipeline, save

from edgedistill.diffusion.prediction import Prediction
from edgedistill.networks.planar import PlanarNet
from edgedistill.teachers.families.mixture import Mixture
from edgedistill.teachers.families.stable_diffusion import StableDiffusion
from edgedistill_export.bundle import export_student
from edgedistill_export.optimum import check_layouts, write_layouts, write_optimum


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    root = tmp_path_factory.mktemp("optimum")
    torch.manual_seed(0)
    make_pipeline().save_pretrained(root / "teacher")
    teacher = StableDiffusion.load(str(root / "teacher"))
    return save(root / "student", teacher, teacher.net, Prediction.V, 2)


@pytest.fixture(scope="module")
def bundle(student):
    return export_student(student, "ort")


def run(file, **inputs):
    return onnxruntime.InferenceSession(str(file)).run(None, inputs)[0]


def test_the_graphs_have_optimums_names_and_the_bundles_numbers(student, bundle):
    made = write_optimum(bundle, student)
    x = np.random.default_rng(0).standard_normal((1, 4, 4, 4)).astype(np.float32)
    ids = np.full((1, 8), 5)
    text = run(bundle / "text_encoder.onnx", input_ids=ids)
    assert np.array_equal(run(made / "text_encoder/model.onnx", input_ids=ids), text)
    time = np.array([500.0], np.float32)
    theirs = run(made / "unet/model.onnx", sample=x, timestep=time, encoder_hidden_states=text)
    ours = run(bundle / "denoiser.onnx", x=x, t=time, encoder_hidden_states=text)
    assert np.array_equal(theirs, ours)
    decoded = run(made / "vae_decoder/model.onnx", latent_sample=x)
    assert np.array_equal(decoded, run(bundle / "decoder.onnx", x0=x))
    config = json.loads((made / "vae_decoder/config.json").read_text("utf-8"))
    assert config["scaling_factor"] == 1.0  # the graph has it
    assert (made / "tokenizer/vocab.json").is_file()


def test_what_has_no_such_layout_is_refused_before_any_work(student, tmp_path, two_modes):
    plane = save(tmp_path / "m", Mixture.load(str(two_modes)), PlanarNet(width=8), Prediction.V, 2)
    for folder, target, layout, message in (
        (plane, "ort", "optimum", "a mixture student"),
        (student, "openvino", "optimum", "is for the target ort, not openvino"),
        (student, "ort", "genai", "unknown layout 'genai'"),
    ):
        with pytest.raises(ValueError, match=message):
            check_layouts(folder, [(target, "fp32")], layout)
    assert write_layouts(student, [], "") == []
