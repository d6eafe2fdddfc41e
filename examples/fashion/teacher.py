"""Train the U-Net on the pixels, preconditioned as in Karras et al. 2022 (arXiv 2206.00364)."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDPMPipeline, EDMEulerScheduler, UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor

from common.pictures import save_grid, to_uint8
from common.snapshots import averaged, replace, restore
from common.training import Plan, Trainer
from fashion import data


@dataclass(frozen=True, kw_only=True)
class Config(Plan):
    """Shapes and training of the teacher."""

    channels: tuple[int, ...] = (32, 64, 128)
    """At 32x32, 16x16 and 8x8; the last level attends."""
    layers: int = 1
    head_channels: int = 32
    norm_groups: int = 8
    samples: float = 400_000
    """Every photograph nearly seven times."""
    batch: int = 64
    matrix_rate: float = 3e-3
    other_rate: float = 1.2e-3
    warmup_steps: int = 150
    hold: float = 0.4
    ema_decay: float = 0.9995
    weight_decay: float = 0.01
    bf16: bool = True
    log_sigma_mean: float = -1.2
    log_sigma_deviation: float = 1.2
    """Of the noise levels that are trained (the paper's Table 1)."""
    sheet_seconds: float = 1200


def build_scheduler() -> EDMEulerScheduler:
    """The paper's levels; 0.66 is the deviation of the padded photographs' pixels."""
    return EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.66)


def build_unet(config: Config) -> UNet2DModel:
    """A U-Net that takes a class's number, with plain attention (faster on a CPU)."""
    attending = len(config.channels) - 1
    unet = UNet2DModel(
        sample_size=data.SIZE,
        in_channels=1,
        out_channels=1,
        layers_per_block=config.layers,
        block_out_channels=config.channels,
        down_block_types=("DownBlock2D",) * attending + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * attending,
        attention_head_dim=config.head_channels,
        norm_num_groups=config.norm_groups,
        num_class_embeds=len(data.CLASSES),
    )
    for module in unet.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())
    return unet


def denoise(
    unet: UNet2DModel, noisy: torch.Tensor, sigma: torch.Tensor, classes: torch.Tensor
) -> torch.Tensor:
    """The network's guess of the clean pictures, from `noisy` of deviation sigma (N,)."""
    known: float = build_scheduler().config.sigma_data
    level = sigma.view(-1, 1, 1, 1)
    total = (level.square() + known**2).sqrt()
    found: torch.Tensor = unet(noisy / total, sigma.log() / 4, classes).sample.float()
    return noisy * (known / total) ** 2 + found * level * known / total


def run(work: Path, config: Config, snapshot: Path | None = None) -> None:
    """Train; writes `pipeline/` and, now and then, `sheet-STEP.png`.

    Args:
        work: Folder of the checkpoint.
        config: How.
        snapshot: Where to start if there is no checkpoint.
    """
    torch.manual_seed(0)
    pictures, classes = data.load("train")
    unet = build_unet(config)
    done = restore({"unet": unet}, snapshot, config) if snapshot else 0
    trainer = Trainer(unet, config, work / "teacher-state.safetensors", done)
    known = build_scheduler().config.sigma_data
    drawn_at = trainer.budget.spent

    def loss(_share: float) -> tuple[torch.Tensor, dict[str, float]]:
        rows = torch.randint(len(pictures), (config.batch,))
        places = (torch.randperm(config.batch) + torch.rand(config.batch)) / config.batch
        normal = torch.special.ndtri(places.clamp(1e-6, 1 - 1e-6))
        sigma = (config.log_sigma_mean + config.log_sigma_deviation * normal).exp()
        clean = pictures[rows]
        noisy = clean + sigma.view(-1, 1, 1, 1) * torch.randn_like(clean)
        error = denoise(unet, noisy, sigma, classes[rows]) - clean
        weight = (sigma.square() + known**2) / (sigma * known).square()
        return (weight * error.square().mean((1, 2, 3))).mean(), {}

    def preview() -> None:
        nonlocal drawn_at
        if trainer.budget.spent - drawn_at > config.sheet_seconds:
            drawn_at = trainer.budget.spent
            trainer.ema.swap()
            asked = torch.arange(len(data.CLASSES)).repeat(8)
            drawn = sample(unet, asked, steps=18, seed=0)
            save_sheet(drawn, work / f"sheet-{trainer.budget.steps:06d}.png")
            trainer.ema.swap()

    trainer.run(loss, preview)
    save(unet, work / "pipeline", trainer.budget.steps, config)


def snapshot(work: Path, place: Path, config: Config) -> None:
    """Write the averaged weights of the last checkpoint as a pipeline in float16."""
    unet = build_unet(config)
    steps = averaged(unet, work / "teacher-state.safetensors")
    save(unet, place, steps, config)


def save(unet: UNet2DModel, place: Path, steps: int, config: Config) -> None:
    """Write a DDPMPipeline in float16, whose scheduler says how the network is preconditioned."""
    half = copy.deepcopy(unet).to(torch.float16, memory_format=torch.contiguous_format)
    replace(DDPMPipeline(unet=half, scheduler=build_scheduler()), place, steps, config)
    (place / "classes.txt").write_text("".join(f"{name}\n" for name in data.CLASSES))


def save_sheet(drawn: torch.Tensor, path: Path) -> None:
    """Write (N, 1, 32, 32) pictures as one PNG, a class a column."""
    save_grid(to_uint8(drawn.expand(-1, 3, -1, -1)), path, columns=len(data.CLASSES), scale=2)


@torch.no_grad()
def sample(unet: UNet2DModel, classes: torch.Tensor, steps: int, seed: int) -> torch.Tensor:
    """(N, 1, 32, 32) pictures of these classes by Heun's method (the paper's Algorithm 1).

    The last step is Euler's, so the network runs 2 x steps - 1 times.
    """
    schedule = build_scheduler()
    schedule.set_timesteps(steps)
    sigmas = [float(s) for s in schedule.sigmas]
    generator = torch.Generator().manual_seed(seed)
    shape = (len(classes), 1, data.SIZE, data.SIZE)
    noise = torch.randn(shape, generator=generator)
    batches = []
    for x, asked in zip(
        torch.split(noise * sigmas[0], 100), torch.split(classes, 100), strict=True
    ):
        for now, after in itertools.pairwise(sigmas):
            slope = _slope(unet, x, now, asked)
            moved = x + (after - now) * slope
            if after > 0:
                slope = (slope + _slope(unet, moved, after, asked)) / 2
                moved = x + (after - now) * slope
            x = moved
        batches.append(x)
    return torch.cat(batches)


def _slope(
    unet: UNet2DModel, x: torch.Tensor, sigma: float, classes: torch.Tensor
) -> torch.Tensor:
    return (x - denoise(unet, x, torch.full((len(x),), sigma), classes)) / sigma
