"""Example inputs of each kind of network, as tensors without data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgedistill.common.plugins import unknown
from edgedistill.networks import unet_reuse

__all__ = ["CORES", "KINDS", "Inputs", "Net", "inputs_of"]

CORES = ("unet", "transformer")
"""Names of a pipeline's denoiser."""

Networks = Mapping[str, nn.Module]


@dataclass(frozen=True)
class Inputs:
    """Inputs of a denoiser at the resolution its config was published for.

    Attributes:
        sample: Shape of one x0, without the batch.
        latent: Shape of the decoder's input, where it differs from `sample`.
        cond: Conditions by keyword, one row each.
        added: Keywords of conditions that diffusers takes in `added_cond_kwargs`.
        fixed: Keyword tensors without a batch axis.
    """

    sample: tuple[int, ...]
    latent: tuple[int, ...] = ()
    cond: dict[str, Tensor] = field(default_factory=dict)
    added: tuple[str, ...] = ()
    fixed: dict[str, Tensor] = field(default_factory=dict)


class Net(nn.Module):
    """A diffusers denoiser called as net(x, t, **cond); its path inside is its name.

    Args:
        name: One of `CORES`.
        core: The diffusers model.
        inputs: Inputs of the model.
    """

    def __init__(self, name: str, core: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.add_module(name, core)
        self.name, self.inputs = name, inputs

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        words, core = self._words(cond), self.get_submodule(self.name)
        result: Tensor = core(x, timestep=t, **words, return_dict=False)[0]
        return result[:, : x.shape[1]]  # without a learned variance

    @property
    def outer_layers(self) -> int:
        """Number of layers of the last up block."""
        return unet_reuse.outer_layers(self.get_submodule(self.name))

    def full(
        self, x: Tensor, t: Tensor, layers: int | None, **cond: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the output, and the deep state (see `diffusion.reuse.Reusing`)."""
        core = self.get_submodule(self.name)
        f, deep = unet_reuse.full(core, x, t, layers, **self._words(cond))
        return f[:, : x.shape[1]], deep

    def shallow(
        self, x: Tensor, t: Tensor, deep: Tensor, layers: int | None, **cond: Tensor
    ) -> Tensor:
        """Return the output of the outer layers on a deep state."""
        core = self.get_submodule(self.name)
        f = unet_reuse.shallow(core, x, t, deep, layers, **self._words(cond))
        return f[:, : x.shape[1]]

    def _words(self, cond: Mapping[str, Tensor]) -> dict[str, Any]:
        words: dict[str, Any] = {**cond, **self.inputs.fixed}
        if self.inputs.added:
            words["added_cond_kwargs"] = {key: words.pop(key) for key in self.inputs.added}
        return words


def row(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Make one row without data."""
    return torch.empty(1, *shape, dtype=dtype, device="meta")


def _square(config: Any) -> tuple[int, ...]:
    size = config.sample_size
    return (config.in_channels, *((size, size) if isinstance(size, int) else size))


def _unet(networks: Networks, config: Any) -> Inputs:
    texts: Any = networks["text_encoder"].config
    width = config.cross_attention_dim
    cond = {"encoder_hidden_states": row(texts.max_position_embeddings, width)}
    if config.addition_embed_type != "text_time":
        return Inputs(_square(config), cond=cond)
    # The six sizes are original, crop and target, each embedded separately.
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    added = {"text_embeds": row(pooled), "time_ids": row(6)}
    return Inputs(_square(config), cond={**cond, **added}, added=tuple(added))


def _labels(networks: Networks, config: Any) -> Inputs:
    return Inputs(_square(config), cond={"class_labels": row(dtype=torch.int64)})


def _pixels(networks: Networks, config: Any) -> Inputs:
    return _labels(networks, config) if config.num_class_embeds else Inputs(_square(config))


def _sd3(networks: Networks, config: Any) -> Inputs:
    # CLIP gives 77 tokens, T5 256.
    states = row(77 + 256, config.joint_attention_dim)
    pooled = row(config.pooled_projection_dim)
    return Inputs(
        _square(config), cond={"encoder_hidden_states": states, "pooled_projections": pooled}
    )


def _flux(networks: Networks, config: Any) -> Inputs:
    # 1024 pixels, 8 to a latent, 2x2 latents to a token; T5 gives 512 tokens.
    tokens, texts = (1024 // 16) ** 2, 512
    cond = {
        "encoder_hidden_states": row(texts, config.joint_attention_dim),
        "pooled_projections": row(config.pooled_projection_dim),
    }
    if config.guidance_embeds:
        cond["guidance"] = row()
    fixed = {"img_ids": row(tokens, 3)[0], "txt_ids": row(texts, 3)[0]}
    latent = (config.in_channels // 4, 1024 // 8, 1024 // 8)
    return Inputs((tokens, config.in_channels), latent, cond, fixed=fixed)


def _pixart(networks: Networks, config: Any) -> Inputs:
    # PixArt-alpha reads 120 tokens; Sigma, whose VAE scales latents as SDXL's, reads 300.
    vae: Any = networks["vae"].config
    length = 300 if vae.scaling_factor == SIGMA_SCALING else 120
    cond = {"encoder_hidden_states": row(length, config.caption_channels)}
    if not config.use_additional_conditions:
        return Inputs(_square(config), cond=cond)
    added = {"resolution": row(2), "aspect_ratio": row(1)}
    return Inputs(_square(config), cond={**cond, **added}, added=tuple(added))


SIGMA_SCALING = 0.13025


def _sana(networks: Networks, config: Any) -> Inputs:
    return Inputs(
        _square(config), cond={"encoder_hidden_states": row(300, config.caption_channels)}
    )


def _wan(networks: Networks, config: Any) -> Inputs:
    # 81 frames of 480 x 832, 4 x 8 x 8 to a latent; UMT5 gives 512 tokens.
    sample = (config.in_channels, 21, 60, 104)
    return Inputs(sample, cond={"encoder_hidden_states": row(512, config.text_dim)})


KINDS: dict[str, Callable[[Networks, Any], Inputs]] = {
    "DiTTransformer2DModel": _labels,
    "FluxTransformer2DModel": _flux,
    "PixArtTransformer2DModel": _pixart,
    "SD3Transformer2DModel": _sd3,
    "SanaTransformer2DModel": _sana,
    "UNet2DConditionModel": _unet,
    "UNet2DModel": _pixels,
    "WanTransformer3DModel": _wan,
}
"""Denoiser class -> function (the pipeline's networks, its config) -> its inputs."""


def inputs_of(networks: Networks) -> tuple[str, Inputs]:
    """Return the name of a pipeline's denoiser and its inputs.

    Raises:
        ValueError: If there is no denoiser, or its class has no row in `KINDS`.
    """
    name = next((name for name in CORES if name in networks), None)
    if name is None:
        raise ValueError(
            f"no denoiser among {', '.join(networks) or 'no networks'}; "
            f"one of {', '.join(CORES)} expected"
        )
    core: Any = networks[name]
    kind = type(core).__name__
    if kind not in KINDS:
        raise unknown("kind of denoiser", kind, KINDS)
    return name, KINDS[kind](networks, core.config)
