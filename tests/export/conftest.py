"""Tiny real students: a Stable Diffusion folder with random weights, and a planar one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from edgedistill.prediction import Prediction
from edgedistill.sampling import few_step_table, time_grid
from edgedistill.student import Guidance, StudentInfo, load_student, save_student
from edgedistill.teachers.mixture import Mixture
from edgedistill.teachers.stable_diffusion import StableDiffusion
from edgedistill_export.targets import ort as ort_target
from edgedistill_export.trace import trace

LENGTH = 8


def make_tokenizer() -> CLIPTokenizer:
    symbols = sorted(ByteLevel.alphabet())
    merges = [("r", "e"), ("re", "d</w>")]
    vocab = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *("".join(m) for m in merges)]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    table = {token: i for i, token in enumerate(vocab)}
    return CLIPTokenizer(vocab=table, merges=merges, model_max_length=LENGTH)


def make_pipeline() -> StableDiffusionPipeline:
    tokenizer = make_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        num_hidden_layers=1,
        max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=8,
        scaling_factor=0.5,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(prediction_type="v_prediction", clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save(folder: Path, teacher, net, prediction: Prediction, steps: int) -> Path:
    schedule = teacher.denoiser.schedule
    table = few_step_table(schedule, prediction, time_grid(schedule, steps))
    info = StudentInfo(
        method="lcm",
        family=teacher.family,
        step_table=table.to_json(),
        prediction=prediction,
        schedule=schedule.to_json(),
        guidance=Guidance(mode="baked", scale=3.0),
        latent=teacher.describe(),
        teacher={"name": "tiny", "path": teacher.path, "guidance": 3.0, "licences": ["mit"]},
        recipe={"teacher": {"steps": 2, "guidance": 3.0}},
    )
    save_student(folder, info, teacher, net)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _trace_once():
    """Tracing takes seconds, and the same student gives the same graph: keep each one."""
    kept = {}

    def trace_once(graph, path):
        key = (path.name, *graph.inputs)
        if key not in kept:
            trace(graph, path)
            kept[key] = path.read_bytes()
        path.write_bytes(kept[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ort_target, "trace", trace_once)
        yield


@pytest.fixture(scope="session")
def student_dir(tmp_path_factory) -> Path:
    """Two steps, 4x4x4 latents, 8x8 pictures."""
    root = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    make_pipeline().save_pretrained(root / "teacher")
    teacher = StableDiffusion.load(str(root / "teacher"))
    return save(root / "student", teacher, teacher.net, teacher.denoiser.prediction, steps=2)


@pytest.fixture(scope="session")
def student(student_dir):
    return load_student(student_dir)


@pytest.fixture(scope="session")
def planar_dir(tmp_path_factory) -> Path:
    """A planar network with random weights, three steps."""
    file = tmp_path_factory.mktemp("planar") / "two.json"
    file.write_text('{"weights": [1, 2], "means": [[-1, 0], [1, 0.5]], "scales": [0.2, 0.3]}')
    teacher = Mixture.load(str(file))
    student = teacher.spawn()
    return save(file.parent / "student", teacher, student.net, student.prediction, steps=3)


@pytest.fixture(scope="session")
def bundle(student_dir, tmp_path_factory) -> Path:
    from edgedistill_export import export_student

    return export_student(student_dir, out=tmp_path_factory.mktemp("bundles") / "ort-fp32")
