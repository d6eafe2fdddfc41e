"""Snapshots: a teacher in training as a pipeline in float16, to be committed and gone on from.

In the pipeline's folder lies `training.json`, {"steps": ..., "batch": ...}: what is behind its
weights. The classifier that judges pictures is kept beside the folder, so that figures of one
machine are compared with those of another by the same judge.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from common.storage import load_state
from common.training import Plan

__all__ = ["CLASSIFIER", "averaged", "keep_classifier", "replace", "restore", "take_classifier"]

STATE = "training.json"
CLASSIFIER = "classifier.safetensors"
"""Name of the classifier's file, in an output folder and beside a snapshot."""


def averaged(network: torch.nn.Module, checkpoint: Path) -> int:
    """Load the averaged weights of a trainer's checkpoint; the steps behind them.

    Raises:
        SystemExit: There is no checkpoint.
    """
    if not checkpoint.exists():
        raise SystemExit(f"{checkpoint} is missing: train first")
    state = load_state(checkpoint)
    for parameter, mean in zip(network.parameters(), state["ema"]["shadow"], strict=True):
        parameter.data.copy_(mean)
    return int(state["budget"]["steps"])


def replace(pipeline: DiffusionPipeline, place: Path, steps: int, plan: Plan) -> None:
    """Write a pipeline beside its place, then move it there."""
    partial = place.with_name(f"{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.save_pretrained(partial)
    for file in partial.rglob("config.json"):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)  # where it lay on this machine
        file.write_text(json.dumps(config, indent=2) + "\n")
    for file in partial.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes private files
    (partial / STATE).write_text(json.dumps({"steps": steps, "batch": plan.batch}) + "\n")
    if place.exists():
        shutil.rmtree(place)
    partial.replace(place)
    size = sum(f.stat().st_size for f in place.rglob("*") if f.is_file())
    print(f"snapshot: {steps} steps, {size / 2**20:.1f} MiB in {place}", flush=True)


def restore(networks: Mapping[str, torch.nn.Module], snapshot: Path, plan: Plan) -> int:
    """Load the weights of a snapshot by the names of its folders.

    Returns:
        The steps behind them at this plan's batch; 0, and nothing is loaded, if there is none.
    """
    if not (snapshot / STATE).exists():
        return 0
    for name, network in networks.items():
        (file,) = (snapshot / name).glob("*.safetensors")
        network.load_state_dict({k: v.float() for k, v in load_file(file).items()})
    state = json.loads((snapshot / STATE).read_text())
    print(f"snapshot: goes on at step {state['steps']}", flush=True)
    return int(state["steps"] * state["batch"] // plan.batch)


def keep_classifier(work: Path, folder: Path) -> None:
    """Write the classifier in an output folder to `folder` in float16, if there is one."""
    if not (work / CLASSIFIER).exists():
        return
    weights = load_file(work / CLASSIFIER)
    partial = folder / f"{CLASSIFIER}.partial"
    save_file({name: weight.half() for name, weight in weights.items()}, partial)
    partial.chmod(0o644)  # safetensors writes private files
    partial.replace(folder / CLASSIFIER)


def take_classifier(work: Path, folder: Path) -> bool:
    """Copy the classifier that `folder` keeps to an output folder; whether there was one."""
    if not (folder / CLASSIFIER).exists():
        return False
    work.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / CLASSIFIER, work / CLASSIFIER)
    return True
