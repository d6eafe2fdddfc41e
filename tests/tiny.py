"""Real classes at tiny sizes: a Stable Diffusion pipeline, and students saved from teachers."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from edgedistill.prediction import Prediction
from edgedistill.sampling import few_step_table, student_times
from edgedistill.student import Guidance, StudentInfo, save_student
from edgedistill.teachers import Teacher

LENGTH = 8


def make_tokenizer() -> CLIPTokenizer:
    """Bytes, and the one word "red"."""
    symbols = sorted(ByteLevel.alphabet())
    merges = [("r", "e"), ("re", "d</w>")]
    vocab = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *("".join(m) for m in merges)]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    table = {token: i for i, token in enumerate(vocab)}
    return CLIPTokenizer(vocab=table, merges=merges, model_max_length=LENGTH)


def make_pipeline(**scheduler) -> StableDiffusionPipeline:
    """4x4x4 latents, 8x8 pictures, random weights; arguments go to the scheduler."""
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
    choices = {"prediction_type": "v_prediction", "clip_sample": False, **scheduler}
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**choices),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save(
    folder: Path,
    teacher: Teacher,
    net: nn.Module,
    prediction: Prediction,
    steps: int,
    *,
    sampler: str = "renoise",
    spacing: str = "trailing",
) -> Path:
    """A student folder of `net` as it is."""
    schedule = teacher.denoiser.schedule
    times = student_times(schedule, steps, spacing, sampler)
    table = few_step_table(schedule, prediction, times, sampler)
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
