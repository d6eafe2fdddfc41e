"""Width pruning of a U-Net: fewer channels in each stage, chosen by magnitude.

Axes that must be cut alike share one set of channels: the residual stream of a stage (down blocks,
middle, up blocks and the skips between them; of several stages where equal widths join them
without a shortcut), the inside of every ResNet, the stream of every transformer, the queries with
the keys, the values, the inside of every feed-forward layer. Streams keep as many channels of
every norm group, queries and values as many of every head, so the numbers of groups and heads
stay. The width of the time embedding stays too.

References:
    Pruning Filters for Efficient ConvNets (Li et al., 2016) https://arxiv.org/abs/1608.08710
    SnapFusion (Li et al., 2023) https://arxiv.org/abs/2306.00980
    DepGraph (Fang et al., 2023) https://arxiv.org/abs/2301.12900
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgedistill.compress.plan import Channels, Plan, config_of
from edgedistill.compress.unet import check_unet

__all__ = ["prune_width"]

NEEDS = {
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
    "attention_type": "default",
    "cross_attention_norm": None,
}
"""Config key -> the value for which the ties below are complete."""


@dataclass(frozen=True)
class _Axis:
    """An axis that keeps `kept` of `size` channels, equally many of each of `parts` ranges."""

    size: int
    kept: int
    parts: int


def prune_width(net: nn.Module, factor: float) -> Plan:
    """Plan a U-Net with about `factor` of each stage's channels, about factor^2 of its weights.

    Widths are rounded to the nearest multiple that norm groups and heads divide. Each norm group
    or head keeps the channels whose writing and reading weights have the largest sum of squares;
    on the meta device, which has no values, those of lowest index. The time embedding keeps the
    frequencies nearest to the narrower network's.

    Args:
        net: A U-Net of Stable Diffusion's blocks.
        factor: Share of the channels to keep, in (0, 1].

    Raises:
        ValueError: If the factor is out of range or gives two stages of different width the same,
            or if `net` is of another kind.
    """
    if not 0 < factor <= 1:
        raise ValueError(f"factor is the share of channels that stay, in (0, 1]; not {factor}")
    unet = check_unet(net)
    config = config_of(unet)
    for key, needed in NEEDS.items():
        if config[key] != needed:
            raise ValueError(f"narrower needs {key} {needed!r}, found {config[key]!r}")
    ties = _Ties(unet, _stage_widths(config, factor))
    ties.unet_parts()
    widths = [ties.axes[stream].kept for stream in ties.streams]
    config["time_embedding_dim"] = (
        config["time_embedding_dim"] or 4 * config["block_out_channels"][0]
    )
    config["block_out_channels"] = widths
    frequencies = _frequencies(ties.axes["time"], config["freq_shift"])
    scores = ties.scores()
    channels = {name: _largest(axis, scores[name]) for name, axis in ties.axes.items()}
    return Plan(config, {}, channels | {"time": frequencies}, ties.cuts)


def _stage_widths(config: dict[str, Any], factor: float) -> list[int]:
    widths, heads = config["block_out_channels"], config["attention_head_dim"]
    heads = heads if isinstance(heads, list) else [heads] * len(widths)
    rounded: dict[int, int] = {}
    for width in widths:
        # Two axes, since the time embedding is half sines, half cosines.
        all_heads = [head for head, other in zip(heads, widths, strict=True) if other == width]
        step = math.lcm(2, config["norm_num_groups"], *all_heads)
        if width % step:
            raise ValueError(f"width {width} is no multiple of {step}, its groups and heads")
        rounded[width] = max(1, math.floor(width * factor / step + 0.5)) * step
    if len(set(rounded.values())) < len(rounded):
        kept = [rounded[width] for width in widths]
        raise ValueError(f"factor {factor} makes widths {widths} into {kept}; stages must differ")
    return [rounded[width] for width in widths]


def _frequencies(axis: _Axis, shift: float) -> Channels:
    """Choose the kept frequencies, 10000^(-k/(n-shift)) for k of n, in both halves."""
    old, new = axis.size // 2, axis.kept // 2
    ratio = (old - shift) / max(new - shift, 1)
    near = [min(round(k * ratio), old - 1) for k in range(new)]
    return Channels(axis.size, near + [old + k for k in near])


def _largest(axis: _Axis, scores: Tensor) -> Channels:
    if scores.is_meta:
        scores = torch.arange(axis.size, 0, -1.0)
    parts = scores.reshape(axis.parts, -1)
    best = parts.topk(axis.kept // axis.parts, dim=1).indices.sort(dim=1).values
    starts = torch.arange(0, axis.size, axis.size // axis.parts).unsqueeze(1)
    return Channels(axis.size, (best.cpu() + starts).flatten().tolist())


class _Ties:
    """A walk through a U-Net that notes which axes of its parameters are cut alike."""

    def __init__(self, unet: Any, widths: list[int]) -> None:
        self.unet, self.axes, self.cuts = unet, dict[str, _Axis](), dict[str, list[list[str]]]()
        self.groups: int = unet.config.norm_num_groups
        self.streams: list[str] = []
        olds = list(unet.config.block_out_channels)
        self.narrow = dict(zip(olds, widths, strict=True))
        for i, old in enumerate(olds):
            joined = i > 0 and olds[i - 1] == old
            stream = self.streams[-1] if joined else f"stages.{i}"
            self.streams.append(stream)
            self.axes[stream] = _Axis(old, self.narrow[old], self.groups)
        self.axes["time"] = _Axis(olds[0], widths[0], 1)

    def scores(self) -> dict[str, Tensor]:
        """Return for each axis the sum of squares of each channel's weights, written or read."""
        device = next(self.unet.parameters()).device
        totals = {name: torch.zeros(axis.size, device=device) for name, axis in self.axes.items()}
        weights = dict(self.unet.named_parameters())
        for path, dims in self.cuts.items():
            weight = weights[path].detach()
            if weight.ndim == 1:
                continue
            energy = weight.float().square().unflatten(-1, (-1, 1)).flatten(2).sum(2)
            for dim, names in enumerate(dims[:2]):
                sizes = [self.axes[name].size for name in names]
                pieces = energy.sum(1 - dim).split(sizes) if names else ()
                for name, piece in zip(names, pieces, strict=True):
                    totals[name] += piece
        return totals

    def cut(self, path: str, rows: list[str], columns: list[str]) -> None:
        """Note that the module at `path` writes the channels `rows` and reads `columns`."""
        for name, parameter in self.unet.get_submodule(path).named_parameters(recurse=False):
            dims = [rows, columns][: parameter.ndim] + [[]] * max(parameter.ndim - 2, 0)
            self.cuts[f"{path}.{name}"] = dims

    def unet_parts(self) -> None:
        outer, inner = [self.streams[0]], [self.streams[-1]]
        self.cut("conv_in", outer, [])
        self.cut("time_embedding.linear_1", [], ["time"])
        if self.unet.time_embedding.cond_proj is not None:
            self.cut("time_embedding.cond_proj", ["time"], [])
        before = outer
        for i, block in enumerate(self.unet.down_blocks):
            stream = [self.streams[i]]
            inputs = [before, *[stream] * (len(block.resnets) - 1)]
            self.block(f"down_blocks.{i}", block, inputs, stream, "downsamplers")
            before = stream
        if self.unet.mid_block is not None:
            inputs = [inner] * len(self.unet.mid_block.resnets)
            self.block("mid_block", self.unet.mid_block, inputs, inner, "")
        before = inner
        for m, block in enumerate(self.unet.up_blocks):
            i = len(self.streams) - 1 - m
            stream, entered = [self.streams[i]], [self.streams[max(i - 1, 0)]]
            layers = len(block.resnets)
            mains = [before, *[stream] * (layers - 1)]
            skips = [*[stream] * (layers - 1), entered]
            inputs = [main + skip for main, skip in zip(mains, skips, strict=True)]
            self.block(f"up_blocks.{m}", block, inputs, stream, "upsamplers")
            before = stream
        self.cut("conv_norm_out", outer, [])
        self.cut("conv_out", [], outer)

    def block(
        self, path: str, block: Any, inputs: list[list[str]], stream: list[str], sampler: str
    ) -> None:
        for j, read in enumerate(inputs):
            self.resnet(f"{path}.resnets.{j}", block.resnets[j], read, stream)
        for j, attention in enumerate(getattr(block, "attentions", ())):
            self.transformer(f"{path}.attentions.{j}", attention, stream)
        if sampler and getattr(block, sampler) is not None:
            self.cut(f"{path}.{sampler}.0.conv", stream, stream)

    def resnet(self, path: str, resnet: Any, read: list[str], stream: list[str]) -> None:
        inside = self.axis(f"{path}.inside", resnet.out_channels, self.groups)
        self.cut(f"{path}.norm1", read, [])
        self.cut(f"{path}.conv1", inside, read)
        self.cut(f"{path}.time_emb_proj", inside, [])
        self.cut(f"{path}.norm2", inside, [])
        self.cut(f"{path}.conv2", stream, inside)
        if resnet.conv_shortcut is not None:
            self.cut(f"{path}.conv_shortcut", stream, read)

    def transformer(self, path: str, transformer: Any, stream: list[str]) -> None:
        inner = self.axis(f"{path}.inner", transformer.inner_dim, 1)
        self.cut(f"{path}.norm", stream, [])
        self.cut(f"{path}.proj_in", inner, stream)
        self.cut(f"{path}.proj_out", stream, inner)
        for k, block in enumerate(transformer.transformer_blocks):
            where = f"{path}.transformer_blocks.{k}"
            for norm in ("norm1", "norm2", "norm3"):
                self.cut(f"{where}.{norm}", inner, [])
            for name in ("attn1", "attn2"):
                self.attention(f"{where}.{name}", getattr(block, name), inner)
            feed = f"{where}.ff.net"
            hidden = self.axis(f"{feed}.inside", transformer.inner_dim, 1, times=4)
            # GEGLU's projection holds the values, then the gates.
            self.cut(f"{feed}.0.proj", hidden + hidden, inner)
            self.cut(f"{feed}.2", inner, hidden)

    def attention(self, path: str, attention: Any, inner: list[str]) -> None:
        width = attention.inner_dim
        keys = self.axis(f"{path}.keys", width, attention.heads)
        values = self.axis(f"{path}.values", width, attention.heads)
        read = [] if attention.is_cross_attention else inner
        self.cut(f"{path}.to_q", keys, inner)
        self.cut(f"{path}.to_k", keys, read)
        self.cut(f"{path}.to_v", values, read)
        self.cut(f"{path}.to_out.0", inner, values)

    def axis(self, name: str, width: int, parts: int, times: int = 1) -> list[str]:
        self.axes[name] = _Axis(times * width, times * self.narrow[width], parts)
        return [name]
