"""Tiny and full-size networks of real classes, their calls, and blocks made to do nothing."""

from __future__ import annotations

import torch
from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)

SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8}
SD21 = {
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SMALL = {"sample_size": 8, "norm_num_groups": 4, "cross_attention_dim": 8, "attention_head_dim": 2}


def full(config: dict) -> UNet2DConditionModel:
    """Full size, on the meta device."""
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


def sd(**config) -> UNet2DConditionModel:
    """SD1.x's layout: four stages, the two innermost of one width."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        **{"block_out_channels": (8, 16, 24, 24), **SMALL, **config}
    ).eval()


def sdxl(**config) -> UNet2DConditionModel:
    """SDXL's layout: three stages, deep transformers, added embeddings."""
    torch.manual_seed(0)
    own = {
        "block_out_channels": (8, 16, 24),
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 32,
    }
    return UNet2DConditionModel(**{**SDXL, **SMALL, **own, **config}).eval()


def dit(layers: int = 4) -> DiTTransformer2DModel:
    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        num_layers=layers,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    ).eval()


def pixart() -> PixArtTransformer2DModel:
    torch.manual_seed(0)
    return PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        cross_attention_dim=16,
        caption_channels=8,
        sample_size=8,
        use_additional_conditions=False,
    ).eval()


def sana() -> SanaTransformer2DModel:
    torch.manual_seed(0)
    return SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=3,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=8,
        sample_size=8,
        patch_size=1,
    ).eval()


def flux() -> FluxTransformer2DModel:
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    ).eval()


def sd3() -> SD3Transformer2DModel:
    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        out_channels=4,
        pos_embed_max_size=8,
        dual_attention_layers=(0, 2),
    ).eval()


def qwen() -> QwenImageTransformer2DModel:
    torch.manual_seed(0)
    return QwenImageTransformer2DModel(
        in_channels=4,
        out_channels=1,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(2, 2, 4),
    ).eval()


def calls(net, count: int = 1, seed: int = 1) -> list[dict]:
    """Keyword inputs of a tiny network, two pictures each."""
    g = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(2, *shape, generator=g)

    def one() -> dict:
        call = {"timestep": torch.randint(1, 1000, (2,), generator=g)}
        if isinstance(net, DiTTransformer2DModel):
            call["class_labels"] = torch.randint(10, (2,), generator=g)
        else:
            call["encoder_hidden_states"] = noise(5, 8)
        if isinstance(net, FluxTransformer2DModel | SD3Transformer2DModel):
            call["pooled_projections"] = noise(8)
        if isinstance(net, FluxTransformer2DModel):
            call |= {"img_ids": torch.zeros(9, 3), "txt_ids": torch.zeros(5, 3)}
        if isinstance(net, PixArtTransformer2DModel):
            call["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
        if isinstance(net, QwenImageTransformer2DModel):
            call |= {"img_shapes": [[(1, 3, 3)]] * 2}
            call["encoder_hidden_states_mask"] = torch.ones(2, 5, dtype=torch.bool)
        if getattr(net.config, "addition_embed_type", None) == "text_time":
            call["added_cond_kwargs"] = {"text_embeds": noise(8), "time_ids": torch.ones(2, 6)}
        tokens = isinstance(net, FluxTransformer2DModel | QwenImageTransformer2DModel)
        x = noise(9, 4) if tokens else noise(4, 8, 8)
        return {**call, "sample" if isinstance(net, UNet2DConditionModel) else "hidden_states": x}

    return [one() for _ in range(count)]


@torch.no_grad()
def output(net, call: dict) -> torch.Tensor:
    return net(**call)[0]


@torch.no_grad()
def silence(net, paths) -> None:
    """Make the modules at `paths` the identity on the stream that runs through them.

    An up layer reads the stream and a skip beside it; it gives the stream as it is.
    """
    for path in paths:
        module = net.get_submodule(path)
        for name, part in module.named_modules():
            kind = type(part).__name__
            if kind == "ResnetBlock2D":
                part.conv2.weight.zero_(), part.conv2.bias.zero_()
                if part.conv_shortcut is not None:
                    width = part.out_channels
                    part.conv_shortcut.weight.zero_(), part.conv_shortcut.bias.zero_()
                    part.conv_shortcut.weight[:, :width, 0, 0] = torch.eye(width)
            if kind == "Transformer2DModel":
                part.proj_out.weight.zero_(), part.proj_out.bias.zero_()
            if name == "" and "transformer_blocks." in path:
                _silence_block(part)


def _silence_block(block) -> None:
    """Zero what a transformer block adds to its stream."""
    ends = (
        "to_out.0",
        "to_add_out",
        "ff.net.2",
        "ff_context.net.2",
        "mlp.net.2",
        "proj_out",
        "conv_point",
    )
    for name, part in block.named_modules():
        if name.endswith(ends):
            part.weight.zero_()
            if part.bias is not None:
                part.bias.zero_()
