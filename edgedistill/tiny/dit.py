"""A tiny DiTPipeline: 4x4x4 latents, 8x8 pictures, 1000 classes of which three have names."""

from __future__ import annotations

from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

from edgedistill.tiny.stable_diffusion import autoencoder

__all__ = ["LABELS", "pipeline"]

LABELS = {"0": "red, a red one, red red", "1": "blue, a blue one, blue blue", "2": "red blue"}
"""Names of classes by number, as in a published model_index.json."""


def pipeline() -> DiTPipeline:
    """Make the pipeline with random weights."""
    transformer = DiTTransformer2DModel(
        sample_size=4,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
    )
    made = DiTPipeline(
        transformer=transformer,
        vae=autoencoder(scaling_factor=0.18215),
        scheduler=DDIMScheduler(clip_sample=False),
    )
    made.register_to_config(id2label=LABELS)
    return made
