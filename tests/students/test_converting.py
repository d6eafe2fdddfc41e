"""Students as single files and LoRAs, read back by diffusers: the same pictures."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file
from tiny import make_pipeline, save
from transformers import CLIPTextModel, CLIPTextModelWithProjection

import edgedistill as ed
from edgedistill import cli
from edgedistill.compress.token_stride import TokenStride, stride_attention
from edgedistill.diffusion.prediction import Prediction
from edgedistill.networks.adapters import Adapter, adapt
from edgedistill.networks.planar import PlanarNet
from edgedistill.students.layouts import unet_name
from edgedistill.teachers.families.mixture import Mixture
from edgedistill.teachers.families.sdxl import StableDiffusionXL
from edgedistill.teachers.families.stable_diffusion import StableDiffusion
from edgedistill.teachers.markers import read_header
from edgedistill.tiny import sdxl
from edgedistill.tiny.stable_diffusion import text_config

STEPS = 2


def sd(**scheduler):
    """With two layers a block."""
    made = make_pipeline(**scheduler)
    config = {**made.unet.config, "layers_per_block": 2}
    made.register_modules(unet=UNet2DConditionModel.from_config(config))
    return made


def xl(**scheduler):
    """With encoders of unlike widths, by which diffusers tells them apart."""
    made = sdxl.pipeline(**scheduler)
    first = text_config(made.tokenizer, hidden_size=8, num_hidden_layers=2)
    second = text_config(made.tokenizer_2, hidden_size=24, num_hidden_layers=2, projection_dim=16)
    made.register_modules(
        text_encoder=CLIPTextModel(first), text_encoder_2=CLIPTextModelWithProjection(second)
    )
    return made


FAMILIES = {
    "sd": (sd, StableDiffusion, StableDiffusionPipeline),
    "sdxl": (xl, StableDiffusionXL, StableDiffusionXLPipeline),
}


def trained(role):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in role.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return role


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def student(request, tmp_path_factory):
    """Diffusers' class, and the folders of a teacher and of its student trained as a LoRA."""
    build, family, pipeline = FAMILIES[request.param]
    root = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    build().save_pretrained(root / "teacher")
    teacher = family.load(str(root / "teacher"))
    role = trained(adapt(teacher.net, Adapter(rank=2), seed=0))
    prediction = teacher.denoiser.prediction
    made = save(root / "student", teacher, role, prediction, STEPS)
    return pipeline, root / "teacher", made


def drawn(pipeline) -> np.ndarray:
    generator = torch.Generator().manual_seed(3)
    asked = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "generator": generator}
    picture = pipeline("red", **asked).images[0]
    return np.asarray(picture).astype(int)


def test_a_single_file_draws_the_students_picture(student, tmp_path):
    kind, _, folder = student
    made = ed.convert(folder, "single-file", tmp_path / "one.safetensors")
    read = kind.from_single_file(made.file, config=str(folder), local_files_only=True)
    expected = drawn(kind.from_pretrained(folder))
    assert expected.std() > 1
    assert abs(drawn(read) - expected).max() <= 1


def test_the_command_tells_file_and_notes_as_json(student, tmp_path, monkeypatch, capsys):
    place = tmp_path / "one.safetensors"
    words = ["convert", str(student[2]), str(place), "--json", "-"]
    monkeypatch.setattr(sys, "argv", ["edgedistill", *words])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    told = json.loads(capsys.readouterr().out)
    assert told["file"] == str(place)
    assert place.is_file()
    assert told["notes"]


