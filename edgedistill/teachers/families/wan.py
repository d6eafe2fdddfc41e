"""Wan 2.1, text to video: any folder or Hub id in WanPipeline's layout.

Wan et al. 2025 (arXiv 2503.20314): a rectified flow in the latents (C, F, H, W) of a causal video
autoencoder, by a transformer that reads UMT5's tokens, with zeros after the last.

The network's config has no size. It is the pipeline's default (81 frames of 480 x 832) unless
transformer/config.json has `sample_size`: [frames, height, width] of a latent. A video is shown as
a sheet of its frames, left to right in rows.

The pipeline strips the prompt and joins repeated blanks; so does the tokenizer here. The pipeline
cleans it further (HTML entities, ftfy where that is installed), which is not done here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diffusers.models.embeddings import TimestepEmbedding
from tokenizers import Regex, normalizers
from torch import Tensor, nn

from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.networks.scaling import Scaling
from edgedistill.teachers.decoders import Decoder
from edgedistill.teachers.flow import flow_schedule, flow_schedulers
from edgedistill.teachers.pipeline import PipelineTeacher
from edgedistill.teachers.schedulers import FLOWS

__all__ = ["Wan", "sheet"]

LENGTH = 512
"""Number of tokens of a prompt, the pipeline's default."""

SIZE = (21, 60, 104)
"""Frames, height and width of a latent, the pipeline's default."""


class WanNet(nn.Module):
    """A WanTransformer3DModel called as net(x, t, encoder_hidden_states)."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        result: Tensor = self.transformer(x, t, encoder_hidden_states, return_dict=False)[0]
        return result


class TimeEmbedding(TimestepEmbedding):  # type: ignore[misc]
    """A time embedding that knows the dtype of its parameters even in a role of a shared base."""

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        own = list(super().parameters(recurse))
        return iter(own or [self.linear_1.weight])


class WanTextEncoder(nn.Module):
    """A text encoder with zeros after the last token.

    It maps input_ids, attention_mask (N, L) -> encoder_hidden_states (N, L, D).
    """

    def __init__(self, text_encoder: Any) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states: Tensor = self.text_encoder(
            input_ids, attention_mask=attention_mask
        ).last_hidden_state
        return states * attention_mask[..., None].to(states.dtype)


class VideoDecoder(Decoder):
    """A decoder of videos to sheets of their frames.

    It maps x0 (N, C, F, h, w) to pictures (N, 3, rows H, columns W) in [-1, 1] of 4 F - 3 frames.
    """

    def forward(self, x0: Tensor) -> Tensor:
        return sheet(super().forward(x0))


class Wan(PipelineTeacher):
    """A teacher in WanPipeline's layout with one transformer."""

    family = "wan"
    pipelines = ("WanPipeline",)
    kinds = (FLOWS,)
    core = "transformer"
    tap = "transformer.norm_out"
    time_layer = "transformer.condition_embedder.time_embedder.linear_2"
    masks = {"tokenizer": "attention_mask"}  # noqa: RUF012
    usage = """Guidance is in the weights, so guidance_scale is 1:

```python
from diffusers import DiffusionPipeline
from diffusers.utils import export_to_video

pipe = DiffusionPipeline.from_pretrained(FOLDER)
video = pipe(PROMPT, num_inference_steps={steps}, guidance_scale=1.0).frames[0]
export_to_video(video, "video.mp4", fps=16)
```"""

    def __init__(self, name: str, path: str, pipeline: Any) -> None:
        if pipeline.config.boundary_ratio is not None or pipeline.config.expand_timesteps:
            raise ValueError(
                f"{path}: Wan 2.2, of two transformers or a time a token; 2.1 expected"
            )
        super().__init__(name, path, pipeline)
        self.autoencoder = None  # no smaller decoder of videos exists here

    @classmethod
    def open(cls, name: str, index: dict[str, Any], where: str) -> Any:
        pipeline = super().open(name, index, where)
        backend = pipeline.tokenizer.backend_tokenizer
        own = [backend.normalizer] if backend.normalizer else []
        blanks = normalizers.Replace(Regex(r"\s+"), " ")
        backend.normalizer = normalizers.Sequence([blanks, normalizers.Strip(), *own])
        return pipeline

    def parametrization(self) -> tuple[Schedule, Prediction]:
        scheduler = self.pipeline.scheduler
        return flow_schedule(scheduler, 0, self.path), Prediction.FLOW

    def as_denoiser(self, core: nn.Module) -> WanNet:
        core.get_submodule("condition_embedder.time_embedder").__class__ = TimeEmbedding
        return WanNet(core)

    def encoder(self) -> WanTextEncoder:
        return WanTextEncoder(self.pipeline.text_encoder)

    @classmethod
    def scaling_of(cls, config: Any) -> Scaling:
        return Scaling(1.0, config.latents_mean, config.latents_std, 3)

    def decoder_of(self, autoencoder: Any) -> VideoDecoder:
        return VideoDecoder(autoencoder, self.scaling_of(autoencoder.config))

    def shape(self) -> tuple[int, ...]:
        config = self.pipeline.transformer.config
        return (config.in_channels, *getattr(config, "sample_size", SIZE))

    def longest(self, tokenizer: str) -> int | None:
        return LENGTH

    def asks(self, x0: Tensor, prompt: str) -> dict[str, Any] | None:
        pipeline, (_, _, frames, height, width) = self.pipeline, x0.shape
        side = pipeline.vae_scale_factor_spatial
        return {
            "prompt": [prompt],
            "guidance_scale": 2.0,
            "latents": x0,
            "num_frames": (frames - 1) * pipeline.vae_scale_factor_temporal + 1,
            "height": height * side,
            "width": width * side,
            "max_sequence_length": self.text_length,
        }

    def schedulers(self, table: TorchStepTable) -> Iterator[Any]:
        return flow_schedulers(self.pipeline.scheduler.config.num_train_timesteps, table)


def sheet(video: Tensor) -> Tensor:
    """Arrange frames of videos (N, C, F, H, W) as pictures (N, C, rows H, columns W).

    The numbers of rows and columns are as nearly equal as F's divisors allow.
    """
    n, channels, frames, height, width = video.shape
    columns = next(c for c in range(1, frames + 1) if c * c >= frames and frames % c == 0)
    rows = frames // columns
    cells = video.reshape(n, channels, rows, columns, height, width).transpose(3, 4)
    return cells.reshape(n, channels, rows * height, columns * width)
