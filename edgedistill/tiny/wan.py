"""A tiny WanPipeline: latents of 4 channels, 2 frames and 4x4, videos of 5 frames and 32x32."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import UMT5Config, UMT5EncoderModel

from edgedistill.tiny import tokenizers

__all__ = ["pipeline"]


def pipeline(*, scheduler: Any = None) -> WanPipeline:
    """Make the pipeline with random weights; the default scheduler is the released one."""
    tokenizer = tokenizers.t5()
    text = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    transformer.register_to_config(sample_size=(2, 4, 4))
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[-0.5, 0.1, 0.4, 0.0],
        latents_std=[2.5, 1.5, 2.0, 3.0],
    )
    released = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(text),
        vae=vae,
        transformer=transformer,
        scheduler=scheduler or UniPCMultistepScheduler(**released),
    )
