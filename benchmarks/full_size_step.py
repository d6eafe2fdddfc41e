"""One training step of a public teacher at full size, random weights, on the CPU.

    python benchmarks/full_size_step.py [sd15|sdxl] [key=value ...]

Writes a pipeline folder of the published configs with random weights (SD 1.5: 4.3 GB, SDXL: 14 GB
of disk) and tiny tokenizers, loads it as any checkpoint, and takes one step of the LCM-LoRA recipe
at 512 pixels, batch 1, with gradient checkpointing. Prints seconds of the step, the peak of
resident memory, and what `edgedistill plan` says of the same recipe. Linux only.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from inspect import signature
from pathlib import Path

import diffusers
import torch
from safetensors.torch import save_file
from torch import nn
from training_memory import MIB, resident

from edgedistill import recipes
from edgedistill.common.files import read_json, write_json
from edgedistill.common.logs import PACKAGE
from edgedistill.common.progress import Handler
from edgedistill.planning.architectures import architecture, find
from edgedistill.planning.costs import costs
from edgedistill.planning.memory import Launch
from edgedistill.runs.run import Run
from edgedistill.tiny import tokenizers

PROMPTS = ["red", "a red one"]
TEACHERS = {
    "sd15": ("stable-diffusion-v1-5/stable-diffusion-v1-5", "sd15-4step-lora", 64),
    "sdxl": ("stabilityai/stable-diffusion-xl-base-1.0", "sdxl-lcm-lora", 64),
}
"""Hub id, recipe, and latent size of 512 pixels."""

MISSING = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
"""Of what surrounds the networks, what is left out."""


class Enough(Exception):  # noqa: N818  no error
    """The step has been taken."""


def fill(net: nn.Module, generator: torch.Generator) -> nn.Module:
    """Random weights of a size that keeps activations finite; norms stay neutral."""
    net.to_empty(device="cpu")
    for name, tensor in net.state_dict().items():
        if tensor.ndim > 1:
            fan = tensor[0].numel()
            tensor.normal_(0, 0.5 * fan**-0.5, generator=generator)
        elif tensor.is_floating_point():
            tensor.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    for module in net.modules():
        positions = getattr(module, "position_ids", None)  # a buffer that no checkpoint holds
        if isinstance(positions, torch.Tensor):
            module.position_ids = torch.arange(positions.shape[-1])[None]
    return net


def write(hub_id: str, size: int, folder: Path) -> None:
    """The pipeline folder."""
    source, generator = find(hub_id), torch.Generator().manual_seed(0)
    index = read_json(source / "model_index.json")
    networks = architecture(hub_id)
    parts: dict[str, object] = {name: fill(net, generator) for name, net in networks.items()}
    unet = networks["unet"]
    assert isinstance(unet, diffusers.ConfigMixin)
    unet.register_to_config(sample_size=size)
    kind = getattr(diffusers, index["scheduler"][1])
    parts["scheduler"] = kind.from_config(read_json(source / "scheduler/scheduler_config.json"))
    pipeline = getattr(diffusers, index["_class_name"])
    for name in signature(pipeline.__init__).parameters:
        if name.startswith("tokenizer"):
            tokenizer = tokenizers.clip()
            tokenizer.model_max_length = 77
            parts[name] = tokenizer
        elif name in MISSING:
            parts[name] = MISSING[name]
    pipeline(**parts).save_pretrained(folder)
    write_json(folder / "prompts.json", {"grid": PROMPTS[:1], "train": PROMPTS})
    latents = torch.randn(len(PROMPTS), 4, size, size, generator=generator)
    save_file({"latents": latents}, folder / "data.safetensors")


def step(recipe: recipes.Recipe, folder: Path) -> tuple[float, float, float]:
    """Seconds of loading and of the step, and peak MiB from the imports on."""
    libraries = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    begin = time.perf_counter()
    run = Run(recipe, folder)
    loaded = time.perf_counter()
    with suppress(Enough):
        run.train(_stop)
    done = time.perf_counter()
    return loaded - begin, done - loaded, (resident("VmHWM") - libraries) / MIB


def _stop(steps: int, figures: object) -> None:
    if steps:
        raise Enough


def main() -> None:
    """Write, load, step, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher", choices=TEACHERS, nargs="?", default="sd15")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    PACKAGE.addHandler(Handler())
    PACKAGE.setLevel(logging.INFO)
    hub_id, name, size = TEACHERS[args.teacher]
    if args.write:
        write(hub_id, size, args.write)
        return
    with tempfile.TemporaryDirectory() as work:
        place = Path(work) / "teacher"
        # In a process of its own: what making it took is no memory of the step.
        subprocess.run([sys.executable, __file__, args.teacher, "--write", str(place)], check=True)
        words = [f"teacher.path={place}", "train.batch_size=1", "train.steps=1"]
        words += ["train.precision=fp32", "train.base=fp32", "train.log_every=1", *args.overrides]
        recipe = recipes.load(name, words)
        planned = costs(recipe, Launch()).memory.total / MIB
        loading, seconds, peak = step(recipe, Path(work))
    print(
        f"{args.teacher} {size * 8} px  loading {loading:.0f} s  step {seconds:.0f} s  "
        f"peak {peak:.0f} MiB  planned {planned:.0f} MiB  ratio {peak / planned:.2f}"
    )


if __name__ == "__main__":
    main()
