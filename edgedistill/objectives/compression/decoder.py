"""A small decoder in place of the teacher's, which dominates the latency below four steps.

The decoder is that of TAESD (Boer Bohan 2023, github.com/madebyollin/taesd), whose architecture
diffusers has as AutoencoderTiny: convolutions of one width without attention or norms. Or it is a
`PatchDecoder`, which has more weights for the same time, and no encoder. It is trained by
reconstruction, perceptual and adversarial terms, as the autoencoders of latent diffusion (Esser et
al. 2021, arXiv 2012.09841, Eq. 5-7); the perceptual distance is taken in the teacher's own
encoder.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from itertools import permutations, product
from typing import Annotated, Any, Literal, TypeAlias

import torch
from diffusers import AutoencoderTiny
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from edgedistill.common.settings import renamed
from edgedistill.diffusion.losses import gan_discriminator, gan_generator
from edgedistill.networks.patch_decoder import PatchDecoder
from edgedistill.networks.scaling import latents_of, picture_of
from edgedistill.networks.taps import Taps
from edgedistill.objectives.base import Batch, Losses, Objective, Optim, Player, Settings, Setup
from edgedistill.objectives.compression.shrink import feature_loss

__all__ = ["Decoding", "Depth", "TinyDecoder", "Width", "psnr"]

REMEMBERED = 2**29
"""Largest size in bytes of the teacher's pictures that are kept."""


Width: TypeAlias = Annotated[int, Field(ge=0, le=4096)]
"""Number of channels at a resolution."""

Depth: TypeAlias = Annotated[int, Field(ge=0, le=64)]
"""Number of blocks at a resolution."""


def _varied(picture: Tensor, dims: tuple[int, ...], order: tuple[int, ...]) -> Tensor:
    return picture[:, list(order)].flip(dims)


VARIANTS: tuple[Callable[[Tensor], Tensor], ...] = tuple(
    partial(_varied, dims=dims, order=order)
    for dims, order in product(((), (3,), (2,), (2, 3)), permutations(range(3)))
)[1:]
"""Augmentations of a picture, (N, 3, H, W) both: flipped, with exchanged colours, or both."""


