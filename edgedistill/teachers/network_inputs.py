"""Known inputs of a network that its family does not feed, by its configuration.

A network that was trained with an input, and is called without it, silently draws something else.
`proof.inputs` finds such inputs by running the pipeline; this table says at once what to do about
known ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
    WanTransformer3DModel,
)

from edgedistill.common.plugins import unknown

__all__ = ["NETWORKS", "Further", "check_network"]

IMAGES = "a network that reads pictures besides; name one for text alone"

CLASSES = "a network that reads classes or noise levels beside its text; name one without"


@dataclass(frozen=True)
class Further:
    """A configuration key that adds an input to a network.

    Attributes:
        plain: Values of the key that add no input.
        what: The input, and what to do about it.
    """

    plain: tuple[Any, ...]
    what: str


_UNET = {
    "time_cond_proj_dim": Further(
        (None,),
        "a network that reads its guidance scale, as LCMs do: it is a student already; "
        "`edgedistill adopt {path} --as lcm` takes it in",
    ),
    "class_embed_type": Further((None,), CLASSES),
    "num_class_embeds": Further((None,), CLASSES),
    "encoder_hid_dim_type": Further((None, "text_proj"), IMAGES),
}

NETWORKS: dict[str, tuple[Any, Mapping[str, Further]]] = {
    "stable_diffusion": (
        UNet2DConditionModel,
        {**_UNET, "addition_embed_type": Further((None,), "SDXL's conditions, or a picture's")},
    ),
    "sdxl": (
        UNet2DConditionModel,
        {
            **_UNET,
            "addition_embed_type": Further(
                ("text_time",), "other conditions than SDXL's text and size"
            ),
        },
    ),
    "sd3": (SD3Transformer2DModel, {}),
    "flux": (FluxTransformer2DModel, {}),
    "pixart": (PixArtTransformer2DModel, {}),
    "sana": (
        SanaTransformer2DModel,
        {
            "guidance_embeds": Further(
                (None, False), "a guidance scale, as SANA-Sprint does, which is a student already"
            )
        },
    ),
    "dit": (DiTTransformer2DModel, {}),
    "wan": (
        WanTransformer3DModel,
        {
            "image_dim": Further((None,), IMAGES),
            "added_kv_proj_dim": Further((None,), IMAGES),
        },
    ),
    "unet2d": (UNet2DModel, {}),
}
"""Network class and keys that may add inputs, by family."""

VARIANCES = ("dit", "pixart", "unet2d")
"""Families whose learned variance is left out."""

EXTRA = {
    ("stable_diffusion", 9): "an inpainting network reads a mask and a picture",
    ("sdxl", 9): "an inpainting network reads a mask and a picture",
    ("stable_diffusion", 8): "an instruct-pix2pix network reads a picture",
    ("sdxl", 8): "an instruct-pix2pix network reads a picture",
    ("stable_diffusion", 7): "an upscaler reads a picture",
    ("stable_diffusion", 5): "a depth network reads a depth map",
    ("flux", 32): "FLUX Canny and Depth read a picture",
    ("flux", 96): "FLUX Fill reads a mask and a picture",
    ("sd3", 33): "an inpainting network reads a mask and a picture",
    ("wan", 36): "Wan's image to video reads a picture",
    ("wan", 32): "Wan's image to video reads a picture",
}
"""Further inputs after x, by family and number of the network's input channels."""


def check_network(family: str, core: Any, channels: int, own: int | None, path: str) -> None:
    """Refuse a network that reads inputs that its family does not feed.

    Args:
        family: A key of `NETWORKS`; others are not checked.
        core: The network.
        channels: Number of channels of x, as the network reads it.
        own: Number of channels of the autoencoder's latents; None where x is the data itself.
        path: The teacher's path, for messages.

    Raises:
        ValueError: If it does; names the class or the key of its configuration, and what to do.
    """
    if family not in NETWORKS:
        return
    kind, table = NETWORKS[family]
    if not isinstance(core, kind):
        raise ValueError(f"{path}: {unknown('network', type(core).__name__, [kind.__name__])}")
    for key, further in table.items():
        value = core.config.get(key)
        if value not in further.plain:
            raise ValueError(
                f"{path}: its {kind.__name__} has {key}={value}, an input that {family} teachers "
                f"do not feed: {further.what.format(path=path)}"
            )
    into, out = core.config.in_channels, core.config.get("out_channels")
    # Channels of a learned variance follow the prediction.
    if out not in (None, into, 2 * into if family in VARIANCES else into):
        raise ValueError(
            f"{path}: its {kind.__name__} reads {into} channels and returns {out}; as many "
            "expected"
        )
    if own is not None and channels != own:
        more = EXTRA.get((family, channels), "one for text alone has as many of both")
        raise ValueError(
            f"{path}: its network reads {channels} channels and its vae makes {own}: {more}, "
            "which is not fed here; name a text-to-image teacher"
        )
