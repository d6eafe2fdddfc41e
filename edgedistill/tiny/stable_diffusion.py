"""A tiny StableDiffusionPipeline: 4x4x4 latents, 8x8 pictures."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from edgedistill.tiny import tokenizers

__all__ = ["autoencoder", "pipeline", "text_config"]


def text_config(tokenizer: Any, **choices: Any) -> CLIPTextConfig:
    """Configure a CLIP text encoder of one layer and 16 channels for a tokenizer."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        intermediate_size=32,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **{"hidden_size": 16, "num_hidden_layers": 1, **choices},
    )


def autoencoder(**choices: Any) -> AutoencoderKL:
    """Make an autoencoder that halves 8x8 pictures."""
    defaults = {"latent_channels": 4, "scaling_factor": 0.5, "sample_size": 8}
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        **{**defaults, **choices},
    )


def pipeline(**scheduler: Any) -> StableDiffusionPipeline:
    """Make the pipeline with random weights; arguments go to the scheduler."""
    tokenizer = tokenizers.clip()
    unet = UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    choices = {"prediction_type": "v_prediction", "clip_sample": False, **scheduler}
    return StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=CLIPTextModel(text_config(tokenizer)),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**choices),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
