"""Removable parts of a UNet2DConditionModel, and config and weight sources of the remaining one.

Stage i is down_blocks.i with up_blocks.(n-1-i), both at one resolution. A stage of L down layers
has L+1 up layers; up layer u reads the output of down layer L-1-u, and the last one what entered
the stage. Down layer j goes with up layer L-j, the one that reads what enters down layer j: then
every up layer that stays reads what it read before, up to the change that the removed layer made.
The first down layer and the first and last up layer change the width, so they stay. For L=2 this
is the pair that BK-SDM removes.

References:
    BK-SDM (Kim et al., 2023) https://arxiv.org/abs/2305.15798, Sec. 3.1
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_blocks import (
    CrossAttnDownBlock2D,
    CrossAttnUpBlock2D,
    DownBlock2D,
    UNetMidBlock2D,
    UNetMidBlock2DCrossAttn,
    UpBlock2D,
)
from torch import nn

from edgedistill.compress.plan import Plan, config_of, is_under, source

__all__ = ["check_unet", "unet_plan", "unet_units"]

BLOCKS = (
    DownBlock2D,
    CrossAttnDownBlock2D,
    UNetMidBlock2D,
    UNetMidBlock2DCrossAttn,
    UpBlock2D,
    CrossAttnUpBlock2D,
)
ATTENTIVE = (CrossAttnDownBlock2D, UNetMidBlock2DCrossAttn, CrossAttnUpBlock2D)
PER_STAGE = (
    "block_out_channels",
    "down_block_types",
    "attention_head_dim",
    "cross_attention_dim",
    "only_cross_attention",
)
"""Config keys whose list has one entry for each stage, outermost first."""


def check_unet(net: nn.Module) -> UNet2DConditionModel:
    """Return `net` if it is a U-Net of Stable Diffusion's blocks; ValueError says what is not."""
    if not isinstance(net, UNet2DConditionModel):
        raise ValueError(f"needs a UNet2DConditionModel, found {type(net).__name__}")
    for name, block in net.named_children():
        for part in block if isinstance(block, nn.ModuleList) else [block]:
            if name in ("down_blocks", "mid_block", "up_blocks") and not isinstance(part, BLOCKS):
                choices = ", ".join(kind.__name__ for kind in BLOCKS)
                raise ValueError(f"{name}: {type(part).__name__} is none of {choices}")
    if net.config.dual_cross_attention:
        raise ValueError("dual_cross_attention: its attentions have no list of blocks to choose")
    return net


