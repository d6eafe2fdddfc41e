"""Fine-tune a small Stable Diffusion on a folder of pictures with captions.

`python examples/own_teacher/finetune.py PICTURES OUT [--base FOLDER] [--lora RANK]`

The loop is that of diffusers' text-to-image examples: pictures are encoded once, and the U-Net
learns what the scheduler asks for at a random time, with one caption in ten left empty. Without
--lora the whole U-Net is trained and OUT is a pipeline folder; with it a LoRA is, and OUT is a
folder with `pytorch_lora_weights.safetensors`. The base is the emoji teacher that edgedistill
ships, or any folder of a StableDiffusionPipeline.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import EMAModel
from edgedistill.assets import ROOT
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from torch.nn import functional as F

BATCH, WARMUP, DROPPED = 8, 20, 0.1
LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "conv1", "conv2")
"""Where a LoRA is: attention and the convolutions of residual blocks."""


def read(folder: Path) -> tuple[torch.Tensor, list[str]]:
    """Pictures (N, 3, H, W) in [-1, 1] and their captions, by metadata.jsonl."""
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    pixels = [np.asarray(Image.open(folder / row["file_name"]).convert("RGB")) for row in rows]
    pictures = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pictures, [row["text"] for row in rows]


@torch.no_grad()
def encoded(
    pipeline: StableDiffusionPipeline, pictures: torch.Tensor, captions: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (N, C, h, w), and states (N + 1, L, D) of the captions and of the empty one."""
    vae, tokenizer = pipeline.vae, pipeline.tokenizer
    latents = vae.encode(pictures).latent_dist.mode() * vae.config.scaling_factor
    tokens = tokenizer(
        [*captions, ""],
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    )
    return latents, pipeline.text_encoder(tokens.input_ids).last_hidden_state


def train(pipeline: StableDiffusionPipeline, pictures: Path, steps: int, rate: float) -> None:
    """Train those parameters of the U-Net that ask for gradients, and leave their averages."""
    torch.manual_seed(0)
    unet, scheduler = pipeline.unet.train(), pipeline.scheduler
    latents, states = encoded(pipeline, *read(pictures))
    weights = [weight for weight in unet.parameters() if weight.requires_grad]
    print(f"{sum(weight.numel() for weight in weights):,} parameters are trained", flush=True)
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=1e-2)
    average = EMAModel(weights, decay=0.99, use_ema_warmup=True, power=0.75)
    began, total = time.monotonic(), 0.0
    for step in range(steps):
        decay = 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / WARMUP) * decay
        rows = torch.randint(len(latents), (BATCH,))
        told = torch.where(torch.rand(BATCH) < DROPPED, len(latents), rows)
        x0, noise = latents[rows], torch.randn(BATCH, *latents.shape[1:])
        t = torch.randint(0, scheduler.config.num_train_timesteps, (BATCH,))
        asked = noise
        if scheduler.config.prediction_type == "v_prediction":
            asked = scheduler.get_velocity(x0, noise, t)
        found = unet(scheduler.add_noise(x0, noise, t), t, states[told]).sample
        loss = F.mse_loss(found, asked)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(weights)
        total += loss.item()
        if (step + 1) % 100 == 0:
            spent = time.monotonic() - began
            print(f"step {step + 1:4d}  loss {total / 100:.4f}  {spent:.0f} s", flush=True)
            total = 0.0
    average.copy_to(weights)
    unet.eval()


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path, help="a folder with metadata.jsonl")
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", type=Path, default=ROOT / "emoji")
    parser.add_argument("--lora", type=int, metavar="RANK", help="train a LoRA of this rank")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--licence", default="other", help="of what is written, for its card")
    args = parser.parse_args()
    pipeline = StableDiffusionPipeline.from_pretrained(args.base, dtype=torch.float32)
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        part.requires_grad_(part is pipeline.unet and not args.lora)
    pipeline.unet.set_attn_processor(AttnProcessor())  # the fastest for 64 places on a CPU
    if args.lora:
        pipeline.unet.add_adapter(
            LoraConfig(r=args.lora, lora_alpha=args.lora, target_modules=list(LAYERS))
        )
    train(pipeline, args.pictures, args.steps, args.rate)
    if args.lora:
        found = get_peft_model_state_dict(pipeline.unet)
        pipeline.save_lora_weights(args.out, unet_lora_layers=found)
    else:
        pipeline.save_pretrained(args.out)
        if (args.base / "clip").is_dir():  # the base's own judge of pictures and captions
            shutil.copytree(args.base / "clip", args.out / "clip", dirs_exist_ok=True)
    (args.out / "README.md").write_text(f"---\nlicense: {args.licence}\n---\n# {args.out.name}\n")
    print(f"{'LoRA' if args.lora else 'teacher'} {args.out}")


if __name__ == "__main__":
    main()
