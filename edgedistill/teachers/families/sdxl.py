"""Stable Diffusion XL: any folder or Hub id in StableDiffusionXLPipeline's layout.

Podell et al. 2023 (arXiv 2307.01952): two text encoders, the pooled output of the second, and the
picture's original size, crop and target size as additional conditions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.networks import unet_reuse
from edgedistill.networks.scaling import Scaling
from edgedistill.teachers.pipeline import PipelineTeacher
from edgedistill.teachers.schedulers import discrete_border
from edgedistill.teachers.student_schedulers import discrete_schedulers

__all__ = ["StableDiffusionXL"]


class SDXLNet(nn.Module):
    """A UNet2DConditionModel with SDXL's conditions; size and crop are those of a whole picture.

    Args:
        unet: The network.
        time_ids: (original height, width, crop top, left, target height, width) in pixels.
    """

    time_ids: Tensor

    def __init__(self, unet: nn.Module, time_ids: tuple[int, ...]) -> None:
        super().__init__()
        self.unet = unet
        values = torch.tensor([time_ids], dtype=torch.float32)
        self.register_buffer("time_ids", values, persistent=False)

    def forward(
        self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, text_embeds: Tensor
    ) -> Tensor:
        words = self._words(encoder_hidden_states, text_embeds)
        result: Tensor = self.unet(x, t, **words, return_dict=False)[0]
        return result

    @property
    def outer_layers(self) -> int:
        """Number of layers of the last up block."""
        return unet_reuse.outer_layers(self.unet)

    def full(
        self,
        x: Tensor,
        t: Tensor,
        layers: int | None,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the output, and the deep state (see `diffusion.reuse.Reusing`)."""
        words = self._words(encoder_hidden_states, text_embeds)
        return unet_reuse.full(self.unet, x, t, layers, **words)

    def shallow(
        self,
        x: Tensor,
        t: Tensor,
        deep: Tensor,
        layers: int | None,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor,
    ) -> Tensor:
        """Return the output of the outer layers on a deep state."""
        words = self._words(encoder_hidden_states, text_embeds)
        return unet_reuse.shallow(self.unet, x, t, deep, layers, **words)

    def _words(self, encoder_hidden_states: Tensor, text_embeds: Tensor) -> dict[str, Any]:
        time_ids = self.time_ids.expand(text_embeds.shape[0], -1)
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        return {"encoder_hidden_states": encoder_hidden_states, "added_cond_kwargs": added}


class SDXLTextEncoders(nn.Module):
    """Text encoders: two CLIP encoders' last but one layers, and the second's pooled output.

    They map input_ids, input_ids_2 (N, L) -> encoder_hidden_states (N, L, D1 + D2), text_embeds
    (N, D2).
    """

    def __init__(self, first: Any, second: Any) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, input_ids: Tensor, input_ids_2: Tensor) -> tuple[Tensor, Tensor]:
        one = self.first(input_ids, output_hidden_states=True).hidden_states[-2]
        two = self.second(input_ids_2, output_hidden_states=True)
        return torch.cat([one, two.hidden_states[-2]], -1), two.text_embeds


class StableDiffusionXL(PipelineTeacher):
    """A teacher in StableDiffusionXLPipeline's layout."""

    family = "sdxl"
    pipelines = ("StableDiffusionXLPipeline",)
    tap = "unet.mid_block"
    time_layer = "unet.time_embedding.linear_2"
    reuses = True
    strides = True
    tokenizers = {"tokenizer": "input_ids", "tokenizer_2": "input_ids_2"}  # noqa: RUF012
    conditions = ("encoder_hidden_states", "text_embeds")

    def parametrization(self) -> tuple[Schedule, Prediction]:
        return discrete_border(self.pipeline.scheduler, self.path)

    @classmethod
    def scaling_of(cls, config: Any) -> Scaling:
        mean, deviation = (getattr(config, f"latents_{name}", None) for name in ("mean", "std"))
        if mean is None or deviation is None:  # the pipeline uses both or neither
            return Scaling(config.scaling_factor)
        return Scaling(config.scaling_factor, mean, deviation)

    def as_denoiser(self, core: nn.Module) -> SDXLNet:
        height, width = (size * self.pipeline.vae_scale_factor for size in self.shape()[1:])
        return SDXLNet(core, (height, width, 0, 0, height, width))

    def encoder(self) -> SDXLTextEncoders:
        return SDXLTextEncoders(self.pipeline.text_encoder, self.pipeline.text_encoder_2)

    def schedulers(self, table: TorchStepTable) -> Iterator[Any]:
        return discrete_schedulers(self.pipeline.scheduler, table)

    def null(self) -> dict[str, Tensor]:
        """Return zeros where the pipeline says so (SDXL base), else the encoded empty prompt."""
        empty = self.encode([""])
        if not self.pipeline.config.force_zeros_for_empty_prompt:
            return empty
        return {name: torch.zeros_like(value) for name, value in empty.items()}
