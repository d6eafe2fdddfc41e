"""Open students and bundles in optimum and OpenVINO GenAI, and compare their pictures with ours.

    python benchmarks/interop.py            # `make interop`

optimum needs transformers 4, and GenAI packages of its own, so that each gets an environment,
build/venv-optimum and build/venv-genai, which is made once. Tiny Stable Diffusion students are
saved, exported, and drawn here and there from the same noise. Prints a line for each: what was
opened, and the largest difference of 255.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
BUILD = ROOT / "build"

GENAI = ("torch==2.13.0", "numpy", "openvino-genai", "openvino-tokenizers")
OPTIMUM = ("torch==2.13.0", "optimum-onnx==0.1.*", "transformers<4.58", "onnxruntime", "diffusers")
STEPS, SEED, LIMIT = 2, 3, 1
PROMPT = "red"
LENGTH = 16
"""Tokens of a prompt; optimum's exporter tries no fewer."""

DRAW_OPTIMUM = """
import sys
from pathlib import Path
import numpy as np
import torch
import transformers
from optimum.onnxruntime import ORTDiffusionPipeline, ORTStableDiffusionPipeline

folder, out, prompt, steps, seed = sys.argv[1:]
export = not (Path(folder) / "unet" / "model.onnx").is_file()
kind = ORTStableDiffusionPipeline if export else ORTDiffusionPipeline  # it names no task itself
pipe = kind.from_pretrained(folder, export=export, use_io_binding=False)
generator = torch.Generator().manual_seed(int(seed))
drawn = pipe(prompt, num_inference_steps=int(steps), guidance_scale=1.0, generator=generator)
np.save(out, np.asarray(drawn.images[0]))
print(type(pipe).__name__, "transformers", transformers.__version__)
"""

DRAW_GENAI = """
import sys
import numpy as np
import openvino_genai

folder, out, prompt, steps, seed = sys.argv[1:]
pipe = openvino_genai.Text2ImagePipeline(folder, "CPU", INFERENCE_PRECISION_HINT="f32")
generator = openvino_genai.TorchGenerator(int(seed))
drawn = pipe.generate(
    prompt, num_inference_steps=int(steps), guidance_scale=1.0, generator=generator
)
np.save(out, drawn.data[0])
print("Text2ImagePipeline of GenAI", openvino_genai.__version__)
"""


@dataclass(frozen=True)
class Program:
    """Another program: its environment's packages, and the Python that draws with it."""

    name: str
    packages: tuple[str, ...]
    draw: str


PROGRAMS = {
    "optimum": Program("optimum", OPTIMUM, DRAW_OPTIMUM),
    "genai": Program("genai", GENAI, DRAW_GENAI),
}


def environment(folder: Path, packages: tuple[str, ...]) -> Path:
    """Make an environment with packages, unless it is there; return its Python."""
    python = folder / "bin" / "python"
    if not (folder / ".ready").is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        (folder / ".ready").touch()
    return python


def students(root: Path) -> dict[str, Path]:
    """Save tiny students by sampler and prediction."""
    from tiny import make_pipeline, make_tokenizer, save
    from transformers import CLIPTextModel

    from edgedistill.diffusion.prediction import Prediction
    from edgedistill.teachers.families.stable_diffusion import StableDiffusion
    from edgedistill.tiny.stable_diffusion import text_config

    made = {}
    for sampler, prediction in product(("renoise", "ddim"), Prediction):
        if prediction is Prediction.FLOW:
            continue
        torch.manual_seed(0)
        teacher = root / f"teacher-{prediction.value}"
        pipeline, tokenizer = make_pipeline(), make_tokenizer()
        tokenizer.model_max_length = LENGTH
        encoder = CLIPTextModel(text_config(tokenizer))
        pipeline.register_modules(tokenizer=tokenizer, text_encoder=encoder)
        pipeline.save_pretrained(teacher)
        loaded = StableDiffusion.load(str(teacher))
        name = f"{sampler} {prediction.value}"
        place = root / name / "student"
        made[name] = save(place, loaded, loaded.net, prediction, STEPS, sampler=sampler)
    return made


def ours(folder: Path) -> NDArray[np.uint8]:
    """Draw with diffusers here."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    generator = torch.Generator().manual_seed(SEED)
    drawn = pipe(PROMPT, num_inference_steps=STEPS, guidance_scale=1.0, generator=generator)
    return np.asarray(drawn.images[0])


def theirs(program: Program, folder: Path, work: Path) -> tuple[NDArray[np.uint8], str]:
    """Draw with another program in its environment; also return what it is."""
    python = environment(BUILD / f"venv-{program.name}", program.packages)
    out = work / "drawn.npy"
    command = [str(python), "-c", program.draw, str(folder), str(out), PROMPT, str(STEPS)]
    done = subprocess.run([*command, str(SEED)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{folder}: {program.name} failed:\n{done.stderr[-3000:]}")
    return np.load(out), done.stdout.strip().splitlines()[-1]


def opened(student: Path) -> Iterator[tuple[str, Program, Path | str]]:
    """Yield what is opened, by what, and its folder, or why there is none."""
    from edgedistill_export.bundle import export_student
    from edgedistill_export.layouts import LAYOUTS, check_layouts
    from edgedistill_export.layouts.pipeline import write_layout

    for name, layout in LAYOUTS.items():
        said = f"bundle in {name}'s layout"
        try:
            check_layouts(student, [(layout.target, "fp32")], name)
        except ValueError as error:
            yield said, PROGRAMS[name], str(error)
            continue
        bundle = export_student(student, layout.target, "fp32")
        yield said, PROGRAMS[name], write_layout(layout, bundle, student)
    yield "student, exported by optimum", PROGRAMS["optimum"], student


def main() -> None:
    """Compare, and exit with 1 if a picture differs."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for told, student in students(work).items():
            expected = ours(student).astype(int)
            for what, program, folder in opened(student):
                said = f"{told:14} {what:28}"
                if isinstance(folder, str):
                    print(f"{said} refused: {folder}", flush=True)
                    continue
                drawn, version = theirs(program, folder, work)
                far = int(abs(drawn.astype(int) - expected).max())
                failed |= far > LIMIT
                print(f"{said} {version}: differs by {far} of 255", flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
