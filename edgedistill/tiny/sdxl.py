"""A tiny StableDiffusionXLPipeline: 4x4x4 latents, 8x8 pictures."""

from __future__ import annotations

from typing import Any

from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from edgedistill.tiny import tokenizers
from edgedistill.tiny.stable_diffusion import autoencoder, text_config

__all__ = ["pipeline"]


def pipeline(**scheduler: Any) -> StableDiffusionXLPipeline:
    """Make the pipeline with random weights; arguments go to the scheduler."""
    first, second = tokenizers.clip(), tokenizers.clip()
    second.pad_token = "!"  # as SDXL pads its second encoder
    unet = UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=32,
        attention_head_dim=(2, 4),
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    choices = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    deep = text_config(second, num_hidden_layers=2, projection_dim=16)
    return StableDiffusionXLPipeline(
        vae=autoencoder(scaling_factor=0.13025),
        text_encoder=CLIPTextModel(text_config(first, num_hidden_layers=2)),
        text_encoder_2=CLIPTextModelWithProjection(deep),
        tokenizer=first,
        tokenizer_2=second,
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False, **{**choices, **scheduler}),
        force_zeros_for_empty_prompt=True,
    )
