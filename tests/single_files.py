"""Tiny pipelines written as their authors publish them: one file, names of the original code.

The names are those of CompVis/latent-diffusion, Stability-AI/generative-models and
mlfoundations/open_clip.
"""

from __future__ import annotations

import re

import torch
from own_teacher.to_single_file import layout as sd1
from own_teacher.to_single_file import prefixed, replaced, unet_state, vae_state

__all__ = ["sd1", "sdxl"]

OPEN_CLIP = {
    "encoder.layers": "transformer.resblocks",
    "self_attn": "attn",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "final_layer_norm": "ln_final",
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
}


def sdxl(pipeline):
    """SDXL."""
    text = pipeline.text_encoder.state_dict()
    return {
        **prefixed("model.diffusion_model.", unet_state(pipeline.unet)),
        **prefixed("first_stage_model.", vae_state(pipeline.vae)),
        **prefixed("conditioner.embedders.0.transformer.text_model.", text),
        **prefixed("conditioner.embedders.1.model.", _open_clip(pipeline.text_encoder_2)),
    }


def _open_clip(encoder):
    state = {n.removeprefix("text_model."): v for n, v in encoder.state_dict().items()}
    made = {"text_projection": state.pop("text_projection.weight").T}
    for name, value in state.items():
        if found := re.match(r"(encoder\.layers\.\d\.self_attn)\.q_proj\.(\w+)", name):
            parts = [state[f"{found[1]}.{part}_proj.{found[2]}"] for part in "qkv"]
            made[f"{replaced(found[1], OPEN_CLIP)}.in_proj_{found[2]}"] = torch.cat(parts)
        elif not re.search(r"\.[kv]_proj\.", name):
            made[replaced(name, OPEN_CLIP)] = value
    return made
