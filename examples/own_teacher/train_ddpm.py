"""Train a small pixel DDPM on a folder of pictures, and save it as diffusers does.

`python examples/own_teacher/train_ddpm.py PICTURES OUT [--classes]`

The loop is that of diffusers' example for unconditional image generation: a `UNet2DModel` learns
the noise that a `DDPMScheduler` added, and `DDPMPipeline.save_pretrained` writes the folder. With
--classes the network is told each picture's class, the name of the folder that it lies in.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from PIL import Image
from torch.nn import functional as F

BATCH, RATE, WARMUP = 32, 2e-3, 50


def read(folder: Path) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Grey pictures (N, 1, H, W) in [-1, 1], the class (N,) of each, and the classes' names."""
    files = sorted(folder.glob("*/*.png"))
    names = sorted({file.parent.name for file in files})
    pixels = np.stack([np.asarray(Image.open(file).convert("L")) for file in files])
    labels = torch.tensor([names.index(file.parent.name) for file in files])
    return torch.from_numpy(pixels)[:, None].float() / 127.5 - 1, labels, names


def build(size: int, classes: int | None) -> UNet2DModel:
    """A U-Net for grey pictures of size x size."""
    return UNet2DModel(
        sample_size=size,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=16,
        num_class_embeds=classes,
    )


def train(folder: Path, with_classes: bool, steps: int) -> tuple[DDPMPipeline, list[str]]:
    """Train for `steps` steps; the pipeline of the averaged weights, and the classes' names."""
    torch.manual_seed(0)
    pictures, labels, names = read(folder)
    net = build(pictures.shape[-1], len(names) if with_classes else None)
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, betas=(0.95, 0.999))
    average = EMAModel(net.parameters(), decay=0.995, use_ema_warmup=True, power=0.75)
    began, total = time.monotonic(), 0.0
    for step in range(steps):
        decay = 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / WARMUP) * decay
        rows = torch.randint(len(pictures), (BATCH,))
        x0, noise = pictures[rows], torch.randn(BATCH, *pictures.shape[1:])
        t = torch.randint(0, scheduler.config.num_train_timesteps, (BATCH,))
        told = labels[rows] if with_classes else None
        loss = F.mse_loss(net(scheduler.add_noise(x0, noise, t), t, told).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(net.parameters())
        total += loss.item()
        if (step + 1) % 200 == 0:
            spent = time.monotonic() - began
            print(f"step {step + 1:4d}  loss {total / 200:.4f}  {spent:.0f} s", flush=True)
            total = 0.0
    average.copy_to(net.parameters())
    return DDPMPipeline(net, scheduler), names


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path, help="a folder a class, with .png files in it")
    parser.add_argument("out", type=Path)
    parser.add_argument("--classes", action="store_true", help="tell the network the class")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--licence", default="other", help="of the teacher, for its card")
    args = parser.parse_args()
    pipeline, names = train(args.pictures, args.classes, args.steps)
    pipeline.save_pretrained(args.out)
    (args.out / "README.md").write_text(f"---\nlicense: {args.licence}\n---\n# {args.out.name}\n")
    if args.classes:
        (args.out / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    print(f"teacher {args.out}")


if __name__ == "__main__":
    main()
