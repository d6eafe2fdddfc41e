"""Decoders from x0 to pictures, as in each family's pipeline, and their replacements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLWan,
    AutoencoderTiny,
)
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn

from edgedistill.common.files import read_json
from edgedistill.common.finite import check_finite
from edgedistill.common.pickles import check_pickles
from edgedistill.common.plugins import unknown
from edgedistill.networks.diffusion_decoder import DiffusionDecoder
from edgedistill.networks.patch_decoder import PatchDecoder
from edgedistill.networks.scaling import Scaling
from edgedistill.teachers.hub import network_at
from edgedistill.teachers.loading import BROKEN, reason, whole_weights

__all__ = ["DECODERS", "Decoder", "channels_of", "decoder_class", "open_decoder", "shifted"]

DECODERS: dict[str, Any] = {
    kind.__name__: kind for kind in (AutoencoderTiny, DiffusionDecoder, PatchDecoder)
}
"""Decoder classes that may replace a teacher's autoencoder, by the class in its config.json."""

AUTOENCODERS = (
    AsymmetricAutoencoderKL,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLWan,
    *DECODERS.values(),
)
"""Allowed classes of a teacher's autoencoder: `vae.decode(z)` alone decodes, and is
deterministic."""


class Decoder(nn.Module):
    """A decoder of x0 (N, C, h, w) to pictures (N, 3, H, W) in [-1, 1], with latent scaling.

    Args:
        vae: The autoencoder.
        scaling: Scaling from x0 to the autoencoder's latents.
    """

    def __init__(self, vae: Any, scaling: Scaling) -> None:
        super().__init__()
        self.vae, self.scaling = vae, scaling

    def forward(self, x0: Tensor) -> Tensor:
        result: Tensor = self.vae.decode(self.scaling(x0), return_dict=False)[0]
        return result


def shifted(config: Any) -> Scaling:
    """Return the scaling of a pipeline that reads `shift_factor`; many do not."""
    # Replacement decoders have no shift_factor.
    return Scaling(config.scaling_factor, getattr(config, "shift_factor", None) or 0.0)


def channels_of(vae: Any, path: str) -> int:
    """Return the number of channels of an autoencoder's latents.

    Args:
        vae: The pipeline's autoencoder.
        path: The teacher's path, for messages.

    Raises:
        ValueError: If its class is not in `AUTOENCODERS`.
    """
    if not isinstance(vae, AUTOENCODERS):
        kinds = [kind.__name__ for kind in AUTOENCODERS]
        raise ValueError(f"{path}: vae: {unknown('autoencoder', type(vae).__name__, kinds)}")
    return int(vae.config.get("latent_channels") or vae.config["z_dim"])


def decoder_class(folder: str) -> Any:
    """Return the class of a decoder folder; ValueError for one that is not in `DECODERS`."""
    file = Path(folder) / "config.json"
    name = read_json(file).get("_class_name", "") if file.is_file() else "AutoencoderTiny"
    if name not in DECODERS:
        raise unknown("class", name, DECODERS)
    return DECODERS[name]


def open_decoder(folder: str, channels: int, name: str) -> Any:
    """Open the decoder in a folder, a Hub id or a run dir that made one.

    Args:
        folder: Place of the decoder.
        channels: Channels of the latents that it must read.
        name: Name of the teacher, for messages.

    Raises:
        ValueError: If there is no decoder, or it reads other latents.
    """
    if (Path(folder) / "decoder").is_dir():  # the run that made one
        folder = str(Path(folder) / "decoder")
    folder = network_at(folder)
    if not Path(folder).is_dir():
        raise ValueError(f"no decoder folder at {folder!r}")
    diffusers_logging.set_verbosity_error()
    check_pickles(Path(folder))
    try:
        with whole_weights(folder):
            vae = decoder_class(folder).from_pretrained(folder, use_safetensors=True)
        check_finite(folder, vae.state_dict())
    except BROKEN as error:
        raise ValueError(f"cannot load decoder {folder!r}: {reason(error, folder)}") from error
    found = vae.config.latent_channels
    if found != channels:
        raise ValueError(
            f"decoder {folder!r} is for latents of {found} channels, {name} has {channels}"
        )
    return vae.eval().requires_grad_(False)
