"""A tiny StableDiffusion3Pipeline: 4x4x4 latents, 8x8 pictures."""

from __future__ import annotations

from typing import Any

from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from edgedistill.tiny import tokenizers
from edgedistill.tiny.pixart import t5_config
from edgedistill.tiny.stable_diffusion import autoencoder, text_config

__all__ = ["pipeline"]


def pipeline(*, t5: bool = True, **scheduler: Any) -> StableDiffusion3Pipeline:
    """Make the pipeline with random weights, with T5 or without; others go to the scheduler."""
    first, second, third = tokenizers.clip(), tokenizers.clip(), tokenizers.t5()
    second.pad_token = "!"  # as SD3 pads its second encoder
    transformer = SD3Transformer2DModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=4 + 8,
        pos_embed_max_size=4,
        # Both settings are as in 3.5 medium.
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    small = text_config(first, num_hidden_layers=2, hidden_size=4, projection_dim=4)
    deep = text_config(second, num_hidden_layers=2, hidden_size=8, projection_dim=8)
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
        vae=autoencoder(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=CLIPTextModelWithProjection(small),
        tokenizer=first,
        text_encoder_2=CLIPTextModelWithProjection(deep),
        tokenizer_2=second,
        text_encoder_3=T5EncoderModel(t5_config(third)) if t5 else None,
        tokenizer_3=third if t5 else None,
    )
