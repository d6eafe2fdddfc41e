"""What `peers.py` measures: a pipeline loaded and drawn with in a process of its own.

    PYTHON benchmarks/peers_programs.py PROGRAM FOLDER --json FILE [...]

PROGRAM is a name in `LOADERS`, or in `EXPORTERS` with --to. The Python is that of the environment
that has the engine, so engines are imported by the functions that need them. Without --runs one
call is made and nothing of edgedistill is imported except by its own program.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

Draw = Callable[[Sequence[str], int], object]
"""Draws a picture for each prompt from a seed."""

PROMPTS = ("red apple", "a cat with heart eyes", "rocket", "birthday cake")
WARM_UP, LEAST = 3, 3
"""Calls before the clock starts, which --seconds stops too, and timed calls that it does not."""

DDIM_KEYS = {
    *("beta_start", "beta_end", "clip_sample", "num_train_timesteps", "prediction_type"),
    *("set_alpha_to_one", "steps_offset", "timestep_spacing"),
}
CHOSEN = "default"
"""Precision that a CPU's plugin chooses itself."""


def ours(args: argparse.Namespace) -> Draw:
    """Load a bundle; --steps repeats the rows of its step table, so only the time has a meaning.

    Raises:
        ValueError: If the steps are part of the bundle's one graph.
    """
    from edgedistill_runtime import Pipeline

    pipe = Pipeline.load(args.folder, threads=args.threads)
    table = pipe.manifest.steps
    if args.steps and args.steps != len(table.rows):
        if "pipeline" in pipe.graphs:
            raise ValueError(f"a fused bundle has its {len(table.rows)} steps inside")
        rows = (table.rows * args.steps)[: args.steps]
        manifest = replace(pipe.manifest, steps=replace(table, rows=rows))
        pipe = Pipeline(manifest, pipe.graphs, pipe.tokenizer)
    return lambda prompts, seed: pipe(prompts, seed=seed).images


def diffusers(args: argparse.Namespace) -> Draw:
    """Load a pipeline in torch; --compile compiles its networks at their first call."""
    torch, library = import_module("torch"), import_module("diffusers")
    torch.set_num_threads(args.threads)
    pipe = library.StableDiffusionPipeline.from_pretrained(
        args.folder, use_safetensors=True, safety_checker=None, requires_safety_checker=False
    )
    if args.compile:
        for network in (pipe.text_encoder, pipe.unet, pipe.vae.decoder):
            network.compile()
    return _called(pipe, args)


def optimum(args: argparse.Namespace) -> Draw:
    """Load what `export_optimum` wrote."""
    options = import_module("onnxruntime").SessionOptions()
    options.intra_op_num_threads = args.threads
    kind = import_module("optimum.onnxruntime").ORTStableDiffusionPipeline
    return _called(kind.from_pretrained(args.folder, session_options=options), args)


def _called(pipe: Any, args: argparse.Namespace) -> Draw:
    """Draw with a pipeline that is called as those of diffusers are."""
    generator = import_module("torch").Generator
    pipe.set_progress_bar_config(disable=True)

    def draw(prompts: Sequence[str], seed: int) -> object:
        return pipe(
            list(prompts),
            num_inference_steps=args.steps,
            guidance_scale=args.guidance,
            generator=generator().manual_seed(seed),
            output_type="np",
        ).images

    return draw


