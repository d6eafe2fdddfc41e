"""Weights by the names of the original code of Stable Diffusion 1.x, 2.x and XL.

Single files hold them so: CompVis/latent-diffusion, Stability-AI/generative-models and
mlfoundations/open_clip. Configurations are not in such a file, so readers find the architecture by
names and shapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["COMPONENTS", "State", "single_file_state", "unet_name"]

State = dict[str, Tensor]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}

_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}

_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}

_OPEN_CLIP = {
    "encoder.layers": "transformer.resblocks",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "final_layer_norm": "ln_final",
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
}

_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|\w+samplers)\.(\d+)\.(.*)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)")
_ATTENTION = re.compile(r"(encoder\.layers\.\d+\.self_attn)\.([qkv])_proj\.(weight|bias)")

OPEN_CLIP_LAYERS = 23
"""Number of layers from which on SD 2's first text encoder is OpenCLIP's."""


def unet_name(name: str, layers: Sequence[int], attention: Sequence[bool]) -> str:
    """Return the original name of a U-Net's weight or module.

    Args:
        name: Name in diffusers.
        layers: Number of layers of each down block; up blocks have one more, in reverse.
        attention: Whether each up block has attention.

    Raises:
        ValueError: If the layout has no place for it.
    """
    for ours, theirs in _ENDS.items():
        if name == ours or name.startswith(f"{ours}."):
            return theirs + name[len(ours) :]
    if found := _MIDDLE.fullmatch(name):
        kind, index, rest = found.groups()
        place = 2 * int(index) if kind == "resnets" else 1
        return f"middle_block.{place}.{_inner(kind, rest)}"
    found = _BLOCK.fullmatch(name)
    if found is None:
        raise ValueError(f"unet: no place for {name} in a single file")
    side, block, kind, index, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    counts = list(layers) if side == "down" else list(reversed(layers))
    start = (side == "down") + sum(count + 1 for count in counts[:block])  # behind conv_in
    if kind.endswith("samplers"):
        behind = 0 if side == "down" else 1 + attention[block]
        rest = rest.replace("conv", "op", 1) if side == "down" else rest
        index = counts[block]  # the block's last
    else:
        behind, rest = int(kind == "attentions"), _inner(kind, rest)
    side = "input" if side == "down" else "output"
    return f"{side}_blocks.{start + index}.{behind}.{rest}"


def unet_namer(unet: Any) -> Callable[[str], str]:
    """Return the function from a U-Net's names in diffusers to its original ones."""
    blocks, per = len(unet.config.down_block_types), unet.config.layers_per_block
    layers = [per] * blocks if isinstance(per, int) else list(per)
    attention = [hasattr(block, "attentions") for block in unet.up_blocks]
    return lambda name: unet_name(name, layers, attention)


def _inner(kind: str, rest: str) -> str:
    return _replaced(rest, _RESNET) if kind == "resnets" else rest


def _replaced(name: str, table: Mapping[str, str]) -> str:
    for ours, theirs in table.items():
        name = name.replace(ours, theirs)
    return name


def _unet(unet: Any) -> State:
    rename = unet_namer(unet)
    return {rename(name): value for name, value in unet.state_dict().items()}


def _vae(vae: Any) -> State:
    last = len(vae.config.up_block_types) - 1
    state = {}
    for name, value in vae.state_dict().items():
        name = re.sub(r"mid_block\.resnets\.(\d+)", _middle, name)
        if "mid_block.attentions.0" in name:
            name = _replaced(name.replace("mid_block.attentions.0", "mid.attn_1"), _VAE_ATTENTION)
            value = value[..., None, None] if value.ndim == 2 else value  # a 1x1 convolution there
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.", lambda m: f"up.{last - int(m[1])}.", name)
        name = name.replace("upsamplers.0", "upsample").replace(".resnets.", ".block.")
        name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        state[name] = value
    return state


def _middle(found: re.Match[str]) -> str:
    return f"mid.block_{int(found[1]) + 1}"


def _bare(encoder: Any) -> State:
    return {name.removeprefix("text_model."): v for name, v in encoder.state_dict().items()}


def _clip(encoder: Any) -> State:
    return {f"transformer.text_model.{name}": value for name, value in _bare(encoder).items()}


def _open_clip(encoder: Any) -> State:
    bare = _bare(encoder)
    state = {}
    for name, value in bare.items():
        if name == "text_projection.weight":
            state["model.text_projection"] = value.T
        elif found := _ATTENTION.fullmatch(name):
            where, part, end = found.groups()
            if part == "q":
                whole = torch.cat([bare[f"{where}.{each}_proj.{end}"] for each in "qkv"])
                place = where.replace("encoder.layers", "transformer.resblocks")
                state[f"model.{place.removesuffix('self_attn')}attn.in_proj_{end}"] = whole
        else:
            state[f"model.{_replaced(name, _OPEN_CLIP)}"] = value
    return state


def _first_text(encoder: Any) -> State:
    """Name SD 1's CLIP, or SD 2's OpenCLIP."""
    open_clip = encoder.config.num_hidden_layers >= OPEN_CLIP_LAYERS
    return _open_clip(encoder) if open_clip else _clip(encoder)


Namer = Callable[[Any], State]

COMPONENTS: dict[str, dict[str, tuple[str, Namer]]] = {
    "stable_diffusion": {
        "unet": ("model.diffusion_model.", _unet),
        "vae": ("first_stage_model.", _vae),
        "text_encoder": ("cond_stage_model.", _first_text),
    },
    "sdxl": {
        "unet": ("model.diffusion_model.", _unet),
        "vae": ("first_stage_model.", _vae),
        "text_encoder": ("conditioner.embedders.0.", _clip),
        "text_encoder_2": ("conditioner.embedders.1.", _open_clip),
    },
}
"""Prefix and names of each component's weights, by family."""


def single_file_state(pipeline: Any, family: str, dtype: torch.dtype) -> State:
    """Return all weights of a pipeline by their original names.

    Args:
        pipeline: A StableDiffusionPipeline or StableDiffusionXLPipeline.
        family: A key of `COMPONENTS`.
        dtype: Type of the weights.

    Raises:
        ValueError: If the layout has no place for a weight; names it.
    """
    return dict(_named(pipeline, family, dtype))


def _named(pipeline: Any, family: str, dtype: torch.dtype) -> Iterable[tuple[str, Tensor]]:
    for part, (prefix, names) in COMPONENTS[family].items():
        for name, value in names(getattr(pipeline, part)).items():
            yield prefix + name, value.detach().to("cpu", dtype, copy=True).contiguous()