class Decoding(Objective):
    """Base class of methods that train a network in place of the teacher's decoder."""

    class Config(Settings):
        """Architecture, training data and losses."""

        old_keys = renamed(augment="augment_share", perceptual="perceptual_weight")

        channels: Width | tuple[Width, ...] = 64
        """Channels. One number makes an AutoencoderTiny; a number for each resolution, the last
        ones 0 where pixels are unfolded at once, makes a PatchDecoder."""
        blocks: tuple[Depth, ...] = (3, 3, 3, 1)
        """Residual blocks at each resolution of the decoder; each resolution is twice the one
        before, and the last is the picture's. A PatchDecoder may begin below the latent's."""
        target: Literal["teacher", "originals"] = "teacher"
        """Target pictures: those of the teacher's decoder, or the originals that were encoded
        (`data.pictures`, or the teacher's own data)."""
        augment_share: float = Field(0.0, ge=0, le=1)
        """Share of a batch whose pictures are flipped, get exchanged colours, or both, and are
        encoded again, which gives new latents."""
        jitter: float = Field(0.0, ge=0)
        """Standard deviation of noise added to the latents, whose target pictures stay the same,
        for students that only come near clean latents."""
        perceptual_weight: float = Field(0.1, ge=0)
        """Weight of the distance of features in the first blocks of the teacher's encoder."""

        @field_validator("blocks")
        @classmethod
        def _counts(cls, blocks: tuple[int, ...]) -> tuple[int, ...]:
            if len(blocks) < 2 or min(blocks) < 0:
                raise ValueError("two or more counts, none below 0")
            return blocks

        @field_validator("channels")
        @classmethod
        def _widths(cls, channels: int | tuple[int, ...]) -> int | tuple[int, ...]:
            if isinstance(channels, int) and channels < 4:
                raise ValueError("at least 4")
            return channels

    product = "decoder"
    compiles = False

    @classmethod
    def wants_originals(cls, config: Any) -> tuple[str, str] | None:
        return ("target=originals", "target=teacher") if config.target == "originals" else None

    def __init__(self, config: Decoding.Config, setup: Setup, *, below: bool = False) -> None:
        """Check `config`; `below` says whether levels below the latent's resolution are valid."""
        if setup.autoencoder is None:
            raise ValueError(f"method {self.name!r} needs a teacher with an autoencoder")
        self.augment, self.target = config.augment_share, config.target
        self.optim = setup.optim
        example = setup.example[0]
        self.vae = setup.autoencoder.to(example.device)  # offloading may have left it elsewhere
        self.scaling = copy.deepcopy(setup.scaling).to(example.device)
        self.shape = self._picture(example).shape[1:]
        factor = self.shape[-1] // example.shape[-1]
        stages = len(config.blocks)
        enlarged = 2 ** (stages - 1)
        if enlarged % factor or (enlarged != factor and not below):
            raise ValueError(
                f"blocks={config.blocks}: {stages} resolutions enlarge by {enlarged}, "
                f"the teacher's decoder by {factor}"
            )
        self.below = (enlarged // factor).bit_length() - 1
        self.made: dict[tuple[int, bytes], tuple[Tensor, Tensor]] = {}
        self.taps: Taps | None = None
        if config.perceptual_weight > 0:
            encoder: Any = self.vae.encoder
            paths = [
                "conv_in",
                *(f"down_blocks.{i}" for i in range(len(encoder.down_blocks) // 2)),
            ]
            self.taps = Taps(encoder, paths)

    def _features(self, picture: Tensor, *, frozen: bool = False) -> list[Tensor]:
        assert self.taps is not None
        encoder: Any = self.vae.encoder
        with torch.set_grad_enabled(not frozen), self.taps:
            encoder(picture)
        return self.taps.take()

    def _perceptual(self, found: Tensor, truth: Tensor) -> Tensor:
        """Return the distance of features of two pictures."""
        return feature_loss(self._features(found), self._features(truth, frozen=True))

    @torch.no_grad()
    def _pairs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return latents (N, ...) and their target pictures.

        Each pair is made once and kept while there is room, since it costs more than a step.
        """
        x0, count = batch.x0, round(self.augment * len(batch.x0))
        drawn = torch.randint(len(VARIANTS), (count,), generator=batch.generator)
        if x0.is_meta:  # when planning a run
            originals = x0.new_empty(len(x0), *self.shape)
            pictures = originals if self.target == "originals" else self._picture(x0)
            if count:
                self._encoded(VARIANTS[0](pictures[:count]))
            return x0, pictures
        found: dict[tuple[int, bytes], tuple[Tensor, Tensor]] = {}
        rows = [row.tobytes() for row in x0.float().cpu().numpy()]
        plain = [(-1, row) for row in rows]
        self._make(found, plain, lambda i: (x0[i], self._truth(x0[i], batch.originals, i)))
        varied = list(zip(drawn.tolist(), rows, strict=False))
        changed = [VARIANTS[kind](found[-1, row][1][None]) for kind, row in varied]
        self._make(found, varied, lambda i: self._encoded(torch.cat([changed[k] for k in i])))
        pairs = [found[key] for key in (*varied, *plain[count:])]
        return torch.stack([z for z, _ in pairs]), torch.stack([picture for _, picture in pairs])

    def _truth(self, x0: Tensor, originals: Tensor | None, rows: list[int]) -> Tensor:
        """Return the target pictures for latents of these rows of a batch."""
        if self.target == "teacher":
            return self._picture(x0)
        assert originals is not None
        return originals[rows]

    def _make(
        self,
        found: dict[tuple[int, bytes], tuple[Tensor, Tensor]],
        keys: list[tuple[int, bytes]],
        pairs: Callable[[list[int]], tuple[Tensor, Tensor]],
    ) -> None:
        """Look up every key, and make missing ones by one call of `pairs` on their indices."""
        found.update((key, self.made[key]) for key in keys if key in self.made)
        new = {key: i for i, key in enumerate(keys) if key not in found}
        if not new:
            return
        z, pictures = pairs(list(new.values()))
        for key, latent, picture in zip(new, z, pictures, strict=True):
            found[key] = latent, picture
            if len(self.made) * picture.nbytes < REMEMBERED:
                self.made[key] = latent.clone(), picture.clone()

    def _encoded(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Encode pictures by the teacher's encoder, and return the latents with their targets."""
        pictures = pictures.clamp(-1, 1)
        z = latents_of(self.vae, self.scaling, pictures)
        return z, pictures if self.target == "originals" else self._picture(z)

    def _picture(self, x0: Tensor) -> Tensor:
        return picture_of(self.vae, self.scaling, x0)


class TinyDecoder(Decoding):
    """A small network whose pictures (and latents) are trained to be the teacher autoencoder's."""

    class Config(Decoding.Config):
        """Architecture and weights (TAESD's architecture: 64 channels, blocks 3, 3, 3, 1)."""

        old_keys = renamed(
            l1="l1_weight", encode="encode_weight", adversarial="adversarial_weight"
        )

        expansion: int = Field(0, ge=0, le=64)
        """Widening of a PatchDecoder's blocks: 0 for two 3 x 3 convolutions; else 3 x 3 to this
        many times the channels, and 1 x 1 back."""
        last_channels: int = Field(0, ge=0, le=8_192)
        """Channels of a PatchDecoder's layer before the one that unfolds pixels; 0 for none."""
        l1_weight: float = Field(1.0, ge=0)
        """Weight of the mean absolute error; that of the squared error is 1."""
        encode_weight: float = Field(0.1, ge=0)
        """Weight of the encoder's loss, if there is an encoder; it shares nothing with the
        decoder."""
        adversarial_weight: float = Field(0.0, ge=0)
        """Weight of the adversarial loss; 0 builds no discriminator."""
        adversarial_start: int = Field(0, ge=0)
        """Step from which on the adversarial loss is used."""
        discriminator: Optim = Optim(betas=(0.5, 0.9))

    name = "decoder"

    def __init__(self, config: TinyDecoder.Config, setup: Setup) -> None:
        super().__init__(config, setup, below=not isinstance(config.channels, int))
        self.config = config
        example = setup.example[0]
        self.student = _network(config, example.shape[1], self.below).to(example.device)
        first = config.channels if isinstance(config.channels, int) else config.channels[0]
        self.discriminator = _discriminator(min(first, 64)).to(example.device)

    def players(self) -> list[Player]:
        config = self.config
        student = Player("student", self.student, self.optim)
        if not config.adversarial_weight:
            return [student]
        start = config.adversarial_start
        discriminator = Player(
            "discriminator", self.discriminator, config.discriminator, start=start
        )
        return [discriminator, student]

    def loss(self, player: str, batch: Batch) -> Losses:
        clean, truth = self._pairs(batch)
        x0 = clean + self.config.jitter * batch.noise()
        if player == "discriminator":
            with torch.no_grad():
                found = self._decode(x0)
            loss = gan_discriminator(self.discriminator(truth), self.discriminator(found))
            return Losses(loss)
        return self._student(x0, clean, truth, batch.step)

    def _student(self, x0: Tensor, clean: Tensor, truth: Tensor, step: int) -> Losses:
        config, found = self.config, self._decode(x0)
        square = F.mse_loss(found, truth)
        total = square + config.l1_weight * F.l1_loss(found, truth)
        logs = {"psnr": psnr(square)}
        if self.taps is not None:
            perceptual = self._perceptual(found, truth)
            total = total + config.perceptual_weight * perceptual
            logs["perceptual"] = perceptual.detach()
        if config.adversarial_weight and step >= config.adversarial_start:
            adversarial = gan_generator(self.discriminator(found))
            total = total + config.adversarial_weight * adversarial
            logs["adversarial"] = adversarial.detach()
        if config.encode_weight and isinstance(self.student, AutoencoderTiny):
            latents = self.student.encode(truth, return_dict=False)[0]
            encode = F.mse_loss(latents, clean)
            total = total + config.encode_weight * encode
            logs["encode"] = encode.detach()
        return Losses(total, logs)

    def _decode(self, x0: Tensor) -> Tensor:
        picture: Tensor = self.student.decode(x0, return_dict=False)[0]
        return picture


def psnr(square: Tensor) -> Tensor:
    """Return the PSNR in dB of a mean squared error of pictures in [-1, 1], whose peak is 2."""
    return 10 * (4 / square.detach()).log10()


def _network(
    config: TinyDecoder.Config, latent_channels: int, below: int
) -> AutoencoderTiny | PatchDecoder:
    if not isinstance(config.channels, int):
        return PatchDecoder(
            latent_channels,
            config.channels,
            config.blocks,
            below,
            expansion=config.expansion,
            last_channels=config.last_channels,
        )
    widths = (config.channels,) * len(config.blocks)
    return AutoencoderTiny(
        latent_channels=latent_channels,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=(1,) * len(config.blocks),
        num_decoder_blocks=config.blocks,
    )


def _discriminator(channels: int) -> nn.Module:
    """Make a discriminator with logits on overlapping patches.

    Isola et al. 2017 (arXiv 1611.07004), Sec. 3.2.2.
    """
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
    for k in range(2):
        wide = channels * 2**k
        layers += [nn.Conv2d(wide, 2 * wide, 4, 2, 1), nn.GroupNorm(4, 2 * wide)]
        layers.append(nn.LeakyReLU(0.2))
    return nn.Sequential(*layers, nn.Conv2d(4 * channels, 1, 3, 1, 1))
