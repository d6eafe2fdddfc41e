"""Tiny checkpoints in the file layouts that few-step students are published in."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from tiny import make_pipeline
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

SD15 = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""The scheduler settings of Stable Diffusion 1.5."""

RANK = 4


def make_base(folder: Path, **scheduler) -> Path:
    """A tiny pipeline with the schedule of Stable Diffusion 1.5."""
    torch.manual_seed(0)
    make_pipeline(**{**SD15, **scheduler}).save_pretrained(folder)
    return folder


def make_xl() -> StableDiffusionXLPipeline:
    """4x4x4 latents, 8x8 pictures, the two text encoders of SDXL, random weights."""
    torch.manual_seed(0)
    small = make_pipeline(**SD15)
    config = {**small.text_encoder.config.to_dict(), "projection_dim": 16}
    unet = UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    return StableDiffusionXLPipeline(
        vae=small.vae,
        text_encoder=small.text_encoder,
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**config)),
        tokenizer=small.tokenizer,
        tokenizer_2=small.tokenizer,
        unet=unet,
        scheduler=small.scheduler,
        add_watermarker=False,
    )


def make_folder(folder: Path, scheduler: type, **settings) -> Path:
    """A whole few-step pipeline of another network, with the scheduler its authors ship."""
    torch.manual_seed(1)
    pipeline = make_pipeline(**SD15)
    base = DDIMScheduler(clip_sample=False, **SD15).config
    pipeline.register_modules(scheduler=scheduler.from_config(base, **settings))
    pipeline.save_pretrained(folder)
    return folder


def guided_unet(width: int = 16) -> UNet2DConditionModel:
    """The tiny U-Net with an embedded guidance scale, as LCMs have."""
    torch.manual_seed(2)
    config = {**make_pipeline().unet.config, "time_cond_proj_dim": width}
    config.pop("_use_default_values")
    return UNet2DConditionModel.from_config(config).eval()


def _layers(unet: UNet2DConditionModel) -> dict[str, torch.nn.Linear]:
    ends = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out")
    return {name: m for name, m in unet.named_modules() if name.endswith(ends)}


def kohya_lora(file: Path, unet: UNet2DConditionModel | None = None) -> Path:
    """A LoRA under kohya's names, as LCM-LoRA, Hyper-SD, Lightning and PCM publish it."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, layer in _layers(unet or make_pipeline().unet).items():
        stem = "lora_unet_" + name.replace(".", "_")
        rows, columns = layer.weight.shape[:2]
        kernel = [1] * (layer.weight.ndim - 2)
        down = torch.randn(RANK, columns, *kernel, generator=generator)
        state[f"{stem}.lora_down.weight"] = down / columns**0.5
        state[f"{stem}.lora_up.weight"] = torch.randn(rows, RANK, *kernel, generator=generator)
        state[f"{stem}.alpha"] = torch.tensor(2.0)
    save_file(state, file, {"ss_network_dim": str(RANK)})
    return file


def peft_lora(file: Path, unet: UNet2DConditionModel | None = None) -> Path:
    """A LoRA under diffusers' names, as DMD2 and TCD publish it."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, layer in _layers(unet or make_pipeline().unet).items():
        rows, columns = layer.weight.shape[:2]
        kernel = [1] * (layer.weight.ndim - 2)
        down = torch.randn(RANK, columns, *kernel, generator=generator)
        state[f"unet.{name}.lora_A.weight"] = down / columns**0.5
        state[f"unet.{name}.lora_B.weight"] = torch.randn(rows, RANK, *kernel, generator=generator)
    save_file(state, file, {"format": "pt"})
    return file


def unet_file(file: Path, unet: UNet2DConditionModel) -> Path:
    """A bare U-Net, as Lightning publishes it."""
    save_file({k: v.contiguous() for k, v in unet.state_dict().items()}, file)
    return file
