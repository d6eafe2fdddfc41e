"""Decoders of the emoji student beside its VAE's: what they reconstruct, and what they cost.

    python examples/emoji/build.py --only data          # the original pictures, from npm
    python benchmarks/decoders.py DECODER ... [--student runs/emoji-4step/student]

Each original is encoded by the VAE and decoded by each: PSNR to the original and to the VAE's
picture, on those whose latents decoders are trained on and on the held-out ones. Then the student
is exported with each, and the bundles draw the same pictures in turns in one process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgedistill.objectives.compression.decoder import psnr
from edgedistill.students.folder import load_student
from edgedistill.teachers import load_teacher
from edgedistill.teachers.base import Teacher
from edgedistill_export import export_student
from edgedistill_export.bundle import ExportSettings
from edgedistill_runtime import Pipeline
from edgedistill_runtime.manifest import Manifest

ROOT = Path(__file__).parents[1]
STAGES = ("total", "text_encoder", "denoiser", "decoder", "other")


def originals(work: Path) -> tuple[Tensor, list[bool]]:
    """Pictures that the teacher was made for, (N, 3, 64, 64), and which its data holds out."""
    file = work / "pictures.json"
    if not file.is_file():
        raise SystemExit(f"no {file}: python examples/emoji/build.py --only data")
    rows = json.loads(file.read_text(encoding="utf-8"))
    chosen = [i for i, row in enumerate(rows) if row["chosen"]]
    pictures = torch.from_numpy(np.load(work / "pictures.npy")[chosen])
    return pictures.permute(0, 3, 1, 2) / 127.5 - 1, [rows[i]["held_out"] for i in chosen]


@torch.no_grad()
def drawn(teacher: Teacher, latents: Tensor) -> Tensor:
    """Pictures of latents, clipped as a picture file clips them."""
    return torch.cat([teacher.decode(part) for part in latents.split(64)]).clamp(-1, 1)


def decibels(pictures: Tensor, truth: Tensor) -> str:
    """PSNR of all pixels together."""
    return f"{psnr((pictures - truth).square().mean()).item():.2f}"


def reconstruction(decoders: list[Path], work: Path) -> list[list[str]]:
    """A row for the VAE and for each decoder."""
    truth, held = originals(work)
    teacher = load_teacher("stable_diffusion", "emoji")
    vae: Any = teacher.autoencoder
    with torch.no_grad():
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in truth.split(64)])
    latents = latents * vae.config.scaling_factor
    own = drawn(teacher, latents)
    unseen = torch.tensor(held)
    rows = [["VAE", *_cells(own, truth, unseen), "", ""]]
    for folder in decoders:
        teacher.use_decoder(str(folder))
        found = drawn(teacher, latents)
        rows.append([str(folder), *_cells(found, truth, unseen), *_cells(found, own, unseen)[::2]])
    return rows


def _cells(pictures: Tensor, truth: Tensor, unseen: Tensor) -> list[str]:
    return [
        decibels(pictures, truth),
        decibels(pictures[~unseen], truth[~unseen]),
        decibels(pictures[unseen], truth[unseen]),
    ]


def latencies(student: Path, decoders: list[Path], runs: int, threads: int) -> list[list[str]]:
    """p50 in ms by stage of the student's bundle with each decoder, drawing in turns."""
    with tempfile.TemporaryDirectory() as folder:
        places = [export_student(student, out=Path(folder) / "vae")]
        for i, decoder in enumerate(decoders):
            settings = ExportSettings(decoder=decoder)
            places.append(
                export_student(student, out=Path(folder) / f"decoder-{i}", settings=settings)
            )
        parity = [Manifest.read(place).parity.graphs["decoder"].worst for place in places]
        pipes = [Pipeline.load(place, threads=threads) for place in places]
        prompts = list(load_student(student).teacher.prompts)
        seconds: list[list[dict[str, float]]] = [[] for _ in pipes]
        for run in range(runs + 3):
            for pipe, mine in zip(pipes, seconds, strict=True):
                timings = pipe(prompts[run % len(prompts)], seed=run).timings
                if run >= 3:  # the first ones warm up
                    mine.append(timings)
    medians = [
        {stage: statistics.median(timing[stage] for timing in mine) for stage in STAGES}
        for mine in seconds
    ]
    names = ["VAE", *map(str, decoders)]
    return [
        [
            name,
            *(f"{1e3 * mine[stage]:.2f}" for stage in STAGES),
            f"{medians[0]['decoder'] / mine['decoder']:.1f}x",
            f"{medians[0]['total'] / mine['total']:.2f}x",
            f"{worst:.0f}",
        ]
        for name, mine, worst in zip(names, medians, parity, strict=True)
    ]


def show(headings: list[str], rows: list[list[str]]) -> None:
    """A markdown table."""
    for row in [headings, ["---"] * len(headings), *rows]:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def main() -> None:
    """Parse the command line and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("decoders", type=Path, nargs="+")
    parser.add_argument("--student", type=Path, default=Path("runs/emoji-4step/student"))
    parser.add_argument("--work", type=Path, default=ROOT / "examples" / "emoji" / "work")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    show(
        ["decoder", "dB to originals", "trained on", "held out", "dB to the VAE's", "held out"],
        reconstruction(arguments.decoders, arguments.work),
    )
    show(
        ["p50 ms", *STAGES, "decoder against VAE", "in all", "decoder parity dB"],
        latencies(arguments.student, arguments.decoders, arguments.runs, arguments.threads),
    )


if __name__ == "__main__":
    main()
