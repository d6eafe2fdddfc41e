"""Memory of a run with `train.roles=copies` and with `adapters`, each in a process of its own.

    python benchmarks/training_memory.py RECIPE [key=value ...] [--steps 6] [--json FILE]

Overrides go to both; `train.adapter.rank=R` is used by adapters alone. For each:

- libraries: resident memory once everything is imported, before a recipe is read.
- training: the peak of resident memory from there to the last training step: teacher and data
  loaded, roles made, steps taken. The checkpoint and the student dir are not in it.
- run: the same peak with the checkpoint, the preview and the student dir written.
- tensors: bytes of all tensors alive after the last step, gradients and optimizer state among
  them, each storage once: no activations, no allocator, nothing of the libraries.
- trained: parameters that an optimizer moves.

The ratios adapters / copies are printed of the peaks as they are ("training", "run"), of the peaks
less "libraries", and of "tensors". Linux only, on the CPU: memory is read from /proc.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import peft  # noqa: F401  what a run imports on its way belongs to the libraries
import torch

from edgedistill import recipes
from edgedistill.runs.run import Run
from edgedistill.teachers.families import stable_diffusion  # noqa: F401  imported as peft is

MODES = ("copies", "adapters")
MIB = 2**20
PEAKS = ("training", "run")


def resident(key: str) -> int:
    """Bytes of this process: VmRSS is now, VmHWM the most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def tensor_bytes() -> int:
    """Of every tensor alive, each storage once."""
    gc.collect()
    tensors = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
    tensors += [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def measure(mode: str, name: str, overrides: list[str], steps: int) -> dict[str, int]:
    """Train in this process."""
    recipe = recipes.load(name, [*overrides, f"train.roles={mode}", f"train.steps={steps}"])
    gc.collect()
    libraries = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    found = {"libraries": libraries}
    with tempfile.TemporaryDirectory() as folder:
        run = Run(recipe, Path(folder))

        def progress(step: int, figures: dict[str, float] | None) -> None:
            if step == steps:
                found["training"] = resident("VmHWM")
                found["tensors"] = tensor_bytes()

        run.train(progress)
        found["run"] = resident("VmHWM")
        players = run.trainer.trained_players
        found["trained"] = sum(p.numel() for player in players for p in player.params)
    return found


def spawn(mode: str, args: argparse.Namespace) -> dict[str, int]:
    """The same script, in a process that measures one mode."""
    command = [sys.executable, __file__, args.recipe, *args.overrides]
    command += ["--steps", str(args.steps), "--mode", mode]
    # One arena: what threads free is found again by others, in both modes alike.
    env = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    figures: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return figures


def show(found: dict[str, dict[str, int]]) -> dict[str, float]:
    """Print both modes and the ratios, and return these."""
    copies, adapters = (found[mode] for mode in MODES)
    for mode in MODES:
        sizes = "  ".join(
            f"{key} {found[mode][key] / MIB:8.1f} MiB" for key in ("libraries", *PEAKS, "tensors")
        )
        print(f"{mode:8}  {sizes}  trained {found[mode]['trained']:,}")
    ratios = {key: adapters[key] / copies[key] for key in (*PEAKS, "tensors")}
    for key in PEAKS:
        ours, theirs = (figures[key] - figures["libraries"] for figures in (adapters, copies))
        ratios[f"{key} less libraries"] = ours / theirs
    for key, ratio in ratios.items():
        print(f"adapters / copies, {key:24} {100 * ratio:6.1f} %")
    return ratios


def main() -> None:
    """Print memory of both modes and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.mode:
        print(json.dumps(measure(args.mode, args.recipe, args.overrides, args.steps)))
        return
    found = {mode: spawn(mode, args) for mode in MODES}
    ratios = show(found)
    if args.json:
        result = {"command": sys.argv, "bytes": found, "ratios": ratios}
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
