"""Stable Diffusion 3 and 3.5: any folder or Hub id in StableDiffusion3Pipeline's layout.

Esser et al. 2024 (arXiv 2403.03206): a rectified flow with shifted times and a transformer over
picture and text tokens. The text tokens are those of two CLIP encoders side by side, padded to
T5's width, followed by T5's; where T5 is left out, zeros replace its tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.networks.scaling import Scaling
from edgedistill.teachers.decoders import shifted
from edgedistill.teachers.flow import flow_schedule, flow_schedulers
from edgedistill.teachers.pipeline import PipelineTeacher
from edgedistill.teachers.schedulers import FLOWS

__all__ = ["StableDiffusion3"]

T5_LENGTH = 256
"""Number of T5 tokens of a prompt, the pipeline's default."""


class SD3Net(nn.Module):
    """A SD3Transformer2DModel called as net(x, t, encoder_hidden_states, pooled_projections)."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, pooled_projections: Tensor
    ) -> Tensor:
        result: Tensor = self.transformer(
            hidden_states=x,
            timestep=t,
            encoder_hidden_states=encoder_hidden_states,
            pooled_projections=pooled_projections,
            return_dict=False,
        )[0]
        return result


class SD3TextEncoders(nn.Module):
    """Text encoders: two CLIP encoders, and T5 or zeros in its place.

    They map input_ids, input_ids_2 (N, L), input_ids_3 (N, L3) -> encoder_hidden_states (N, L +
    L3, width), pooled_projections (N, D1 + D2).

    Args:
        first: A CLIP encoder with projection.
        second: Another CLIP encoder with projection.
        third: T5, or None.
        width: Width of the text tokens that the network reads.
    """

    def __init__(self, first: Any, second: Any, third: Any, width: int) -> None:
        super().__init__()
        self.first, self.second, self.third, self.width = first, second, third, width

    def forward(
        self, input_ids: Tensor, input_ids_2: Tensor, input_ids_3: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        one = self.first(input_ids, output_hidden_states=True)
        two = self.second(input_ids_2, output_hidden_states=True)
        states = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], -1)
        states = F.pad(states, (0, self.width - states.shape[-1]))
        if self.third is None:
            states = F.pad(states, (0, 0, 0, T5_LENGTH))
        else:
            states = torch.cat([states, self.third(input_ids_3).last_hidden_state], 1)
        return states, torch.cat([one.text_embeds, two.text_embeds], -1)


class StableDiffusion3(PipelineTeacher):
    """A teacher in StableDiffusion3Pipeline's layout, with its third text encoder or without."""

    family = "sd3"
    pipelines = ("StableDiffusion3Pipeline",)
    kinds = (FLOWS,)
    core = "transformer"
    tap = "transformer.norm_out"
    time_layer = "transformer.time_text_embed.timestep_embedder.linear_2"
    conditions = ("encoder_hidden_states", "pooled_projections")

    def __init__(self, name: str, path: str, pipeline: Any) -> None:
        self.tokenizers = {"tokenizer": "input_ids", "tokenizer_2": "input_ids_2"}
        if pipeline.text_encoder_3 is None:
            absent = "FOLDER, text_encoder_3=None, tokenizer_3=None"
            self.usage = PipelineTeacher.usage.replace("FOLDER", absent)
        else:
            self.tokenizers["tokenizer_3"] = "input_ids_3"
        super().__init__(name, path, pipeline)

    def parametrization(self) -> tuple[Schedule, Prediction]:
        _, height, width = self.shape()
        patch = self.pipeline.transformer.config.patch_size
        tokens = (height // patch) * (width // patch)
        return flow_schedule(self.pipeline.scheduler, tokens, self.path), Prediction.FLOW

    @classmethod
    def scaling_of(cls, config: Any) -> Scaling:
        return shifted(config)

    def as_denoiser(self, core: nn.Module) -> SD3Net:
        return SD3Net(core)

    def encoder(self) -> SD3TextEncoders:
        parts, width = self.pipeline, self.pipeline.transformer.config.joint_attention_dim
        return SD3TextEncoders(
            parts.text_encoder, parts.text_encoder_2, parts.text_encoder_3, width
        )

    def longest(self, tokenizer: str) -> int | None:
        return T5_LENGTH if tokenizer == "tokenizer_3" else None

    @property
    def text_length(self) -> int:
        # Without T5 its pipeline pads with as many zeros.
        return self.length("tokenizer_3") if "tokenizer_3" in self.tokenizers else T5_LENGTH

    def schedulers(self, table: TorchStepTable) -> Iterator[Any]:
        return flow_schedulers(self.pipeline.scheduler.config.num_train_timesteps, table)
