"""From x0 to pictures, as each family's pipeline decodes; and decoders in the place of its own."""

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
from edgedistill.teachers.loading import BROKEN, reason, whole_weights

__all__ = ["DECODERS", "Decoder", "channels_of", "decoder_class", "open_decoder", "shifted"]

DECODERS: dict[str, Any] = {
    kind.__name__: kind for kind in (AutoencoderTiny, DiffusionDecoder, PatchDecoder)
}
"""What may stand in the place of a teacher's autoencoder, by the class in its config.json."""

AUTOENCODERS = (
    AsymmetricAutoencoderKL,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLWan,
    *DECODERS.values(),
)
"""What a teacher's autoencoder may be: decoded by `vae.decode(z)` alone, with nothing random."""


class Decoder(nn.Module):
    """x0 (N, C, h, w) -> pictures (N, 3, H, W) in [-1, 1]; the latent scaling is inside.

    Args:
        vae: The autoencoder.
        scaling: From x0 to what it decodes.
    """

    def __init__(self, vae: Any, scaling: Scaling) -> None:
        super().__init__()
        self.vae, self.scaling = vae, scaling

    def forward(self, x0: Tensor) -> Tensor:
        result: Tensor = self.vae.decode(self.scaling(x0), return_dict=False)[0]
        return result


def shifted(config: Any) -> Scaling:
    """The scaling of a pipeline that reads `shift_factor`; many do not."""
    # Decoders in the place of an autoencoder know none.
    return Scaling(config.scaling_factor, getattr(config, "shift_factor", None) or 0.0)


def channels_of(vae: Any, path: str) -> int:
    """Channels of an autoencoder's latents.

    Args:
        vae: The pipeline's.
        path: For messages.

    Raises:
        ValueError: If it is none of `AUTOENCODERS`.
    """
    if not isinstance(vae, AUTOENCODERS):
        kinds = [kind.__name__ for kind in AUTOENCODERS]
        raise ValueError(f"{path}: vae: {unknown('autoencoder', type(vae).__name__, kinds)}")
    return int(vae.config.get("latent_channels") or vae.config["z_dim"])


def decoder_class(folder: str) -> Any:
    """The class of a decoder folder; ValueError for one that is not in `DECODERS`."""
    file = Path(folder) / "config.json"
    name = read_json(file).get("_class_name", "") if file.is_file() else "AutoencoderTiny"
    if name not in DECODERS:
        raise unknown("class", name, DECODERS)
    return DECODERS[name]


def open_decoder(folder: str, channels: int, name: str) -> Any:
    """The decoder in a folder, a Hub id or a run dir that made one.

    Args:
        folder: Its place.
        channels: Of the latents that it must read.
        name: Of the teacher, for messages.

    Raises:
        ValueError: If there is none, or it is for other latents.
    """
    if (Path(folder) / "decoder").is_dir():  # the run that made one
        folder = str(Path(folder) / "decoder")
    # A Hub id has one slash, and no folder of ours before it.
    hub = folder.count("/") == 1 and folder[0] not in "./" and not Path(folder).parent.is_dir()
    if not (Path(folder).is_dir() or hub):
        raise ValueError(f"no decoder folder at {folder!r}")
    diffusers_logging.set_verbosity_error()
    check_pickles(Path(folder))
    try:
        with whole_weights(folder):
            vae = decoder_class(folder).from_pretrained(folder, use_safetensors=True)
        check_finite(folder, vae.state_dict())
    except BROKEN as error:
        raise ValueError(f"cannot load decoder {folder!r}: {reason(error)}") from error
    found = vae.config.latent_channels
    if found != channels:
        raise ValueError(
            f"decoder {folder!r} is for latents of {found} channels, {name} has {channels}"
        )
    return vae.eval().requires_grad_(False)
