"""Write a Stable Diffusion 1.x folder as one file, in its authors' layout.

`python examples/own_teacher/to_single_file.py OUT.safetensors CONFIG [--base FOLDER]`

The names of the weights become those of CompVis/latent-diffusion, which is what checkpoints from
the web have. CONFIG becomes the folder without its weights: configurations and tokenizer. The base
is the emoji teacher that edgedistill ships, or any folder of a StableDiffusionPipeline.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from edgedistill.assets import ROOT
from safetensors.torch import save_file
from torch import Tensor

State = dict[str, Tensor]

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}

ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}

ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}

WEIGHTS = ("*.safetensors", "*.bin", "*.png", "clip", "README.md", "prompts.json")
"""Of a folder, what its configurations do without."""


def layout(pipeline: StableDiffusionPipeline) -> State:
    """All weights of a pipeline by their authors' names."""
    text = pipeline.text_encoder.state_dict()
    return {
        **prefixed("model.diffusion_model.", unet_state(pipeline.unet)),
        **prefixed("first_stage_model.", vae_state(pipeline.vae)),
        **prefixed("cond_stage_model.transformer.text_model.", text),
    }


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> State:
    """Copies, under longer names."""
    return {prefix + name: tensor.clone().contiguous() for name, tensor in state.items()}


def replaced(name: str, table: Mapping[str, str]) -> str:
    """A name with all that is in the table replaced."""
    for new, old in table.items():
        name = name.replace(new, old)
    return name


def unet_state(unet: UNet2DConditionModel) -> State:
    """A U-Net's weights, without a prefix."""
    return {_unet_name(name, unet): value for name, value in unet.state_dict().items()}


def _unet_name(name: str, unet: UNet2DConditionModel) -> str:
    layers = unet.config.layers_per_block
    for new, old in ENDS.items():
        if name.startswith(f"{new}."):
            return old + name[len(new) :]
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        kind, index, rest = found.groups()
        place = f"middle_block.{2 * int(index) if kind == 'resnets' else 1}"
        return f"{place}.{_inner(kind, rest)}"
    found = re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", name)
    if found is None:
        raise ValueError(f"unet: no place for {name} in a Stable Diffusion 1.x checkpoint")
    side, block, kind, index, rest = found.groups()
    # Behind input_blocks.0, conv_in; a sampler is its block's last.
    start = int(block) * (layers + 1) + (side == "down")
    if kind == "downsamplers":
        return f"input_blocks.{start + layers}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        behind = 2 if hasattr(unet.up_blocks[int(block)], "attentions") else 1
        return f"output_blocks.{start + layers}.{behind}.{rest}"
    place = f"{'input' if side == 'down' else 'output'}_blocks.{start + int(index)}"
    return f"{place}.{int(kind == 'attentions')}.{_inner(kind, rest)}"


def _inner(kind: str, rest: str) -> str:
    return replaced(rest, RESNET) if kind == "resnets" else rest


def vae_state(vae: AutoencoderKL) -> State:
    """An autoencoder's weights, without a prefix."""
    last = len(vae.config.up_block_types) - 1
    state = {}
    for name, value in vae.state_dict().items():
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        if "mid_block.attentions.0" in name:
            name = replaced(name.replace("mid_block.attentions.0", "mid.attn_1"), ATTENTION)
            value = value[..., None, None] if value.ndim == 2 else value
        name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d)\.", lambda m: f"up.{last - int(m[1])}.", name)
        name = name.replace("upsamplers.0", "upsample")
        if ".up." in name:
            name = name.replace("resnets", "block")
        name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        state[name] = value
    return state


def main() -> None:
    """Write the file and the folder of configurations."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="ends in .safetensors")
    parser.add_argument("config", type=Path, help="becomes a folder of configurations")
    parser.add_argument("--base", type=Path, default=ROOT / "emoji")
    parser.add_argument("--licence", default="other", help="what the file's header says")
    args = parser.parse_args()
    pipeline = StableDiffusionPipeline.from_pretrained(args.base, dtype=torch.float32)
    state = {name: value.half() for name, value in layout(pipeline).items()}
    save_file(state, args.out, {"format": "pt", "modelspec.license": args.licence})
    shutil.copytree(args.base, args.config, ignore=shutil.ignore_patterns(*WEIGHTS))
    print(f"{len(state)} weights in {args.out}, their configurations in {args.config}")


if __name__ == "__main__":
    main()
