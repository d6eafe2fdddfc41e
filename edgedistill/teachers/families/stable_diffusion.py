"""Stable Diffusion 1.x and 2.x: any folder or Hub id in StableDiffusionPipeline's layout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.networks import unet_reuse
from edgedistill.teachers.pipeline import PipelineTeacher
from edgedistill.teachers.schedulers import discrete_border
from edgedistill.teachers.student_schedulers import discrete_schedulers

__all__ = ["StableDiffusion"]


class SDNet(nn.Module):
    """A UNet2DConditionModel called as net(x, t, encoder_hidden_states)."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        result: Tensor = self.unet(x, t, encoder_hidden_states, return_dict=False)[0]
        return result

    @property
    def outer_layers(self) -> int:
        """Number of layers of the last up block."""
        return unet_reuse.outer_layers(self.unet)

    def full(
        self, x: Tensor, t: Tensor, layers: int | None, encoder_hidden_states: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the output, and the deep state (see `diffusion.reuse.Reusing`)."""
        words = {"encoder_hidden_states": encoder_hidden_states}
        return unet_reuse.full(self.unet, x, t, layers, **words)

    def shallow(
        self, x: Tensor, t: Tensor, deep: Tensor, layers: int | None, encoder_hidden_states: Tensor
    ) -> Tensor:
        """Return the output of the outer layers on a deep state."""
        words = {"encoder_hidden_states": encoder_hidden_states}
        return unet_reuse.shallow(self.unet, x, t, deep, layers, **words)


class SDTextEncoder(nn.Module):
    """A text encoder: input_ids (N, L) -> encoder_hidden_states (N, L, D).

    It also reads attention_mask (N, L) if the encoder's config has `use_attention_mask`.
    """

    def __init__(self, text_encoder: Any) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        result: Tensor = self.text_encoder(
            input_ids, attention_mask=attention_mask
        ).last_hidden_state
        return result


class StableDiffusion(PipelineTeacher):
    """A teacher in StableDiffusionPipeline's layout, such as `emoji`."""

    family = "stable_diffusion"
    pipelines = ("StableDiffusionPipeline",)
    tap = "unet.mid_block"
    time_layer = "unet.time_embedding.linear_2"
    reuses = True
    strides = True

    unused = ("safety_checker",)
    options = {"requires_safety_checker": False}  # noqa: RUF012

    def __init__(self, name: str, path: str, pipeline: Any) -> None:
        if getattr(pipeline.text_encoder.config, "use_attention_mask", False):
            self.masks = {"tokenizer": "attention_mask"}
        super().__init__(name, path, pipeline)

    def parametrization(self) -> tuple[Schedule, Prediction]:
        return discrete_border(self.pipeline.scheduler, self.path)

    def as_denoiser(self, core: nn.Module) -> SDNet:
        return SDNet(core)

    def encoder(self) -> SDTextEncoder:
        return SDTextEncoder(self.pipeline.text_encoder)

    def schedulers(self, table: TorchStepTable) -> Iterator[Any]:
        return discrete_schedulers(self.pipeline.scheduler, table)
