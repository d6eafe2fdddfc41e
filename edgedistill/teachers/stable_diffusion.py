"""Stable Diffusion 1.x and 2.x: any folder or Hub id in StableDiffusionPipeline's layout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, LCMScheduler
from torch import Tensor, nn

from edgedistill.plugins import unknown
from edgedistill.prediction import Prediction
from edgedistill.sampling import StepTable
from edgedistill.schedule import Discrete
from edgedistill.teachers.pipeline import PipelineTeacher

__all__ = ["PREDICTIONS", "StableDiffusion", "discrete_border", "discrete_schedulers"]

PREDICTIONS = {
    "epsilon": Prediction.EPS,
    "sample": Prediction.X0,
    "v_prediction": Prediction.V,
}
"""diffusers' names."""


class UNet(nn.Module):
    """UNet2DConditionModel called as net(x, t, encoder_hidden_states)."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        result: Tensor = self.unet(x, t, encoder_hidden_states, return_dict=False)[0]
        return result


class TextEncoder(nn.Module):
    """input_ids (N, L) -> encoder_hidden_states (N, L, D)."""

    def __init__(self, text_encoder: Any) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        result: Tensor = self.text_encoder(input_ids).last_hidden_state
        return result


class StableDiffusion(PipelineTeacher):
    """A StableDiffusionPipeline, `emoji` among them."""

    family = "stable_diffusion"
    pipelines = ("StableDiffusionPipeline",)
    tap = "unet.mid_block"
    time_layer = "unet.time_embedding.linear_2"

    unused = ("safety_checker",)
    options = {"requires_safety_checker": False}  # noqa: RUF012

    def border(self) -> tuple[Discrete, Prediction]:
        return discrete_border(self.pipeline.scheduler, self.path)

    def wrap(self, core: nn.Module) -> UNet:
        return UNet(core)

    def encoder(self) -> TextEncoder:
        return TextEncoder(self.pipeline.text_encoder)

    def schedulers(self, table: StepTable) -> Iterator[Any]:
        return discrete_schedulers(self.pipeline.scheduler, table)


def discrete_border(scheduler: Any, path: str) -> tuple[Discrete, Prediction]:
    """Schedule and prediction of any scheduler over trained timesteps; `path` is for messages."""
    config = scheduler.config
    # DDIM's class computes the table of them all, zero-SNR rescaling included.
    schedule = Discrete(DDIMScheduler.from_config(config).alphas_cumprod)
    if config.prediction_type not in PREDICTIONS:
        raise ValueError(
            f"{path}: {unknown('prediction_type', config.prediction_type, PREDICTIONS)}"
        )
    return schedule, PREDICTIONS[config.prediction_type]


def discrete_schedulers(scheduler: Any, table: StepTable) -> Iterator[Any]:
    """Schedulers over trained timesteps that may walk a table, the plainest first."""
    config = scheduler.config
    for kind, choices in _kinds(table, config.num_train_timesteps):
        yield kind.from_config(config, clip_sample=False, thresholding=False, **choices)


def _kinds(table: StepTable, n: int) -> Iterator[tuple[Any, dict[str, Any]]]:
    if any(row.c for row in table.rows):
        yield LCMScheduler, {"original_inference_steps": n}
        return
    trailing = {"timestep_spacing": "trailing"}
    yield DDIMScheduler, {"set_alpha_to_one": True, **trailing}
    # DDIM's class steps by 1000 // steps whatever the next timestep is; this one goes there.
    order_one = {"solver_order": 1, "algorithm_type": "dpmsolver++", "final_sigmas_type": "zero"}
    yield DPMSolverMultistepScheduler, {**order_one, **trailing}
