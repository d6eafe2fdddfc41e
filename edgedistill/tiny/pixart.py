"""A tiny PixArtSigmaPipeline: 4x4x4 latents, 8x8 pictures."""

from __future__ import annotations

from typing import Any

from diffusers import DDIMScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from transformers import T5Config, T5EncoderModel

from edgedistill.tiny import tokenizers
from edgedistill.tiny.stable_diffusion import autoencoder

__all__ = ["pipeline", "t5_config"]


def t5_config(tokenizer: Any, **choices: Any) -> T5Config:
    """Configure a T5 encoder of two layers and 16 channels for a tokenizer."""
    return T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **choices,
    )


def pipeline(**transformer: Any) -> PixArtSigmaPipeline:
    """Make the pipeline with random weights; arguments go to the transformer."""
    tokenizer = tokenizers.t5()
    network = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        cross_attention_dim=24,
        caption_channels=16,
        **{"sample_size": 4, **transformer},
    )
    return PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=T5EncoderModel(t5_config(tokenizer)),
        vae=autoencoder(scaling_factor=0.13025),
        transformer=network,
        scheduler=DDIMScheduler(clip_sample=False),
    )
