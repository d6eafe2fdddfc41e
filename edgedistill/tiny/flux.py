"""A tiny FluxPipeline: 4x4x4 latents, 8x8 pictures."""

from __future__ import annotations

from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextModel, T5EncoderModel

from edgedistill.tiny import tokenizers
from edgedistill.tiny.pixart import t5_config
from edgedistill.tiny.stable_diffusion import autoencoder, text_config

__all__ = ["pipeline"]


def pipeline(*, dev: bool = True) -> FluxPipeline:
    """Make the pipeline with random weights: dev (guidance input, shift by size), or schnell."""
    first, second = tokenizers.clip(), tokenizers.t5()
    transformer = FluxTransformer2DModel(
        in_channels=4 * 4,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=dev,
        axes_dims_rope=(2, 2, 4),
    )
    shift = {"shift": 3.0, "use_dynamic_shifting": True} if dev else {"shift": 1.0}
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**shift),
        vae=autoencoder(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=CLIPTextModel(text_config(first)),
        tokenizer=first,
        text_encoder_2=T5EncoderModel(t5_config(second)),
        tokenizer_2=second,
        transformer=transformer,
    )