def genai(args: argparse.Namespace) -> Draw:
    """Load what `export_genai` wrote, compiled for its one size; a batch is of one prompt."""
    library = import_module("openvino_genai")
    config = json.loads((args.folder / "unet" / "config.json").read_text())
    vae = json.loads((args.folder / "vae_decoder" / "config.json").read_text())
    size = config["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)
    properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": args.threads}
    if args.precision != CHOSEN:
        properties["INFERENCE_PRECISION_HINT"] = args.precision
    if args.cache:
        properties["CACHE_DIR"] = str(args.cache)
    pipe = library.Text2ImagePipeline(str(args.folder))
    pipe.reshape(args.batch, size, size, args.guidance)
    pipe.compile("CPU", **properties)

    def draw(prompts: Sequence[str], seed: int) -> object:
        return pipe.generate(
            prompts[0],
            width=size,
            height=size,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance,
            num_images_per_prompt=len(prompts),
            generator=library.TorchGenerator(seed),
        ).data

    return draw


def graph(args: argparse.Namespace) -> Draw:
    """Open one graph that `openvino_sd15.export` made, in our runtime's session."""
    exports = import_module("openvino_sd15")
    figures = json.loads((args.folder / exports.FIGURES).read_text())
    opened = exports.session(args.folder, figures, args.threads)
    (call,) = exports.GRAPHS[figures["graph"]].calls(1)
    return lambda prompts, seed: opened(**call)


def module(args: argparse.Namespace) -> Draw:
    """Build one graph of `sd15` in torch, float32; the folder is its name."""
    torch, stages = import_module("torch"), import_module("sd15")
    torch.set_num_threads(args.threads)
    made = stages.GRAPHS[str(args.folder)].graph()

    def draw(prompts: Sequence[str], seed: int) -> object:
        with torch.inference_mode():
            return made.module(*(value[: len(prompts)] for value in made.inputs.values()))

    return draw


LOADERS: Mapping[str, Callable[[argparse.Namespace], Draw]] = {
    "ours": ours,
    "diffusers": diffusers,
    "optimum": optimum,
    "genai": genai,
    "graph": graph,
    "module": module,
}
"""Function that loads what draws, by program."""


def export_optimum(folder: Path, to: Path) -> None:
    """Export a student for ONNX Runtime by optimum."""
    kind = import_module("optimum.onnxruntime").ORTStableDiffusionPipeline
    kind.from_pretrained(str(folder), export=True).save_pretrained(to)


def export_genai(folder: Path, to: Path) -> None:
    """Export a student for OpenVINO GenAI by optimum-intel, with DDIM for a scheduler.

    GenAI's LCM scheduler knows no prediction of v, and no schedule of cosines by name. DDIM reads
    both, the schedule as numbers, and calls the network as often: its pictures are those of DDIM.
    """
    kind = import_module("optimum.intel").OVStableDiffusionPipeline
    kind.from_pretrained(str(folder), export=True, load_in_8bit=False).save_pretrained(to)
    scheduler = import_module("diffusers").LCMScheduler.from_pretrained(folder / "scheduler")
    betas, kept = scheduler.betas.tolist(), scheduler.config
    config = {key: value for key, value in kept.items() if key in DDIM_KEYS}
    config |= {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear"}
    _write(to / "scheduler" / "scheduler_config.json", config | {"trained_betas": betas})
    index = json.loads((to / "model_index.json").read_text())
    _write(to / "model_index.json", index | {"scheduler": ["diffusers", "DDIMScheduler"]})
    openvino, tokenizers = import_module("openvino"), import_module("openvino_tokenizers")
    tokenizer = import_module("transformers").CLIPTokenizer.from_pretrained(folder / "tokenizer")
    made = tokenizers.convert_tokenizer(tokenizer, with_detokenizer=False)
    openvino.save_model(made, to / "tokenizer" / "openvino_tokenizer.xml")


def _write(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2))


EXPORTERS = {"export-optimum": export_optimum, "export-genai": export_genai}


def peak_rss_mb() -> float | None:
    """Return the peak resident memory of this process in MiB, where the system has a figure."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    lines = status.read_text().splitlines()
    return next(int(s.split()[1]) / 1024 for s in lines if s.startswith("VmHWM:"))


def figures_of(draw: Draw, args: argparse.Namespace) -> dict[str, Any]:
    """Call once, or as often as --runs says; return the peak of memory and times in seconds."""
    if not args.runs:
        draw([PROMPTS[0]] * args.batch, 0)
        return {"peak_rss_mb": peak_rss_mb()}
    first = _timed(draw, 0, args.batch)
    start = time.perf_counter()
    for index in range(WARM_UP):
        if time.perf_counter() - start < args.seconds:
            _timed(draw, index, args.batch)
    taken: list[float] = []
    start = time.perf_counter()
    while len(taken) < args.runs and (
        len(taken) < LEAST or time.perf_counter() - start < args.seconds
    ):
        taken.append(_timed(draw, len(taken), args.batch))
    p50 = statistics.median(taken)
    picture = p50 / args.batch
    return {"first_s": first, "p50_s": p50, "picture_s": picture, "peak_rss_mb": peak_rss_mb()}


def _timed(draw: Draw, seed: int, batch: int) -> float:
    """Return the seconds of a call."""
    prompts = [PROMPTS[(seed + i) % len(PROMPTS)] for i in range(batch)]
    start = time.perf_counter()
    draw(prompts, seed)
    return time.perf_counter() - start


def main() -> None:
    """Load, draw and write figures, or export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", choices=[*LOADERS, *EXPORTERS])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--to", type=Path, help="folder of an export")
    parser.add_argument("--json", type=Path, help="file of figures")
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--precision", default=CHOSEN, help="of OpenVINO GenAI")
    parser.add_argument("--cache", type=Path, help="folder of OpenVINO GenAI's compiled graphs")
    args = parser.parse_args()
    if args.program in EXPORTERS:
        EXPORTERS[args.program](args.folder, args.to)
        return
    args.json.write_text(json.dumps(figures_of(LOADERS[args.program](args), args)))


if __name__ == "__main__":
    main()
