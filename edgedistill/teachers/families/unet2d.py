"""Pixel U-Nets: any folder or Hub id in DDPMPipeline's or DDIMPipeline's layout.

Ho et al. 2020 (arXiv 2006.11239): UNet2DModel on pixels, over trained timesteps. With an
EDMEulerScheduler in the folder the network is preconditioned as in Karras et al. 2022 (arXiv
2206.00364, Table 1), and x0 is the picture divided by sigma_data.

Most take no prompt. One with `num_class_embeds` takes a class's number; it has no null class.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from torch import Tensor, nn

from edgedistill.common.plugins import unknown
from edgedistill.diffusion.denoiser import Denoiser, Guided
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.schedules import Karras
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.networks import unet_reuse
from edgedistill.networks.scaling import Scaling
from edgedistill.teachers.base import Teacher
from edgedistill.teachers.classes import ClassTeacher, read_classes
from edgedistill.teachers.schedulers import EDM, TRAINED, discrete_border
from edgedistill.teachers.student_schedulers import discrete_schedulers

__all__ = ["UNet2D"]

PRECONDITIONED = (EDMEulerScheduler, EDMDPMSolverMultistepScheduler)
"""Scheduler classes of networks with EDM's preconditioning."""

SIGNS = {"epsilon": -1.0, "v_prediction": 1.0}
"""Factors that turn the output of a network under EDM's preconditioning into v, by diffusers'
names of predictions."""


class UNet2DNet(nn.Module):
    """A UNet2DModel called as net(x, t), or net(x, t, class_labels).

    Args:
        unet: The network.
        sign: Factor on the network's output.
    """

    def __init__(self, unet: nn.Module, sign: float) -> None:
        super().__init__()
        self.unet = unet
        self.sign = sign

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        return self._signed(self.unet(x, t, class_labels, return_dict=False)[0], x)

    @property
    def outer_layers(self) -> int:
        """Number of layers of the last up block."""
        return unet_reuse.outer_layers(self.unet)

    def full(
        self, x: Tensor, t: Tensor, layers: int | None, class_labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the output, and the deep state (see `diffusion.reuse.Reusing`)."""
        f, deep = unet_reuse.full(self.unet, x, t, layers, class_labels=class_labels)
        return self._signed(f, x), deep

    def shallow(
        self,
        x: Tensor,
        t: Tensor,
        deep: Tensor,
        layers: int | None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """Return the output of the outer layers on a deep state."""
        f = unet_reuse.shallow(self.unet, x, t, deep, layers, class_labels=class_labels)
        return self._signed(f, x)

    def _signed(self, result: Tensor, x: Tensor) -> Tensor:
        # Variance channels may follow eps.
        result = result[:, : x.shape[1]]
        return result if self.sign == 1 else self.sign * result


class PixelDecoder(nn.Module):
    """A decoder of x0 (N, C, H, W), one channel or three, to pictures (N, 3, H, W) in [-1, 1].

    Args:
        scaling_factor: x0 is the picture times this.
    """

    def __init__(self, scaling_factor: float) -> None:
        super().__init__()
        self.scaling = Scaling(scaling_factor)

    def forward(self, x0: Tensor) -> Tensor:
        pictures: Tensor = self.scaling(x0)
        return pictures.clamp(-1, 1).expand(-1, 3, -1, -1)


class UNet2D(ClassTeacher):
    """A teacher in DDPMPipeline's or DDIMPipeline's layout."""

    family = "unet2d"
    pipelines = ("DDPMPipeline", "DDIMPipeline")
    kinds = (TRAINED, EDM)
    has_null = False
    tap = "unet.mid_block"
    x0_limit = 1.0
    time_layer = "unet.time_embedding.linear_2"
    reuses = True
    usage = """```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(FOLDER)
image = pipe(num_inference_steps={steps}).images[0]
```"""

    def __init__(self, name: str, path: str, pipeline: Any) -> None:
        config = pipeline.unet.config
        if config.class_embed_type is not None:
            raise ValueError(
                f"{path}: {unknown('class_embed_type', config.class_embed_type, ['null'])}"
            )
        if config.in_channels not in (1, 3):
            raise ValueError(f"{path}: pictures of {config.in_channels} channels; 1 or 3 expected")
        self.classes = read_classes(Path(path), config.num_class_embeds or 0)
        self.edm = isinstance(pipeline.scheduler, PRECONDITIONED)
        super().__init__(name, path, pipeline)
        self.prompts = tuple(self.each[:16])
        if not self.classes:
            self.tokenizers = {}
        if self.edm or self.classes:  # diffusers' pipelines do not support these
            self.usage = Teacher.usage

    @classmethod
    def open(cls, name: str, index: dict[str, Any], where: str) -> Any:
        # DDIMPipeline has the same layout but takes no scheduler besides DDIM.
        return super().open(cls.pipelines[0], index, where)

    def parametrization(self) -> tuple[Schedule, Prediction]:
        if not self.edm:
            return discrete_border(self.pipeline.scheduler, self.path, self.kinds)
        config = self.pipeline.scheduler.config
        if config.sigma_schedule != "karras":
            raise ValueError(
                f"{self.path}: {unknown('sigma_schedule', config.sigma_schedule, ['karras'])}"
            )
        if config.prediction_type not in SIGNS:
            raise ValueError(
                f"{self.path}: {unknown('prediction_type', config.prediction_type, SIGNS)}"
            )
        if config.get("thresholding"):
            raise ValueError(
                f"{self.path}: thresholding with EDM's preconditioning is not read; set "
                "thresholding=false in scheduler_config.json"
            )
        levels = Karras(config.sigma_min, config.sigma_max, config.rho, config.sigma_data)
        return levels, Prediction.V

    def as_denoiser(self, core: nn.Module) -> UNet2DNet:
        return UNet2DNet(
            core, SIGNS[self.pipeline.scheduler.config.prediction_type] if self.edm else 1
        )

    def decoder_of(self, autoencoder: nn.Module | None) -> PixelDecoder:
        return PixelDecoder(1 / self.pipeline.scheduler.config.sigma_data if self.edm else 1.0)

    def encoder(self) -> nn.Module | None:
        return super().encoder() if self.classes else None

    def guided(self, scale: float) -> Denoiser | Guided:
        self.check_guidance(scale, self.name)
        return self.denoiser

    def asks(self, x0: Tensor, prompt: str) -> dict[str, Any] | None:
        # No pipeline of diffusers feeds classes, or scales inputs as EDM's networks need.
        return None if self.edm or self.classes else {"batch_size": 1}

    def schedulers(self, table: TorchStepTable) -> Iterator[Any]:
        return discrete_schedulers(self.pipeline.scheduler, table)

    def scheduler(self, table: TorchStepTable) -> Any:
        # No pipeline of diffusers scales inputs and first noise as EDM's scheduler needs, so the
        # teacher's scheduler is kept, which also says how the network is preconditioned.
        return self.pipeline.scheduler if self.edm else super().scheduler(table)
