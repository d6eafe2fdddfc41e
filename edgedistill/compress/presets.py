"""Published smaller U-Nets, described by the parts of the original network that they keep.

All weights are copies. Layer pairs are removed as `unet_units` says, which for two layers a stage
is BK-SDM's own map: up layer 1 of the student is up layer 2 of the teacher. A transformer keeps
its blocks of lowest index, as in KOALA. SSD-1B and Vega were pruned in several rounds with
training in between; here their final shape is made at once, by the same rule.

References:
    BK-SDM (Kim et al., 2023) https://arxiv.org/abs/2305.15798
    KOALA (Lee et al., 2023) https://arxiv.org/abs/2312.04005
    SSD-1B and Vega (Gupta et al., 2024) https://arxiv.org/abs/2401.02677
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from edgedistill.common.plugins import unknown
from edgedistill.compress.plan import Plan
from edgedistill.compress.unet import check_unet, unet_plan, unet_units

__all__ = ["PRESETS", "Preset", "preset"]

Depths = tuple[int | tuple[int, ...], ...]
"""Number of transformer blocks in each stage, or in each of its layers where they differ; 0 is a
stage without attention."""


@dataclass(frozen=True)
class Preset:
    """The parts of a U-Net that stay; stages are listed outermost first, on both sides.

    Attributes:
        layers: Number of down layers that stay in each stage; None keeps all.
        down, up: Depths of the transformers; None keeps all.
        middle: The unit of the middle to remove; empty removes none.
        depth: Depth of the middle's transformer; None keeps all.
        innermost: Whether the innermost stage stays.
    """

    layers: int | None = None
    down: Depths | None = None
    up: Depths | None = None
    middle: str = ""
    depth: int | None = None
    innermost: bool = True


KOALA_1B: Depths = (0, 2, 6)
KOALA_700M: Depths = (0, 2, 5)
SSD_1B: Depths = (0, (2, 1, 1), (4, 4, 10))
VEGA: Depths = (0, 1, 2)

PRESETS = {
    "bk-sdm-base": Preset(layers=1),
    "bk-sdm-small": Preset(layers=1, middle="mid_block"),
    "bk-sdm-tiny": Preset(layers=1, middle="mid_block", innermost=False),
    "koala-1b": Preset(layers=1, down=KOALA_1B, up=KOALA_1B, depth=6),
    "koala-700m": Preset(layers=1, down=KOALA_700M, up=KOALA_700M, middle="mid_block"),
    "ssd-1b": Preset(layers=2, down=(0, 2, 4), up=SSD_1B, middle="mid_block.attentions"),
    "vega": Preset(layers=2, down=VEGA, up=VEGA, middle="mid_block.attentions"),
}


def preset(name: str, net: nn.Module) -> Plan:
    """Return the plan of the preset called `name` for the U-Net `net`.

    bk-sdm presets fit any U-Net of Stable Diffusion's blocks; a stage that already has only one
    layer pair, as in BK-SDM's own networks, is not changed. The other presets need SDXL's layout.

    Raises:
        ValueError: If there is no such preset, or it does not fit; says what the preset needs and
            what was found.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    try:
        return unet_plan(net, set(_removed(PRESETS[name], net)))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _removed(choice: Preset, net: nn.Module) -> Iterator[str]:
    unet = check_unet(net)
    units = unet_units(unet)
    last = len(unet.down_blocks) - 1
    if choice.middle:
        if choice.middle not in units:
            raise ValueError(f"needs a {choice.middle}, found mid_block_type {_middle(unet)}")
        yield from units[choice.middle]
    if not choice.innermost:
        if f"stages.{last}" not in units:
            widths = list(unet.config.block_out_channels)
            raise ValueError(f"needs two innermost stages of one width, found widths {widths}")
        yield from units[f"stages.{last}"]
    for i, down in enumerate(unet.down_blocks):
        if choice.layers is not None:
            if len(down.resnets) < choice.layers:
                raise ValueError(
                    f"needs {choice.layers} layers a stage, found {len(down.resnets)} in stage {i}"
                )
            for j in range(choice.layers, len(down.resnets)):
                yield from units[f"stages.{i}.layers.{j}"]
    if choice.down and choice.up:
        yield from _deeper(choice, unet)


def _middle(unet: Any) -> str:
    return "None" if unet.mid_block is None else type(unet.mid_block).__name__


def _deeper(choice: Preset, unet: Any) -> Iterator[str]:
    """Yield the transformer blocks beyond the depths of the preset."""
    assert choice.down is not None
    assert choice.up is not None
    stages = len(unet.down_blocks)
    if stages != len(choice.down):
        raise ValueError(f"needs {len(choice.down)} stages, found {stages}")
    for i in range(stages):
        layers = choice.layers or len(unet.down_blocks[i].resnets)
        down = [*range(layers)]
        # The first and the last up layers are kept with `layers` down layers.
        total = len(unet.up_blocks[stages - 1 - i].resnets)
        up = [0, *range(total - layers, total)]
        yield from _cut(unet.down_blocks[i], f"down_blocks.{i}", down, choice.down[i])
        path = f"up_blocks.{stages - 1 - i}"
        yield from _cut(unet.up_blocks[stages - 1 - i], path, up, choice.up[i])
    if choice.depth is not None:
        if not hasattr(unet.mid_block, "attentions") or not len(unet.mid_block.attentions):
            raise ValueError(f"needs an attention in the middle, found {_middle(unet)}")
        yield from _cut(unet.mid_block, "mid_block", [0], choice.depth)


def _cut(block: Any, path: str, layers: list[int], depths: int | tuple[int, ...]) -> Iterator[str]:
    attentive = hasattr(block, "attentions")
    if attentive != (depths != 0):
        needs = "attentions" if depths else "no attentions"
        raise ValueError(f"needs {needs} in {path}, found a {type(block).__name__}")
    if not attentive:
        return
    wanted = (depths,) * len(layers) if isinstance(depths, int) else depths
    for layer, depth in zip(layers, wanted, strict=True):
        found = len(block.attentions[layer].transformer_blocks)
        where = f"{path}.attentions.{layer}"
        if found < depth:
            raise ValueError(f"needs {depth} transformer blocks in {where}, found {found}")
        for k in range(depth, found):
            yield f"{where}.transformer_blocks.{k}"
