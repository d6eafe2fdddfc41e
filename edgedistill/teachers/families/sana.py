"""SANA: any folder or Hub id in SanaPipeline's layout.

Xie et al. 2024 (arXiv 2410.10629): a rectified flow in the latents of a deep-compression
autoencoder, by a transformer with linear attention that reads Gemma's tokens under a mask.

The pipeline puts an instruction to enhance the prompt before it unless
`complex_human_instruction=None`. It is left out here, as it costs the text encoder more than the
prompt does. The prompt is lowercased and stripped as in the pipeline.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.teachers.families.pixart import MaskedEncoder, bias, lowercase
from edgedistill.teachers.flow import flow_schedule, flow_schedulers
from edgedistill.teachers.pipeline import PipelineTeacher
from edgedistill.teachers.schedulers import FLOWS

__all__ = ["Sana"]

LENGTH = 300
"""Number of tokens of a prompt, the pipeline's default."""


class SanaNet(nn.Module):
    """A SanaTransformer2DModel called as net(x, t, encoder_hidden_states, encoder_attention_mask).

    Args:
        transformer: The network.
        timestep_scale: Factor on the network's time.
    """

    def __init__(self, transformer: nn.Module, timestep_scale: float) -> None:
        super().__init__()
        self.transformer = transformer
        self.timestep_scale = timestep_scale

    def forward(
        self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor
    ) -> Tensor:
        result: Tensor = self.transformer(
            x,
            timestep=t * self.timestep_scale,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=bias(encoder_attention_mask, x),
            return_dict=False,
        )[0]
        return result


class Sana(PipelineTeacher):
    """A teacher in SanaPipeline's layout."""

    family = "sana"
    pipelines = ("SanaPipeline",)
    kinds = (FLOWS,)
    core = "transformer"
    tap = "transformer.norm_out"
    time_layer = "transformer.time_embed.emb.timestep_embedder.linear_2"
    masks = {"tokenizer": "attention_mask"}  # noqa: RUF012
    conditions = ("encoder_hidden_states", "encoder_attention_mask")
    usage = PipelineTeacher.usage.replace(
        "guidance_scale=1.0)", "guidance_scale=1.0,\n             complex_human_instruction=None)"
    )

    @classmethod
    def open(cls, name: str, index: dict[str, Any], where: str) -> Any:
        pipeline = super().open(name, index, where)
        lowercase(pipeline.tokenizer)
        pipeline.tokenizer.padding_side = "right"
        return pipeline

    def parametrization(self) -> tuple[Schedule, Prediction]:
        scheduler = self.pipeline.scheduler
        _, height, width = self.shape()
        patch = self.pipeline.transformer.config.patch_size
        tokens = (height // patch) * (width // patch)
        return flow_schedule(scheduler, tokens, self.path), Prediction.FLOW

    def as_denoiser(self, core: nn.Module) -> SanaNet:
        return SanaNet(core, self.pipeline.transformer.config.timestep_scale)

    def encoder(self) -> MaskedEncoder:
        return MaskedEncoder(self.pipeline.text_encoder)

    def longest(self, tokenizer: str) -> int | None:
        return LENGTH

    def schedulers(self, table: TorchStepTable) -> Iterator[Any]:
        return flow_schedulers(self.pipeline.scheduler.config.num_train_timesteps, table)
