"""A tiny DDPMPipeline: 8x8 pictures."""

from __future__ import annotations

from typing import Any

from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

__all__ = ["pipeline"]


def pipeline(*, classes: int | None = None, scheduler: Any = None) -> DDPMPipeline:
    """Make the pipeline with random weights; the defaults are unconditional, DDPM's scheduler.

    With an EDMEulerScheduler, the network is preconditioned as EDM's.
    """
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
        num_class_embeds=classes,
    )
    return DDPMPipeline(unet=unet, scheduler=scheduler or DDPMScheduler())
