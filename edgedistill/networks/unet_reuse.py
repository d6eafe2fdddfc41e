"""A diffusers U-Net in two parts: its outermost layers, and the deep ones between them.

Ma et al. 2023, "DeepCache: Accelerating Diffusion Models for Free" (arXiv 2312.00858), Sec. 3.2:

    full:     h, skips = down_1(x);  deep = up_2(... mid(... down_2(h)));  f = up_1(deep, skips)
    shallow:  _, skips = down_1(x);  f = up_1(deep of an earlier call, skips)

`up_1` holds the last n layers of the last up block, and `down_1` the first down block's layers
whose skip connections they read: the input convolution for n = 1, and one layer more for each
further one. By default `up_1` is the whole block. Both calls run the modules that the U-Net's own
`forward` runs, in its order, so `full` gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.unets.unet_2d_blocks import (
    AttnDownBlock2D,
    AttnUpBlock2D,
    CrossAttnDownBlock2D,
    CrossAttnUpBlock2D,
    DownBlock2D,
    UpBlock2D,
)
from torch import Tensor, nn

__all__ = ["full", "outer_layers", "shallow"]

IN_LAYERS = (
    *(DownBlock2D, AttnDownBlock2D, CrossAttnDownBlock2D),
    *(UpBlock2D, AttnUpBlock2D, CrossAttnUpBlock2D),
)
"""Blocks whose layers, a ResNet block and perhaps an attention each, can run one by one."""


class _Embedded(NamedTuple):
    """The embedded time (N, D) and the text (N, L, D), which all blocks read.

    `scale` is a divisor of the output, (N, 1, 1, 1). There may be no text and no scale.
    """

    temb: Tensor
    text: Tensor | None = None
    scale: Tensor | None = None

    def words(self, block: nn.Module) -> dict[str, Tensor | None]:
        """Return these arguments of a block; only blocks with cross-attention read the text."""
        crossed = getattr(block, "has_cross_attention", False)
        return {"temb": self.temb, **({"encoder_hidden_states": self.text} if crossed else {})}


class _Outer(NamedTuple):
    """The hidden state after outer layers of the way down, and all skip connections so far."""

    h: Tensor
    skips: tuple[Tensor, ...]
    embedded: _Embedded


def outer_layers(unet: Any) -> int:
    """Return the number of layers of the last up block."""
    return len(unet.up_blocks[-1].resnets)


def full(
    unet: nn.Module, x: Tensor, t: Tensor, layers: int | None = None, **given: Any
) -> tuple[Tensor, Tensor]:
    """Run a U-Net as its `forward` does, and return (output, deep hidden state).

    Args:
        unet: A UNet2DModel or a UNet2DConditionModel.
        x: Input (N, C, H, W).
        t: Timesteps (N,).
        layers: Number of layers of the last up block that run after the deep state, from 1; all
            of them by default.
        given: Conditions by the names of `forward`: class_labels, encoder_hidden_states,
            added_cond_kwargs.

    Raises:
        ValueError: If it is another network, its blocks are not connected as such a U-Net's, or
            they cannot run layer by layer.
    """
    start = _start(unet, x, t, given)
    outer = _down(unet, start)
    deep = _inner(unet, outer)
    if layers is not None:
        deep = _up(unet, deep, outer, range(outer_layers(unet) - layers))
    return _last(unet, outer, deep, layers), deep


def shallow(
    unet: nn.Module, x: Tensor, t: Tensor, deep: Tensor, layers: int | None = None, **given: Any
) -> Tensor:
    """Run a U-Net's outermost layers alone, and return its output.

    Args:
        unet: As in `full`.
        x: As in `full`.
        t: As in `full`.
        deep: Hidden state of `full` on an x of this shape, with the same `layers`.
        layers: As in `full`.
        given: As in `full`.

    Raises:
        ValueError: As in `full`.
    """
    start = _start(unet, x, t, given)
    outer = _down(unet, start) if layers is None else _down_layers(unet, start, layers - 1)
    return _last(unet, outer, deep, layers)


def _start(unet: Any, x: Tensor, t: Tensor, given: Mapping[str, Any]) -> _Outer:
    """Embed the time and the conditions, and run the input convolution."""
    embed = next((each for kind, each in EMBEDS.items() if isinstance(unet, kind)), None)
    if embed is None or any(hasattr(block, "skip_conv") for block in unet.down_blocks):
        raise ValueError(
            f"{type(unet).__name__}: steps reuse the deep blocks of plain UNet2DModel and "
            "UNet2DConditionModel only; leave out student.reuse"
        )
    embedded = embed(unet, x, t, **given)
    h = unet.conv_in(2 * x - 1.0 if unet.config.center_input_sample else x)
    return _Outer(h, (h,), embedded)


def _down(unet: Any, start: _Outer) -> _Outer:
    """Run the first down block."""
    first = unet.down_blocks[0]
    h, skips = first(start.h, **start.embedded.words(first))
    return _Outer(h, (*start.skips, *skips), start.embedded)


def _down_layers(unet: Any, start: _Outer, count: int) -> _Outer:
    """Run the first layers of the first down block."""
    block, h, skips = _in_layers(unet.down_blocks[0]), start.h, start.skips
    for index in range(count):
        h = _layer(block, index, h, start.embedded)
        skips += (h,)
    return _Outer(h, skips, start.embedded)


def _inner(unet: Any, outer: _Outer) -> Tensor:
    """Run the deep blocks: all but the first down block and the last up block."""
    h, skips, words = outer.h, outer.skips, outer.embedded.words
    for block in unet.down_blocks[1:]:
        h, more = block(h, **words(block))
        skips += more
    if unet.mid_block is not None:
        h = unet.mid_block(h, **words(unet.mid_block))
    # A side that the down blocks could not halve is enlarged to that of the next skip.
    halvings = sum(block.upsamplers is not None for block in unet.up_blocks)
    uneven = any(side % 2**halvings for side in outer.skips[0].shape[-2:])
    for block in unet.up_blocks[:-1]:
        count = len(block.resnets)
        own, skips = skips[-count:], skips[:-count]
        size = {"upsample_size": skips[-1].shape[2:]} if uneven else {}
        h = block(h, own, **words(block), **size)
    if len(skips) != outer_layers(unet):
        raise ValueError(
            "the last up block reads skip connections of other blocks than the first down block"
        )
    return h


def _last(unet: Any, outer: _Outer, deep: Tensor, layers: int | None) -> Tensor:
    """Run the last layers of the last up block on a deep state, and what is behind them."""
    block, embedded, count = unet.up_blocks[-1], outer.embedded, outer_layers(unet)
    if layers is None:
        h = block(deep, outer.skips[:count], **embedded.words(block))
    else:
        h = _up(unet, deep, outer, range(count - layers, count))
    if unet.conv_norm_out:
        h = unet.conv_act(unet.conv_norm_out(h))
    f: Tensor = unet.conv_out(h)
    return f if embedded.scale is None else f / embedded.scale


def _up(unet: Any, h: Tensor, outer: _Outer, places: range) -> Tensor:
    """Run some layers of the last up block; the last of all reads the first skip connection."""
    block = _in_layers(unet.up_blocks[-1])
    for index in places:
        skip = outer.skips[len(block.resnets) - 1 - index]
        h = _layer(block, index, torch.cat([h, skip], dim=1), outer.embedded)
    return h


def _layer(block: Any, index: int, h: Tensor, embedded: _Embedded) -> Tensor:
    """Run one layer of a block."""
    h = block.resnets[index](h, embedded.temb)
    if not hasattr(block, "attentions"):
        return h
    attention = block.attentions[index]
    if getattr(block, "has_cross_attention", False):
        h, *_ = attention(h, encoder_hidden_states=embedded.text, return_dict=False)
        return h
    attended: Tensor = attention(h)
    return attended


def _in_layers(block: Any) -> Any:
    """Return a block whose layers can run one by one."""
    if type(block) not in IN_LAYERS:
        raise ValueError(
            f"{type(block).__name__}: its layers do not run one by one; leave out "
            "student.reuse_layers"
        )
    return block


# --- Embeddings of time and conditions ----------------------------------------------------------


def _plain(unet: Any, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> _Embedded:
    temb = unet.time_embedding(unet.time_proj(t).to(unet.dtype))
    if unet.class_embedding is not None:
        timed = unet.config.class_embed_type == "timestep"
        labels = unet.time_proj(class_labels) if timed else class_labels
        temb = temb + unet.class_embedding(labels).to(unet.dtype)
    fourier = unet.config.time_embedding_type == "fourier"
    return _Embedded(temb, scale=t.reshape(-1, 1, 1, 1) if fourier else None)


def _conditioned(
    unet: Any,
    x: Tensor,
    t: Tensor,
    encoder_hidden_states: Tensor,
    class_labels: Tensor | None = None,
    added_cond_kwargs: Mapping[str, Tensor] | None = None,
) -> _Embedded:
    text, added = encoder_hidden_states, added_cond_kwargs or {}
    if unet.config.addition_embed_type == "image_hint":
        raise ValueError("addition_embed_type image_hint: steps of such a U-Net reuse no blocks")
    temb = unet.time_embedding(unet.get_time_embed(x, t))
    classes = unet.get_class_embed(x, class_labels)
    if classes is not None:
        joined = unet.config.class_embeddings_concat
        temb = torch.cat([temb, classes], dim=-1) if joined else temb + classes
    more = unet.get_aug_embed(temb, text, added)
    temb = temb if more is None else temb + more
    if unet.time_embed_act is not None:
        temb = unet.time_embed_act(temb)
    return _Embedded(temb, unet.process_encoder_hidden_states(text, added))


EMBEDS: dict[type[nn.Module], Callable[..., _Embedded]] = {
    UNet2DModel: _plain,
    UNet2DConditionModel: _conditioned,
}
"""Class of U-Net -> how it embeds the time and its conditions."""
