"""A user's plainest teachers: pixel DDPMs of scikit-learn's digits, as diffusers saves them.

`python benchmarks/digits.py [--out runs/digits] [--teachers NAME,...]` trains what `--out` lacks
and prints two tables. The first compares our 25 steps with diffusers' own for every combination
of schedule, clipping, prediction, size and classes. The second distils seven class-conditional
teachers to 4 steps and 1 step, and says what share of 1,000 samples a support vector machine gives
the class that was asked for, with the ort bundles in fp32 and int8. A killed run goes on where it
stood.

It needs scikit-learn: `pip install scikit-learn`.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from one_student import open_one
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from torch import Tensor
from torch.nn import functional as F

from edgedistill import recipes
from edgedistill.common.files import write_json
from edgedistill.diffusion.solvers import solve
from edgedistill.networks.ema import follow
from edgedistill.students.folder import load_student
from edgedistill.teachers import Teacher, load_teacher
from edgedistill_export.bundle import export_student
from edgedistill_export.parity import ParityError
from edgedistill_runtime import Pipeline

CLASSES, SAMPLES, SEED = 10, 1000, 7


@dataclass(frozen=True)
class Kind:
    """A teacher's settings."""

    betas: str
    prediction: str
    clip: bool
    size: int = 8
    steps: int = 1600
    """Training steps of 64 pictures."""


TEACHERS = {
    "cosine eps clipped": Kind("squaredcos_cap_v2", "epsilon", True),
    "cosine eps unclipped": Kind("squaredcos_cap_v2", "epsilon", False),
    "cosine v clipped": Kind("squaredcos_cap_v2", "v_prediction", True),
    "linear eps clipped": Kind("linear", "epsilon", True),
    "linear v clipped": Kind("linear", "v_prediction", True),
    "linear sample unclipped": Kind("linear", "sample", False),
    "cosine eps clipped 28x28": Kind("squaredcos_cap_v2", "epsilon", True, 28, 4000),
}


def digits(size: int) -> tuple[Tensor, Tensor]:
    """Pictures (1797, 1, size, size) in [-1, 1], and their classes."""
    data = load_digits()
    pictures = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    if size != 8:
        pictures = F.interpolate(pictures, (size, size), mode="bilinear", antialias=True)
    return pictures, torch.tensor(data.target)


def network(size: int, classes: int | None) -> UNet2DModel:
    """A small U-Net as diffusers' training example has it."""
    widths = (32, 64) if size == 8 else (16, 32, 64)
    plain = len(widths) - 1
    return UNet2DModel(
        sample_size=size,
        in_channels=1,
        out_channels=1,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
        norm_num_groups=8,
        attention_head_dim=16,
        num_class_embeds=classes,
    )


