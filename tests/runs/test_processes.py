"""Two processes under accelerate train as one would on both their batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgedistill import recipes
from edgedistill.runs.run import Run

RECIPE = """
description: tiny
teacher: {{family: stable_diffusion, path: {teacher}, steps: 2}}
student: {{steps: 2}}
objective: {{name: lcm}}
compress: {{remove: [mid_block], first: 1, taps: {taps}}}
data: {{prompts: {prompts}, samples: 4}}
train: {{steps: 1, batch_size: 2, log_every: 1, checkpoint_every: 1}}
"""


@pytest.mark.parametrize("taps", ["blocks", "attention"])
def test_feature_losses_and_gradients_are_those_of_one_process(
    tiny_sd, tmp_path, monkeypatch, taps
):
    (tmp_path / "prompts.txt").write_text("red\nblue\n")
    file = tmp_path / "tiny.yaml"
    prompts = tmp_path / "prompts.txt"
    file.write_text(RECIPE.format(teacher=tiny_sd, prompts=prompts, taps=taps))
    # `accelerate launch --cpu` starts one process, whatever it is told, unless there is MPI.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["--module", "edgedistill.cli", "distill", f"recipe={file}", "out=two"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "student two/student\n"

    run = Run(recipes.load(str(file)), tmp_path / "one")
    trainer, (trained,) = run.trainer, run.trainer.trained_players
    losses = []
    for rank in (0, 1):
        monkeypatch.setattr(
            type(trainer.accelerator), "process_index", property(lambda self, rank=rank: rank)
        )
        losses.append(trained.loss_module(trainer._batch(0, 0, 0)))
    logged = json.loads((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()[0])
    for key in ("task", "output", "features"):
        assert logged[f"student/{key}"] == pytest.approx(losses[0].logs[key].item(), rel=1e-5)
    (losses[0].total / 2 + losses[1].total / 2).backward()
    torch.nn.utils.clip_grad_norm_(trained.params, trainer.config.clip)
    expected = {n: p.grad for n, p in trained.player.net.named_parameters()}
    (state,) = (tmp_path / "two" / "checkpoints").glob("*/")
    moved = load_file(next(Path(state).glob("student*.safetensors")))
    # AdamW's first step moves every weight by the rate against its gradient's sign.
    rate = trainer._lr(trained.player.optim.lr)
    for name, before in trained.player.net.named_parameters():
        gradient = expected[name]
        if gradient is None:
            continue
        step = rate * gradient / (gradient.abs() + trained.player.optim.eps)
        clear = gradient.abs() > 1e-5
        torch.testing.assert_close(
            moved[name][clear], (before - step)[clear], atol=1e-3 * rate, rtol=0
        )
