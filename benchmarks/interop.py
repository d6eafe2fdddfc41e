"""Open students and bundles in optimum, and compare its pictures with ours.

    python benchmarks/interop.py            # `make interop`

optimum needs transformers 4, so it gets an environment of its own, build/venv-optimum, which is
made once. Tiny Stable Diffusion students are saved, exported, and drawn here and there from the
same noise. Prints a line for each: what was opened, and the largest difference of 255.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
BUILD = ROOT / "build"

OPTIMUM = ("torch==2.13.0", "optimum-onnx==0.1.*", "transformers<4.58", "onnxruntime", "diffusers")
STEPS, SEED, LIMIT = 2, 3, 1
LENGTH = 16
"""Tokens of a prompt; optimum's exporter tries no fewer."""

DRAW = """
import sys
from pathlib import Path
import numpy as np
import torch
import transformers
from optimum.onnxruntime import ORTDiffusionPipeline, ORTStableDiffusionPipeline

folder, out, steps, seed = sys.argv[1:]
export = not (Path(folder) / "unet" / "model.onnx").is_file()
kind = ORTStableDiffusionPipeline if export else ORTDiffusionPipeline  # it names no task itself
pipe = kind.from_pretrained(folder, export=export, use_io_binding=False)
generator = torch.Generator().manual_seed(int(seed))
drawn = pipe("red", num_inference_steps=int(steps), guidance_scale=1.0, generator=generator)
np.save(out, np.asarray(drawn.images[0]))
print(type(pipe).__name__, "transformers", transformers.__version__)
"""


def environment(folder: Path, packages: tuple[str, ...]) -> Path:
    """Make an environment with packages, unless it is there; return its Python."""
    python = folder / "bin" / "python"
    if not (folder / ".ready").is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        (folder / ".ready").touch()
    return python


def students(root: Path) -> dict[str, Path]:
    """Save tiny students of two predictions."""
    from tiny import make_pipeline, make_tokenizer, save
    from transformers import CLIPTextModel

    from edgedistill.diffusion.prediction import Prediction
    from edgedistill.teachers.families.stable_diffusion import StableDiffusion
    from edgedistill.tiny.stable_diffusion import text_config

    made = {}
    for prediction in (Prediction.EPS, Prediction.V):
        torch.manual_seed(0)
        teacher = root / f"teacher-{prediction.value}"
        pipeline, tokenizer = make_pipeline(), make_tokenizer()
        tokenizer.model_max_length = LENGTH
        encoder = CLIPTextModel(text_config(tokenizer))
        pipeline.register_modules(tokenizer=tokenizer, text_encoder=encoder)
        pipeline.save_pretrained(teacher)
        loaded = StableDiffusion.load(str(teacher))
        place = root / prediction.value / "student"
        made[prediction.value] = save(place, loaded, loaded.net, prediction, STEPS)
    return made


def ours(folder: Path) -> NDArray[np.uint8]:
    """Draw with diffusers here."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    generator = torch.Generator().manual_seed(SEED)
    drawn = pipe("red", num_inference_steps=STEPS, guidance_scale=1.0, generator=generator)
    return np.asarray(drawn.images[0])


def theirs(python: Path, folder: Path, work: Path) -> tuple[NDArray[np.uint8], str]:
    """Draw with optimum in its environment; also return what it is."""
    out = work / "drawn.npy"
    command = [str(python), "-c", DRAW, str(folder), str(out), str(STEPS), str(SEED)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{folder}: optimum failed:\n{done.stderr[-3000:]}")
    return np.load(out), done.stdout.strip().splitlines()[-1]


def main() -> None:
    """Compare, and exit with 1 if a picture differs."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    from edgedistill_export.bundle import export_student
    from edgedistill_export.optimum import write_optimum

    python = environment(BUILD / "venv-optimum", OPTIMUM)
    failed = False
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for prediction, student in students(work).items():
            bundle = export_student(student, "ort")
            expected = ours(student).astype(int)
            for what, folder in (
                ("bundle in optimum's layout", write_optimum(bundle, student)),
                ("student, exported by optimum", student),
            ):
                drawn, told = theirs(python, folder, work)
                far = int(abs(drawn.astype(int) - expected).max())
                failed |= far > LIMIT
                print(f"{prediction:4} {what:32} {told}: differs by {far} of 255", flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
