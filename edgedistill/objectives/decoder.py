"""A small autoencoder in place of the teacher's: below four steps its decoder is the latency.

After TAESD (Boer Bohan 2023, github.com/madebyollin/taesd), whose architecture diffusers has as
AutoencoderTiny: convolutions of one width without attention or norms. Reconstruction, perceptual
and adversarial terms as the autoencoders of latent diffusion are trained (Esser et al. 2021,
arXiv 2012.09841, Eq. 5-7); the perceptual distance is taken in the teacher's own encoder.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderTiny
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from edgedistill.losses import gan_discriminator, gan_generator
from edgedistill.networks.taps import Taps
from edgedistill.objectives.base import Batch, Losses, Objective, Optim, Player, Settings, Setup
from edgedistill.objectives.shrink import feature_loss

__all__ = ["TinyDecoder"]


class TinyDecoder(Objective):
    """Pictures and latents of an AutoencoderTiny are those of the teacher's autoencoder."""

    class Config(Settings):
        """Architecture and weights (TAESD's: 64 channels, blocks 3, 3, 3, 1)."""

        channels: int = Field(64, ge=4)
        blocks: tuple[int, ...] = (3, 3, 3, 1)
        """Residual blocks at each resolution of the decoder, from the latent's to the picture's;
        each further entry doubles the size."""
        jitter: float = Field(0.0, ge=0)
        """Standard deviation of noise added to the latents, for students that land near them."""
        encode: float = Field(0.1, ge=0)
        """Weight of the encoder's loss, which shares nothing with the decoder's."""
        perceptual: float = Field(0.1, ge=0)
        """Weight of the distance of features in the first blocks of the teacher's encoder."""
        adversarial: float = Field(0.0, ge=0)
        """Weight of the discriminator's opinion; 0 builds none."""
        adversarial_start: int = Field(0, ge=0)
        """Step from which on it counts."""
        discriminator: Optim = Optim(betas=(0.5, 0.9))

        @field_validator("blocks")
        @classmethod
        def _counts(cls, blocks: tuple[int, ...]) -> tuple[int, ...]:
            if len(blocks) < 2 or min(blocks) < 0:
                raise ValueError("two or more counts, none below 0")
            return blocks

    name = "decoder"
    product = "decoder"

    def __init__(self, config: TinyDecoder.Config, setup: Setup) -> None:
        if setup.autoencoder is None:
            raise ValueError("method 'decoder' needs a teacher with an autoencoder")
        self.config, self.optim = config, setup.optim
        example = setup.example[0]
        self.vae = setup.autoencoder.to(example.device)  # where offloading left it elsewhere
        factor = self._picture(example).shape[-1] // example.shape[-1]
        stages = len(config.blocks)
        if 2 ** (stages - 1) != factor:
            raise ValueError(
                f"blocks={config.blocks}: {stages} resolutions enlarge by {2 ** (stages - 1)}, "
                f"the teacher's decoder by {factor}"
            )
        self.student = AutoencoderTiny(
            latent_channels=example.shape[1],
            encoder_block_out_channels=(config.channels,) * stages,
            decoder_block_out_channels=(config.channels,) * stages,
            num_encoder_blocks=(1,) * stages,
            num_decoder_blocks=config.blocks,
        ).to(example.device)
        self.taps: Taps | None = None
        if config.perceptual > 0:
            encoder: Any = self.vae.encoder
            paths = [
                "conv_in",
                *(f"down_blocks.{i}" for i in range(len(encoder.down_blocks) // 2)),
            ]
            self.taps = Taps(encoder, paths)
        self.judge = _judge(config.channels).to(example.device)

    def players(self) -> list[Player]:
        config = self.config
        student = Player("student", self.student, self.optim)
        if not config.adversarial:
            return [student]
        start = config.adversarial_start
        judge = Player("discriminator", self.judge, config.discriminator, start=start)
        return [judge, student]

    def loss(self, player: str, batch: Batch) -> Losses:
        x0 = batch.x0 + self.config.jitter * batch.noise()
        with torch.no_grad():
            truth = self._picture(x0)
        if player == "discriminator":
            with torch.no_grad():
                found = self._decode(x0)
            loss = gan_discriminator(self.judge(truth), self.judge(found))
            return Losses(loss)
        return self._student(x0, truth, batch.step)

    def _student(self, x0: Tensor, truth: Tensor, step: int) -> Losses:
        config, found = self.config, self._decode(x0)
        square = F.mse_loss(found, truth)
        total = square + F.l1_loss(found, truth)
        # The peak of pictures in [-1, 1] is 2.
        logs = {"psnr": 10 * (4 / square.detach()).log10()}
        if self.taps is not None:
            perceptual = feature_loss(self._features(found), self._features(truth, frozen=True))
            total = total + config.perceptual * perceptual
            logs["perceptual"] = perceptual.detach()
        if config.adversarial and step >= config.adversarial_start:
            adversarial = gan_generator(self.judge(found))
            total = total + config.adversarial * adversarial
            logs["adversarial"] = adversarial.detach()
        if config.encode:
            latents = self.student.encode(truth, return_dict=False)[0]
            encode = F.mse_loss(latents, x0)
            total = total + config.encode * encode
            logs["encode"] = encode.detach()
        return Losses(total, logs)

    def _features(self, picture: Tensor, *, frozen: bool = False) -> list[Tensor]:
        assert self.taps is not None
        encoder: Any = self.vae.encoder
        with torch.set_grad_enabled(not frozen), self.taps:
            encoder(picture)
        return self.taps.take()

    def _decode(self, x0: Tensor) -> Tensor:
        picture: Tensor = self.student.decode(x0, return_dict=False)[0]
        return picture

    def _picture(self, x0: Tensor) -> Tensor:
        """What the teacher makes of scaled latents."""
        vae: Any = self.vae
        latents = x0 / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        picture: Tensor = vae.decode(latents, return_dict=False)[0]
        return picture


def _judge(channels: int) -> nn.Module:
    """Logits on overlapping patches (Isola et al. 2017, arXiv 1611.07004, Sec. 3.2.2)."""
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
    for k in range(2):
        wide = channels * 2**k
        layers += [nn.Conv2d(wide, 2 * wide, 4, 2, 1), nn.GroupNorm(4, 2 * wide)]
        layers.append(nn.LeakyReLU(0.2))
    return nn.Sequential(*layers, nn.Conv2d(4 * channels, 1, 3, 1, 1))