def target(kind: Kind, scheduler: DDPMScheduler, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What the network learns to output."""
    if kind.prediction == "v_prediction":
        velocity: Tensor = scheduler.get_velocity(x0, noise, t)
        return velocity
    return noise if kind.prediction == "epsilon" else x0


def train(kind: Kind, folder: Path) -> None:
    """Train a class-conditional teacher and save it as a DDPMPipeline."""
    torch.manual_seed(0)
    pictures, labels = digits(kind.size)
    net = network(kind.size, CLASSES)
    average = network(kind.size, CLASSES).requires_grad_(False)
    average.load_state_dict(net.state_dict())
    scheduler = DDPMScheduler(
        beta_schedule=kind.betas, prediction_type=kind.prediction, clip_sample=kind.clip
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.01)
    for step in range(kind.steps):
        decay = 0.5 * (1 + math.cos(math.pi * step / kind.steps)) * 0.97 + 0.03
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1, (step + 1) / 100) * decay
        index = torch.randint(len(pictures), (64,))
        x0, noise = pictures[index], torch.randn(64, 1, kind.size, kind.size)
        t = torch.randint(0, 1000, (64,))
        found = net(scheduler.add_noise(x0, noise, t), t, labels[index]).sample
        loss = F.mse_loss(found, target(kind, scheduler, x0, noise, t))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        follow(average, net, min(0.999, (1 + step) / (10 + step)))
    DDPMPipeline(average, scheduler).save_pretrained(folder)


# --- Ours against diffusers' --------------------------------------------------------------------


@torch.no_grad()
def apart(folder: Path, classes: int | None, steps: int = 25) -> float:
    """Largest difference of pictures in [-1, 1] from diffusers' DDIM of the folder's settings.

    In float64: clipping beside a small alpha makes of a rounding error a visible difference, in
    diffusers' pictures as in ours.
    """
    teacher, pipeline = load_teacher("unet2d", folder), DDPMPipeline.from_pretrained(folder)
    teacher.net.double()
    pipeline.unet.double()
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(4, *teacher.sample_shape, generator=generator).double()
    labels = {} if classes is None else {"class_labels": torch.arange(4)}
    scheduler.set_timesteps(steps)
    x = noise
    for t in scheduler.timesteps:
        x = scheduler.step(pipeline.unet(x, t, **labels).sample, t, x).prev_sample
    cond = {} if classes is None else teacher.encode([str(i) for i in range(4)])
    ours = teacher.decode(solve(teacher.guided(1.0), noise, teacher.grid(steps), cond))
    return float((ours[:, :1] - x.clamp(-1, 1)).abs().max())


def equality() -> None:
    """Print the first table: all combinations, on networks as they are initialised."""
    print("| schedule | prediction | clipped | size | classes | largest difference |")
    print("|---|---|---|---|---|---|", flush=True)
    for betas, prediction, clip, size, classes in product(
        ("linear", "squaredcos_cap_v2"),
        ("epsilon", "v_prediction", "sample"),
        (True, False),
        (8, 28),
        (None, CLASSES),
    ):
        torch.manual_seed(0)
        scheduler = DDPMScheduler(
            beta_schedule=betas, prediction_type=prediction, clip_sample=clip
        )
        with tempfile.TemporaryDirectory() as work:
            DDPMPipeline(network(size, classes), scheduler).save_pretrained(work)
            found = apart(Path(work), classes)
        row = (betas, prediction, clip, size, classes or "none", f"{found:.1e}")
        print(f"| {' | '.join(map(str, row))} |", flush=True)


# --- Students -----------------------------------------------------------------------------------


def recipe(folder: Path, steps: int) -> recipes.Recipe:
    """LCM for a pixel teacher without guidance."""
    return recipes.load(
        "emoji-lcm",
        [
            f"teacher.path={folder}",
            "teacher.family=unet2d",
            "teacher.guidance=1",
            f"student.steps={steps}",
            "data.samples=1000",
            "train.steps=1000",
            "train.batch_size=32",
            "train.optim.lr=3e-4",
            "train.sample_every=100000",
        ],
    )


Judge = Callable[[Any], float]


def judge(size: int) -> Judge:
    """Share of pictures (N, 1, H, W) in [-1, 1] that a machine gives the class i modulo 10."""
    pictures, labels = digits(size)
    gamma = 0.03 * 64 / size**2
    machine = SVC(gamma=gamma, C=10).fit(pictures.flatten(1).numpy(), labels.numpy())
    wanted = np.arange(SAMPLES) % CLASSES

    def share(drawn: Any) -> float:
        return float((machine.predict(np.asarray(drawn).reshape(SAMPLES, -1)) == wanted).mean())

    return share


PROMPTS = [str(i % CLASSES) for i in range(SAMPLES)]


@torch.no_grad()
def by_teacher(teacher: Teacher, steps: int) -> Any:
    """The teacher's pictures."""
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(SAMPLES, *teacher.sample_shape, generator=generator)
    x0 = solve(teacher.guided(1.0), noise, teacher.grid(steps), teacher.encode(PROMPTS))
    return teacher.decode(x0)[:, :1].numpy()


@torch.no_grad()
def by_student(folder: Path) -> Any:
    """A student's pictures."""
    student = load_student(folder)
    generator = torch.Generator().manual_seed(SEED)
    shape = (SAMPLES, *student.teacher.sample_shape)
    x0 = student.sample(student.teacher.encode(PROMPTS), student.table.draw(shape, generator))
    return student.teacher.decode(x0)[:, :1].numpy()


def by_bundle(student: Path, out: Path, precision: str, share: Judge) -> str:
    """A bundle's share, or why there is no bundle."""
    try:
        place = out if out.is_dir() else export_student(student, "ort", precision, out=out)
    except (ParityError, ValueError) as error:
        return str(error)[:60]
    images = Pipeline.load(place)(PROMPTS, seed=SEED).images
    assert images is not None  # a student of pixels has a decoder
    return f"{share(images[..., :1].astype(np.float32) / 127.5 - 1):.3f}"


def cells(name: str, out: Path) -> dict[str, str]:
    """The second table's row; trains and distils what is not there."""
    kind, place = TEACHERS[name], out / name.replace(" ", "-")
    folder = place / "teacher"
    if not folder.is_dir():
        train(kind, folder)
    teacher, share = load_teacher("unet2d", folder), judge(kind.size)
    found = {"from diffusers": f"{apart(folder, CLASSES):.1e}"}
    for steps in (25, 4, 1):
        found[f"teacher@{steps}"] = f"{share(by_teacher(teacher, steps)):.3f}"
    for steps in (4, 1):
        run = place / f"student-{steps}"
        if not (run / "student").is_dir():
            resume = (run / "recipe.yaml").is_file()
            opened = open_one(recipe(folder, steps), run, resume=resume, runs=Path("runs"))
            opened.train(lambda step, figures: None)
        found[f"student@{steps}"] = f"{share(by_student(run / 'student')):.3f}"
    for precision in ("fp32", "int8"):
        bundle = place / f"ort-{precision}"
        found[precision] = by_bundle(place / "student-4" / "student", bundle, precision, share)
    return found


def main() -> None:
    """Print both tables, a row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    parser.add_argument("--teachers", default=",".join(TEACHERS))
    parser.add_argument("--skip-equality", action="store_true", help="leave the first table out")
    args = parser.parse_args()
    if not args.skip_equality:
        equality()
    headed = False
    for name in args.teachers.split(","):
        file = args.out / name.replace(" ", "-") / "row.json"
        row = json.loads(file.read_text()) if file.is_file() else cells(name, args.out)
        write_json(file, row)
        if not headed:
            print(f"\n| teacher | {' | '.join(row)} |\n|{'---|' * (len(row) + 1)}")
            headed = True
        print(f"| {name} | {' | '.join(row.values())} |", flush=True)


if __name__ == "__main__":
    main()
