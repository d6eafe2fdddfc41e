"""Runs in processes of their own that are killed, interrupted, and taken up again."""

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from signals import interruptible

from edgedistill import recipes
from edgedistill.runs.run import Run
from edgedistill.training import checkpoint
from edgedistill.training.metrics import read_metrics

STEPS, EVERY = 400, 10
# The command itself, with a shorter fit of the starting point.
PROGRAM = """
from edgedistill.teachers.families import mixture
mixture.FIT_STEPS, mixture.FIT_BATCH = 20, 64
from edgedistill.cli import main
main()
"""


def words(two_modes: Path, folder: Path) -> list[str]:
    return [
        "distill",
        "recipe=mixture-lcm",
        f"train.steps={STEPS}",
        f"train.checkpoint_every={EVERY}",
        "train.batch_size=64",
        "train.log_every=20",
        f"teacher.path={two_modes}",
        f"out={folder}",
    ]


def start(arguments: list[str], here: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=here,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=interruptible,
    )


def wait_for_a_checkpoint(process: subprocess.Popen, folder: Path) -> Path:
    for _ in range(6000):
        if newest := checkpoint.latest(folder / "checkpoints"):
            return newest
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raise AssertionError("no checkpoint in five minutes")


@pytest.fixture
def one_thread():
    """As many threads as the processes have: sums come out alike."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_killed_interrupted_and_resumed_it_ends_as_if_it_had_not_been(
    tmp_path, two_modes, quick_fit, one_thread
):
    folder = tmp_path / "run"
    command = words(two_modes, folder)
    # kill -9 at a random moment.
    process = start(command, tmp_path)
    wait_for_a_checkpoint(process, folder)
    time.sleep(random.uniform(0, 0.3))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    newest = checkpoint.latest(folder / "checkpoints")
    assert int(newest.name[-8:]) < STEPS
    # Ctrl-C, in the resumed run.
    process = start([*command, "--resume"], tmp_path)
    while checkpoint.latest(folder / "checkpoints") == newest:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()
    assert process.returncode == 130, said
    stopped = checkpoint.latest(folder / "checkpoints")
    assert f"stopped after step {int(stopped.name[-8:])}" in said
    printed = shlex.split(said.splitlines()[-1])
    assert printed == ["edgedistill", *command, "--resume"]
    # What it printed, taken up here, against a run that was left in peace.
    recipe = recipes.load("mixture-lcm", printed[3:-2])
    last = Run(recipe, folder)
    assert last.restore() == int(stopped.name[-8:])
    last.train(lambda step, figures: None)
    (tmp_path / "whole").mkdir()
    whole = Run(recipe, tmp_path / "whole")
    student = whole.train(lambda step, figures: None)
    for file in (
        Path("student/net/diffusion_pytorch_model.safetensors"),
        Path(f"checkpoints/step-{STEPS:08d}/student.safetensors"),
        Path(f"checkpoints/step-{STEPS:08d}/optim-student.safetensors"),
    ):
        ours, theirs = load_file(student.parent / file), load_file(folder / file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), file
    steps = [line["step"] for line in read_metrics(folder)]
    assert steps == list(range(20, STEPS + 1, 20))