def unet_units(net: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return for each unit its name -> the paths of the modules that are removed together.

    - `stages.I.layers.J`: down layer J and the up layer that reads its input, with attentions.
    - `down_blocks.I.attentions`, `up_blocks.I.attentions`: every attention of one side.
    - `PATH.transformer_blocks.K`: one block of an attention that has more. The config gives the
      middle the depth of the innermost stage's first attention, so those two are removed together.
    - `mid_block.attentions`: the middle but its first ResNet; `mid_block`: all of it.
    - `stages.N`, the innermost: with the middle, where the next is as wide.
    """
    unet = check_unet(net)
    found: dict[str, tuple[str, ...]] = {}
    last = len(unet.down_blocks) - 1
    for i, down in enumerate(unet.down_blocks):
        up, down_path, up_path = (
            unet.up_blocks[last - i],
            f"down_blocks.{i}",
            f"up_blocks.{last - i}",
        )
        layers = len(down.resnets)
        for j in range(1, layers):
            pair = (*_layer(down, down_path, j), *_layer(up, up_path, layers - j))
            found[f"stages.{i}.layers.{j}"] = pair
        for path, block in ((down_path, down), (up_path, up)):
            if isinstance(block, ATTENTIVE):
                found[f"{path}.attentions"] = (f"{path}.attentions",)
    found |= _depth_units(unet)
    if isinstance(unet.mid_block, ATTENTIVE):
        found["mid_block.attentions"] = ("mid_block.attentions", "mid_block.resnets.1")
    if unet.mid_block is not None:
        found["mid_block"] = ("mid_block",)
    widths = unet.config.block_out_channels
    if last > 0 and widths[last] == widths[last - 1]:
        found[f"stages.{last}"] = (
            f"down_blocks.{last - 1}.downsamplers",
            f"down_blocks.{last}",
            "mid_block",
            "up_blocks.0",
        )
    return found


def _layer(block: Any, path: str, j: int) -> list[str]:
    layer = [f"{path}.resnets.{j}"]
    return [*layer, f"{path}.attentions.{j}"] if isinstance(block, ATTENTIVE) else layer


def _depth_units(unet: UNet2DConditionModel) -> dict[str, tuple[str, ...]]:
    depths = {
        path: len(module.transformer_blocks)
        for path, module in unet.named_modules()
        if isinstance(module, Transformer2DModel)
    }
    first, middle = (
        f"down_blocks.{len(unet.down_blocks) - 1}.attentions.0",
        "mid_block.attentions.0",
    )
    tied = first in depths and middle in depths
    found = {}
    for path, depth in depths.items():
        if depth == 1 or (tied and path == middle):
            continue
        for k in range(depth):
            roots = (path, middle) if tied and path == first else (path,)
            blocks = tuple(f"{root}.transformer_blocks.{k}" for root in roots)
            found[blocks[0]] = blocks
    return found


def unet_plan(net: nn.Module, removed: Collection[str]) -> Plan:
    """Plan the U-Net without the modules at the paths `removed`, a union of units' paths.

    Raises:
        ValueError: If an attention that stays would have no transformer block.
    """
    unet = check_unet(net)
    config, sources = config_of(unet), dict[str, str]()
    old_stages = len(unet.down_blocks)
    stages = sum(not is_under(f"down_blocks.{i}", removed) for i in range(old_stages))
    gone = old_stages - stages
    layers = []
    down_depths: list[Any] = []
    up_depths: list[Any] = []
    down_types, up_types = [], []
    for i in range(stages):
        path = f"down_blocks.{i}"
        kept, depth = _block(unet.down_blocks[i], path, path, removed, sources)
        layers.append(kept)
        down_depths.append(depth)
        down_types.append("DownBlock2D" if depth is None else "CrossAttnDownBlock2D")
        old = f"up_blocks.{i + gone}"
        _, depth = _block(unet.up_blocks[i + gone], f"up_blocks.{i}", old, removed, sources)
        up_depths.append(depth)
        up_types.append("UpBlock2D" if depth is None else "CrossAttnUpBlock2D")
    config["mid_block_type"], mid_depth = _middle(unet.mid_block, removed, sources)
    for key in PER_STAGE:
        if isinstance(config[key], list):
            config[key] = config[key][:stages]
    config |= {"down_block_types": down_types, "up_block_types": up_types}
    config["layers_per_block"] = _collapsed(layers)
    return Plan(config | _depth_config(down_depths, up_depths, mid_depth), sources)


def _block(
    block: Any, new: str, old: str, removed: Collection[str], sources: dict[str, str]
) -> tuple[int, int | list[int] | None]:
    """Return what stays of `block`: (layers, attention depth or None). Adds to `sources`."""
    layers = _kept(f"{old}.resnets", len(block.resnets), removed)
    attentive = isinstance(block, ATTENTIVE) and not is_under(f"{old}.attentions", removed)
    _move(sources, new, old)
    depths = []
    for j, layer in enumerate(layers):
        _move(sources, f"{new}.resnets.{j}", f"{old}.resnets.{layer}")
        if attentive:
            pair = (f"{new}.attentions.{j}", f"{old}.attentions.{layer}")
            depths.append(_attention(block.attentions[layer], *pair, removed, sources))
    return len(layers), _collapsed(depths) if attentive else None


def _attention(
    attention: Any, new: str, old: str, removed: Collection[str], sources: dict[str, str]
) -> int:
    _move(sources, new, old)
    total = len(attention.transformer_blocks)
    blocks = _kept(f"{old}.transformer_blocks", total, removed)
    if not blocks:
        raise ValueError(f"nothing is left of {old}: all {total} of its transformer blocks go")
    for k, kept in enumerate(blocks):
        _move(sources, f"{new}.transformer_blocks.{k}", f"{old}.transformer_blocks.{kept}")
    return len(blocks)


def _middle(
    middle: Any, removed: Collection[str], sources: dict[str, str]
) -> tuple[str | None, int | None]:
    """Return (mid_block_type, depth of its attention or None)."""
    if middle is None or is_under("mid_block", removed):
        return None, None
    path = "mid_block.attentions.0"
    if isinstance(middle, UNetMidBlock2D) or is_under(path, removed):
        return "UNetMidBlock2D", None
    return "UNetMidBlock2DCrossAttn", _attention(
        middle.attentions[0], path, path, removed, sources
    )


def _depth_config(downs: Sequence[Any], ups: Sequence[Any], middle: int | None) -> dict[str, Any]:
    """Return transformer_layers_per_block, and its reverse where up and down side differ.

    None stands for a block without attention, whose entry nothing reads.
    """
    downs, ups = list(downs), list(reversed(ups))
    if downs[-1] is None:
        downs[-1] = middle
    filled = [(_either(down, up), _either(up, down)) for down, up in zip(downs, ups, strict=True)]
    down_side, up_side = [pair[0] for pair in filled], [pair[1] for pair in filled]
    # diffusers refuses a nested list without the reverse, even a symmetrical one.
    same = down_side == up_side and not any(isinstance(depth, list) for depth in down_side)
    return {
        "transformer_layers_per_block": _collapsed(down_side),
        "reverse_transformer_layers_per_block": None if same else list(reversed(up_side)),
    }


def _either(depth: Any, other: Any) -> Any:
    if depth is not None:
        return depth
    return other if isinstance(other, int) else 1


def _collapsed(values: list[Any]) -> Any:
    """Return the one integer that all values equal, or else the list."""
    same = isinstance(values[0], int) and all(value == values[0] for value in values)
    return values[0] if same else values


def _kept(path: str, length: int, removed: Collection[str]) -> list[int]:
    return [i for i in range(length) if not is_under(f"{path}.{i}", removed)]


def _move(sources: dict[str, str], new: str, old: str) -> None:
    if source(sources, new) != old:
        sources[new] = old
