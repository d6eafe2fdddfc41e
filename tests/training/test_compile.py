"""Compiled networks: the numbers, keys and checkpoints of a run are those of one without."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from edgedistill import recipes
from edgedistill.common.compilers import check_compiler
from edgedistill.diffusion import compiling
from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.networks.planar import PlanarNet
from edgedistill.networks.taps import Taps
from edgedistill.runs.run_dir import open_run
from edgedistill.training import checkpoint

STEPS = 3
GAN = ["objective.gan_weight=0.1", "objective.warmup_steps=0", "objective.turns=1"]
PLANAR = ["train.batch_size=8", "objective.pretraining_steps=0", "objective.regression_weight=0"]
"""Of dmd2, so that all of its losses take part in the first steps."""


def trained(folder, name, *words, resume=False):
    """Losses and gradients of every step, the run, and the keys of the state it trained."""
    few = [f"train.steps={STEPS}", "train.log_every=1", "train.checkpoint_every=1", *words]
    recipe = recipes.load(name, few)
    run = open_run(recipe, str(folder), resume, folder.parent, typed=words if resume else None)
    if resume:
        assert run.restore() == STEPS - 1
    rows = []
    run.train(lambda step, figures: rows.append(figures))
    left = ("seconds", "steps_per_second")
    return [{k: v for k, v in row.items() if k not in left} for row in rows], run


def compare(tmp_path, name, *words, least):
    """Train without and with train.compile; at least so many graphs were compiled."""
    from torch._dynamo.utils import counters

    plain, whole = trained(tmp_path / "plain", name, *words)
    torch._dynamo.reset()
    counters.clear()
    fast, made = trained(tmp_path / "fast", name, *words, "train.compile=true")
    assert counters["stats"]["unique_graphs"] >= least
    assert len(fast) == len(plain) == STEPS
    for one, other in zip(fast, plain, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    states = [run.student.state_dict() for run in (whole, made)]
    assert states[0].keys() == states[1].keys()
    for folder in (f"checkpoints/step-{STEPS:08d}", "student"):
        for file in (tmp_path / "plain" / folder).rglob("*.safetensors"):
            other = tmp_path / "fast" / file.relative_to(tmp_path / "plain")
            assert load_file(file).keys() == load_file(other).keys()


@pytest.mark.parametrize(
    ("name", "words", "least"),
    [
        ("mixture-lcm", ["train.batch_size=8"], 2),
        ("mixture-dmd2", [*PLANAR, *GAN], 3),
    ],
)
def test_planar_networks_learn_the_same(tmp_path, quick_fit, two_modes, name, words, least):
    if shutil.which("g++") is None:
        pytest.skip("networks are compiled by g++")
    compare(tmp_path, name, f"teacher.path={two_modes}", *words, least=least)
