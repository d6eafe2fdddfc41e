"""FLUX.1 dev and schnell: any folder or Hub id in FluxPipeline's layout.

Black Forest Labs 2024: a rectified flow in a transformer over 2x2 patches and T5's tokens, with
CLIP's pooled output. The pipeline uses trailing steps, which dev shifts by the picture's size. dev
was distilled from a guided teacher (Meng et al. 2022, arXiv 2210.03142) and reads the guidance
scale; schnell reads none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedistill.diffusion.denoiser import Denoiser, Guided
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.schedules import Rectified
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.networks.scaling import Scaling
from edgedistill.teachers.decoders import shifted
from edgedistill.teachers.flow import euler, flow_schedule, shift_asked
from edgedistill.teachers.pipeline import PipelineTeacher
from edgedistill.teachers.schedulers import FLOWS, setting

__all__ = ["Flux", "pack", "unpack"]

GUIDANCE = 3.5
"""Guidance scale that dev reads as teacher and student, the pipeline's default."""

LENGTHS = {True: 512, False: 256}
"""Number of T5 tokens of a prompt, by whether the network reads a guidance scale (dev) or not
(schnell)."""


def pack(x: Tensor) -> Tensor:
    """Pack latents (N, C, H, W) into tokens (N, H/2 W/2, 4 C), one for each 2x2 patch."""
    return F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Unpack tokens (N, H/2 W/2, 4 C) into latents (N, C, H, W)."""
    patches = tokens.transpose(1, 2)
    return F.pixel_shuffle(patches.reshape(*patches.shape[:2], height // 2, width // 2), 2)


class FluxNet(nn.Module):
    """A FluxTransformer2DModel called as net(x, t, encoder_hidden_states, pooled_projections).

    Args:
        transformer: The network.
        shape: Shape of a latent, with even sides.
        length: Number of text tokens.
        guidance: Guidance scale that it reads; None if it reads none.
    """

    img_ids: Tensor
    txt_ids: Tensor
    guidance: Tensor | None

    def __init__(
        self,
        transformer: nn.Module,
        shape: tuple[int, ...],
        length: int,
        guidance: float | None = None,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        rows, columns = torch.arange(shape[1] // 2), torch.arange(shape[2] // 2)
        places = torch.cartesian_prod(torch.zeros(1, dtype=rows.dtype), rows, columns)
        scale = None if guidance is None else torch.tensor([guidance])
        self.register_buffer("img_ids", places.float(), persistent=False)
        self.register_buffer("txt_ids", torch.zeros(length, 3), persistent=False)
        self.register_buffer("guidance", scale, persistent=False)

    def forward(
        self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, pooled_projections: Tensor
    ) -> Tensor:
        tokens: Tensor = self.transformer(
            hidden_states=pack(x),
            timestep=t / 1000,
            guidance=None if self.guidance is None else self.guidance.expand(x.shape[0]),
            encoder_hidden_states=encoder_hidden_states,
            pooled_projections=pooled_projections,
            txt_ids=self.txt_ids,
            img_ids=self.img_ids,
            return_dict=False,
        )[0]
        return unpack(tokens, x.shape[2], x.shape[3])


class FluxTextEncoders(nn.Module):
    """Text encoders of T5's tokens and CLIP's pooled output.

    They map input_ids (N, L), input_ids_2 (N, L2) -> encoder_hidden_states (N, L2, D2),
    pooled_projections (N, D).
    """

    def __init__(self, first: Any, second: Any) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, input_ids: Tensor, input_ids_2: Tensor) -> tuple[Tensor, Tensor]:
        return self.second(input_ids_2).last_hidden_state, self.first(input_ids).pooler_output


class Flux(PipelineTeacher):
    """A teacher in FluxPipeline's layout, dev or schnell."""

    family = "flux"
    pipelines = ("FluxPipeline",)
    kinds = (FLOWS,)
    core = "transformer"
    tap = "transformer.norm_out"
    time_layer = "transformer.time_text_embed.timestep_embedder.linear_2"
    tokenizers = {"tokenizer": "input_ids", "tokenizer_2": "input_ids_2"}  # noqa: RUF012
    conditions = ("encoder_hidden_states", "pooled_projections")

    def __init__(self, name: str, path: str, pipeline: Any) -> None:
        super().__init__(name, path, pipeline)
        arguments = f"max_sequence_length={self.length('tokenizer_2')}"
        if self.embeds:
            arguments = f"guidance_scale={GUIDANCE}, {arguments}"
        self.usage = PipelineTeacher.usage.replace("guidance_scale=1.0", arguments).replace(
            "Guidance is in the weights, so guidance_scale is 1:", "It was trained with these:"
        )

    @property
    def embeds(self) -> bool:
        """Whether the network reads a guidance scale."""
        return bool(self.pipeline.transformer.config.guidance_embeds)

    def shape(self) -> tuple[int, ...]:
        size = self.pipeline.vae.config.sample_size // self.pipeline.vae_scale_factor
        return (self.pipeline.transformer.config.in_channels // 4, size, size)

    def longest(self, tokenizer: str) -> int | None:
        return LENGTHS[self.embeds] if tokenizer == "tokenizer_2" else None

    def parametrization(self) -> tuple[Schedule, Prediction]:
        _, height, width = self.shape()
        tokens = (height // 2) * (width // 2)
        return flow_schedule(self.pipeline.scheduler, tokens, self.path), Prediction.FLOW

    @classmethod
    def scaling_of(cls, config: Any) -> Scaling:
        return shifted(config)

    def as_denoiser(self, core: nn.Module) -> FluxNet:
        return self._reading(core, GUIDANCE)

    def _reading(self, core: nn.Module, guidance: float) -> FluxNet:
        """Wrap `core`; the result reads `guidance` if the network reads any."""
        scale = guidance if self.embeds else None
        return FluxNet(core, self.shape(), self.length("tokenizer_2"), scale)

    def encoder(self) -> FluxTextEncoders:
        return FluxTextEncoders(self.pipeline.text_encoder, self.pipeline.text_encoder_2)

    def guided(self, scale: float) -> Denoiser | Guided:
        """Guide the network: dev reads the scale; schnell takes two calls (true_cfg_scale)."""
        if not self.embeds:
            return super().guided(scale)
        net = self._reading(self.net.get_submodule(self.core), scale)
        return self.denoiser.with_net(net.to(self.device))

    def asks(self, x0: Tensor, prompt: str) -> dict[str, Any] | None:
        given = super().asks(x0, prompt) or {}
        return {**given, "latents": pack(x0), "guidance_scale": GUIDANCE}

    def schedulers(self, table: TorchStepTable) -> Iterator[Any]:
        schedule = self.denoiser.schedule
        assert isinstance(schedule, Rectified)
        yield euler(schedule.num_timesteps, table, shift=schedule.shift)

    def set_own_steps(self, scheduler: Any, steps: int) -> None:
        asked = shift_asked(scheduler, self.denoiser.schedule)
        if setting(scheduler, "use_flow_sigmas"):
            scheduler.set_timesteps(steps, **asked)
        else:
            scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)], **asked)

    def set_steps(self, scheduler: Any, steps: int) -> None:
        scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
