"""Bundles in other programs' layouts: their names, the bundle's numbers."""

from __future__ import annotations

import json
import sys

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from diffusers import DDIMScheduler
from tiny import make_pipeline, save
from transformers import CLIPTokenizer

from edgedistill.diffusion.prediction import Prediction
from edgedistill.networks.planar import PlanarNet
from edgedistill.teachers.families.mixture import Mixture
from edgedistill.teachers.families.stable_diffusion import StableDiffusion
from edgedistill_export.bundle import export_student
from edgedistill_export.layouts import LAYOUTS, check_layouts, write_layouts
from edgedistill_export.layouts.pipeline import write_layout


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    root = tmp_path_factory.mktemp("layouts")
    torch.manual_seed(0)
    make_pipeline().save_pretrained(root)
    return StableDiffusion.load(str(root))


@pytest.fixture(scope="module")
def student(tmp_path_factory, teacher):
    return save(tmp_path_factory.mktemp("s"), teacher, teacher.net, Prediction.V, 2)


@pytest.fixture(scope="module")
def walked(tmp_path_factory, teacher):
    """A student whose steps OpenVINO GenAI walks."""
    place = tmp_path_factory.mktemp("walked")
    return save(place, teacher, teacher.net, Prediction.V, 2, sampler="ddim")


@pytest.fixture(scope="module")
def bundle(student):
    return export_student(student, "ort")


def run(file, **inputs):
    return onnxruntime.InferenceSession(str(file)).run(None, inputs)[0]


def test_the_graphs_have_optimums_names_and_the_bundles_numbers(student, bundle):
    made = write_layout(LAYOUTS["optimum"], bundle, student)
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


def test_genais_graphs_take_an_integer_time_and_give_the_bundles_numbers(walked):
    bundle = export_student(walked, "openvino", "fp32")
    made = write_layout(LAYOUTS["genai"], bundle, walked)
    core = openvino.Core()
    exact = {"INFERENCE_PRECISION_HINT": "f32"}

    def run(file, **inputs):
        return core.compile_model(file, "CPU", exact)(inputs)[0]

    ids = np.full((1, 8), 5)
    text = run(bundle / "text_encoder.xml", input_ids=ids)
    assert np.array_equal(run(made / "text_encoder/openvino_model.xml", input_ids=ids), text)
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 4)).astype(np.float32)
    both = np.repeat(text, 2, axis=0)
    time = np.array([499])
    ours = run(
        bundle / "denoiser.xml", x=x, t=np.full(2, 499, np.float32), encoder_hidden_states=both
    )
    unet = made / "unet/openvino_model.xml"
    # GenAI gives one time to all pictures of a call.
    theirs = run(unet, sample=x, timestep=time, encoder_hidden_states=both)
    assert np.abs(theirs - ours).max() <= 1e-6
    decoded = run(made / "vae_decoder/openvino_model.xml", latent_sample=x)
    assert np.array_equal(decoded, run(bundle / "decoder.xml", x0=x))


def test_genais_tokenizer_cuts_a_long_prompt_as_the_students_does(walked):
    bundle = export_student(walked, "openvino", "fp32")
    made = write_layout(LAYOUTS["genai"], bundle, walked)
    openvino_tokenizers = pytest.importorskip("openvino_tokenizers")
    core = openvino.Core()
    core.add_extension(str(openvino_tokenizers._ext_path))
    graph = core.compile_model(made / "tokenizer/openvino_tokenizer.xml", "CPU")
    own = CLIPTokenizer.from_pretrained(walked / "tokenizer")
    for prompt in ("red", "a red  RED!", "red " * 40, ""):
        assert graph([prompt])["input_ids"].tolist() == [own(prompt, truncation=True).input_ids]


def test_a_schedule_that_genai_cannot_name_is_written_as_numbers(tmp_path):
    torch.manual_seed(0)
    pipeline = make_pipeline()
    betas = {"beta_schedule": "squaredcos_cap_v2"}
    pipeline.register_modules(
        scheduler=DDIMScheduler.from_config(pipeline.scheduler.config, **betas)
    )
    pipeline.save_pretrained(tmp_path / "t")
    cosine = StableDiffusion.load(str(tmp_path / "t"))
    place = save(tmp_path / "s", cosine, cosine.net, Prediction.V, 2, sampler="ddim")
    made = write_layout(LAYOUTS["genai"], export_student(place, "openvino", "fp32"), place)
    config = json.loads((made / "scheduler/scheduler_config.json").read_text("utf-8"))
    assert config["beta_schedule"] in ("linear", "scaled_linear")
    read = DDIMScheduler.from_config(config).alphas_cumprod
    own = DDIMScheduler.from_pretrained(place / "scheduler").alphas_cumprod
    assert torch.equal(read, own)
    assert None not in config.values()


def test_what_has_no_such_layout_is_refused_before_any_work(
    student, teacher, tmp_path, two_modes, monkeypatch
):
    plane = save(tmp_path / "m", Mixture.load(str(two_modes)), PlanarNet(width=8), Prediction.V, 2)
    uneven = save(
        tmp_path / "u", teacher, teacher.net, Prediction.V, 3, sampler="ddim", spacing="linspace"
    )
    for folder, target, layout, message in (
        (plane, "ort", "optimum", "a mixture student"),
        (student, "openvino", "optimum", "is for the target ort, not openvino"),
        (student, "ort", "genai", "is for the target openvino, not ort"),
        (student, "openvino", "genai", "LCMScheduler reads epsilon only"),
        (uneven, "openvino", "genai", "scheduler is DPMSolverMultistepScheduler"),
        (student, "ort", "comfy", "unknown layout 'comfy'"),
    ):
        with pytest.raises(ValueError, match=message):
            check_layouts(folder, [(target, "fp32")], layout)
    assert write_layouts(student, [], "") == []
    monkeypatch.setitem(sys.modules, "openvino_tokenizers", None)
    even = save(tmp_path / "e", teacher, teacher.net, Prediction.V, 2, sampler="ddim")
    with pytest.raises(ValueError, match="pip install openvino-tokenizers"):
        check_layouts(even, [("openvino", "fp32")], "genai")