def test_a_file_is_replaced_only_when_asked(student, tmp_path, monkeypatch, capsys):
    place = tmp_path / "mine.safetensors"
    place.write_bytes(b"a teacher of mine")
    words = ["edgedistill", "convert", str(student[2]), str(place)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert "exists; choose another name, or add --overwrite" in capsys.readouterr().err
    assert place.read_bytes() == b"a teacher of mine"
    monkeypatch.setattr(sys, "argv", [*words, "--overwrite"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    assert load_file(place)


def test_a_half_file_has_half_weights(student, tmp_path):
    made = ed.convert(student[2], "single-file", tmp_path / "half.safetensors", precision="fp16")
    kinds = {value.dtype for value in load_file(made.file).values() if value.numel()}
    assert kinds == {torch.float16}


@pytest.mark.parametrize("keys", ["kohya", "diffusers"])
def test_a_lora_makes_the_student_of_its_teacher(student, tmp_path, keys):
    kind, teacher, folder = student
    made = ed.convert(folder, "lora", tmp_path / "lora.safetensors", keys=keys)
    names = load_file(made.file)
    assert any(name.startswith("lora_unet_") for name in names) == (keys == "kohya")
    expected = drawn(kind.from_pretrained(folder))
    whole = kind.from_pretrained(teacher)
    whole.scheduler = DiffusionPipeline.from_pretrained(folder).scheduler
    assert abs(drawn(whole) - expected).max() > 1
    whole.load_lora_weights(made.file)
    assert abs(drawn(whole) - expected).max() <= 1


def test_what_to_tell_the_other_program_is_said_and_in_the_header(tmp_path):
    torch.manual_seed(0)
    make_pipeline().save_pretrained(tmp_path / "teacher")
    teacher = StableDiffusion.load(str(tmp_path / "teacher"))
    folder = save(tmp_path / "s", teacher, teacher.net, Prediction.V, STEPS)
    made = ed.convert(folder, "single-file", tmp_path / "one.safetensors")
    [line] = made.notes
    assert "2 steps at timesteps 999, 499; CFG 1; sampler lcm; scheduler sgm_uniform" in line
    assert "v-prediction" in line
    told = read_header(str(made.file)).metadata
    assert told["modelspec.prediction_type"] == "v"
    assert told["modelspec.license"] == "mit"
    assert told["modelspec.usage_hint"] == line


def test_what_a_file_cannot_hold_is_refused(tmp_path, two_modes):
    torch.manual_seed(0)
    make_pipeline().save_pretrained(tmp_path / "teacher")
    teacher = StableDiffusion.load(str(tmp_path / "teacher"))
    out = tmp_path / "one.safetensors"
    pruned = {"recipe": {"compress": {"budget": 0.5}}}
    small = save(tmp_path / "p", teacher, teacher.net, Prediction.V, STEPS, changes=pruned)
    whole = save(tmp_path / "w", teacher, teacher.net, Prediction.V, STEPS)
    growing = save(tmp_path / "g", teacher, teacher.net, Prediction.V, 2, sizes=[0.5, 1.0])
    strided = StableDiffusion.load(str(tmp_path / "teacher"))
    stride_attention(strided.net.unet, TokenStride(stride=2, stages=2))
    sparse = save(tmp_path / "s", strided, strided.net, Prediction.V, STEPS)
    plane = save(tmp_path / "m", Mixture.load(str(two_modes)), PlanarNet(width=8), Prediction.V, 2)
    for folder, to, message in (
        (small, "single-file", "a pruned student; single-file holds no architecture"),
        (whole, "lora", r"was not trained as a LoRA .*convert it to a single file"),
        (growing, "single-file", "its steps grow"),
        (sparse, "single-file", "self-attention has a stride of 2; single-file cannot say so"),
        (plane, "single-file", "a mixture student; single-file is written of stable_diffusion"),
        (whole, "gguf", "unknown format 'gguf'"),
    ):
        with pytest.raises(ValueError, match=message):
            ed.convert(folder, to, out)
        assert not out.exists()
    with pytest.raises(ValueError, match=r"a \.safetensors file expected"):
        ed.convert(whole, "single-file", tmp_path / "one.ckpt")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("down_blocks.1.resnets.0.conv1.weight", "input_blocks.4.0.in_layers.2.weight"),
        ("down_blocks.2.downsamplers.0.conv.bias", "input_blocks.9.0.op.bias"),
        ("down_blocks.3.resnets.1.norm2.bias", "input_blocks.11.0.out_layers.0.bias"),
        ("mid_block.attentions.0.proj_in.weight", "middle_block.1.proj_in.weight"),
        ("up_blocks.0.upsamplers.0.conv.weight", "output_blocks.2.1.conv.weight"),
        ("up_blocks.1.upsamplers.0.conv.weight", "output_blocks.5.2.conv.weight"),
        ("up_blocks.3.attentions.2.norm.bias", "output_blocks.11.1.norm.bias"),
        ("conv_out.bias", "out.2.bias"),
    ],
)
def test_names_are_those_of_stable_diffusion_1(name, expected):
    """As they stand in the published v1-5 checkpoint."""
    assert unet_name(name, [2, 2, 2, 2], [False, True, True, True]) == expected


def test_a_weight_without_a_place_is_named():
    with pytest.raises(ValueError, match=r"no place for conditioner\.bias in a single file"):
        unet_name("conditioner.bias", [2], [False])
