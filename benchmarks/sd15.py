"""Networks of Stable Diffusion 1.5's sizes with random weights, a graph for each stage.

`GRAPHS` has the U-Net (0.86 billion weights), its outer blocks and its last layer alone as in
steps that reuse the deep state, the smaller U-Nets of BK-SDM, the largest and the smallest with a
stride of 2 in their attention over 4096 tokens, the text encoder, the VAE's decoder, the tiny
decoder TAESD, and a chain of matrix products, which shows what an engine reaches at most. A
picture has 512 x 512 pixels, and 64 x 64 latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from edgedistill.compress.presets import preset
from edgedistill.compress.token_stride import TokenStride, stride_attention
from edgedistill.teachers.base import ExportGraph
from edgedistill.teachers.decoders import Decoder, shifted
from edgedistill.teachers.families.stable_diffusion import SDNet, SDTextEncoder
from edgedistill_export.targets import Call

WIDTH = 320
"""Channels of SD 1.5's first stage; all of its U-Net's widths are multiples of it."""
TOKENS, FEATURES, VOCABULARY, LATENT = 77, 768, 49408, 64
ROWS, LAYER, LAYERS = 4096, 2048, 8
"""Sizes of the chain of matrix products."""


@dataclass(frozen=True)
class Stage:
    """A function from a width to the module of a graph, and one from a batch to its inputs."""

    build: Callable[[int], nn.Module]
    inputs: Callable[[int], Mapping[str, torch.Tensor]]

    def graph(self, width: int = WIDTH) -> ExportGraph:
        """Build the graph with random weights."""
        torch.manual_seed(0)
        module = self.build(width).eval().requires_grad_(False)
        return ExportGraph(module, dict(self.inputs(2)), ("f",))

    def calls(self, count: int) -> list[Call]:
        """Draw inputs for `count` calls, a batch of one each."""
        torch.manual_seed(0)
        return [
            {name: tensor.numpy() for name, tensor in self.inputs(1).items()} for _ in range(count)
        ]


def unet(width: int) -> SDNet:
    """The U-Net."""
    network = UNet2DConditionModel(
        sample_size=LATENT,
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        cross_attention_dim=FEATURES,
    )
    return SDNet(network)


class OuterLayers(nn.Module):
    """The outer layers of the U-Net, with the deep state as an input.

    Args:
        net: The network.
        layers: Number of layers of the last up block; None for the whole block.
    """

    def __init__(self, net: SDNet, layers: int | None) -> None:
        super().__init__()
        self.net, self.layers = net, layers

    def forward(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        deep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
    ) -> torch.Tensor:
        return self.net.shallow(x, t, deep, self.layers, encoder_hidden_states)


def outer_layers(layers: int | None, width: int) -> nn.Module:
    """The U-Net's outer layers; the deep blocks get no weights."""
    net = unet(width)
    whole = net.unet
    assert isinstance(whole, UNet2DConditionModel)
    whole.down_blocks, whole.up_blocks = whole.down_blocks[:1], whole.up_blocks[-1:]
    whole.mid_block = None
    return OuterLayers(net, layers)


def smaller(name: str, width: int) -> SDNet:
    """The U-Net that a preset of BK-SDM makes from it."""
    with torch.device("meta"):
        plan = preset(name, unet(width).unet)
    return SDNet(UNet2DConditionModel.from_config(plan.config))


def strided(build: Callable[[int], SDNet], width: int) -> SDNet:
    """A U-Net with a stride of 2 in the self-attention of its outermost stage."""
    net = build(width)
    stride_attention(net.unet, TokenStride(stride=2))
    return net


def text_encoder(_: int) -> nn.Module:
    """CLIP ViT-L/14's text encoder."""
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=FEATURES,
        intermediate_size=4 * FEATURES,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=TOKENS,
    )
    return SDTextEncoder(CLIPTextModel(config))


def decoder(_: int) -> nn.Module:
    """The VAE's decoder."""
    blocks = 4
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
    )
    return _decoder(vae)


def tiny_decoder(_: int) -> nn.Module:
    """TAESD's decoder."""
    return _decoder(AutoencoderTiny())


def _decoder(vae: Any) -> nn.Module:
    with torch.device(
        "cpu"
    ):  # the scaling is checked when it is made, which meta tensors cannot be
        return Decoder(vae, shifted(vae.config))


def products(_: int) -> nn.Module:
    """A chain of matrix products."""
    return nn.Sequential(*(nn.Linear(LAYER, LAYER, bias=False) for _ in range(LAYERS)))


def unet_inputs(batch: int) -> dict[str, torch.Tensor]:
    """Latents, times and features of a text."""
    return {
        "x": torch.randn(batch, 4, LATENT, LATENT),
        "t": torch.rand(batch) * 999,
        "encoder_hidden_states": torch.randn(batch, TOKENS, FEATURES),
    }


def outer_inputs(channels: int, batch: int) -> dict[str, torch.Tensor]:
    """The same, and a deep state of so many channels."""
    given = unet_inputs(batch)
    deep = torch.randn(batch, channels, LATENT, LATENT)
    return {"x": given.pop("x"), "t": given.pop("t"), "deep": deep, **given}


def text_inputs(batch: int) -> dict[str, torch.Tensor]:
    """Token ids."""
    return {"input_ids": torch.randint(VOCABULARY, (batch, TOKENS))}


def latent_inputs(batch: int) -> dict[str, torch.Tensor]:
    """Latents."""
    return {"x0": torch.randn(batch, 4, LATENT, LATENT)}


def product_inputs(batch: int) -> dict[str, torch.Tensor]:
    """Rows of the chain."""
    return {"x": torch.randn(batch, ROWS, LAYER)}


GRAPHS: Mapping[str, Stage] = {
    "unet": Stage(unet, unet_inputs),
    "unet-stride2": Stage(partial(strided, unet), unet_inputs),
    "unet-outer": Stage(partial(outer_layers, None), partial(outer_inputs, 2 * WIDTH)),
    "unet-last": Stage(partial(outer_layers, 1), partial(outer_inputs, WIDTH)),
    "unet-bk-small": Stage(partial(smaller, "bk-sdm-small"), unet_inputs),
    "unet-bk-tiny": Stage(partial(smaller, "bk-sdm-tiny"), unet_inputs),
    "unet-bk-tiny-stride2": Stage(partial(strided, partial(smaller, "bk-sdm-tiny")), unet_inputs),
    "text": Stage(text_encoder, text_inputs),
    "decoder": Stage(decoder, latent_inputs),
    "tiny-decoder": Stage(tiny_decoder, latent_inputs),
    "products": Stage(products, product_inputs),
}


def gflop(name: str, width: int = WIDTH) -> float:
    """Count the floating-point operations of a call of a graph, in 1e9; two for a product."""
    with torch.device("meta"):
        graph = GRAPHS[name].graph(width)
    inputs = list(graph.inputs.values())
    with FlopCounterMode(display=False) as counter:
        graph.module(*inputs)
    return float(counter.get_total_flops()) / len(inputs[0]) / 1e9
