"""What a run draws while it trains: the student's samples, and what each role makes of one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from edgedistill.common.pictures import save_samples
from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.objectives.base import Batch

if TYPE_CHECKING:
    from edgedistill.runs.run import Run

__all__ = ["preview", "preview_roles"]


@torch.no_grad()
def preview(run: Run, denoiser: Denoiser, step: int) -> None:
    """Draw the student's samples at `step` into the run dir: always the same noise."""
    teacher, table = run.teacher, run.table
    prompts = teacher.preview_prompts()
    if run.part:
        prompts = run.part.own(teacher, prompts) or run.source.prompts(8, torch.Generator())
    count = len(prompts) or (2000 if len(teacher.sample_shape) == 1 else 64)
    generator = torch.Generator().manual_seed(0)
    cond = teacher.encode(prompts)
    device = next(denoiser.parameters()).device
    noise = table.draw((count, *teacher.sample_shape), generator, device)
    decoded = teacher.decode(table.sample(denoiser.net, noise, cond))
    truth = None
    if decoded.ndim == 2:
        truth = run.source.draw(count, generator)[0].numpy()
    save_samples(run.folder / "samples" / f"step-{step:08d}.png", decoded, truth)


@torch.no_grad()
def preview_roles(run: Run, step: int) -> None:
    """Draw what each role makes of one noised sample, a row each, always of the same noise.

    Of pictures, where the method has such roles.
    """
    # A network in shards can be called on all processes only.
    if len(run.teacher.sample_shape) == 1 or run.trainer.accelerator.num_processes > 1:
        return
    generator, shared = (torch.Generator().manual_seed(0) for _ in range(2))
    x0, cond = run.source.draw(8, generator)
    device = run.trainer.accelerator.device
    cond = {name: value.to(device) for name, value in cond.items()}
    batch = Batch(x0.to(device), cond, generator, shared, step)
    if run.trainer.pictured:
        originals = run.source.originals(8, torch.Generator().manual_seed(0))
        batch = replace(batch, originals=None if originals is None else originals.to(device))
    found = run.objective.predictions(batch)
    if found:
        decoded = run.teacher.decode(torch.cat(list(found.values())))
        save_samples(run.folder / "samples" / f"roles-{step:08d}.png", decoded)
