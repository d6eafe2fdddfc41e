"""Tiny teachers are planned as they are, and not as the teacher that they stand for."""

import json
import re

import pytest
import torch

from edgedistill import recipes
from edgedistill.planning.costs import costs
from edgedistill.planning.memory import Launch
from edgedistill.planning.networks import planned_networks
from edgedistill.planning.report import plan
from edgedistill.runs.run_dir import open_run
from edgedistill.teachers import load_teacher
from edgedistill.tiny import TINY

RECIPES = {
    "dit": "dit-imagenet-1step",
    "flux": "flux-4step-lora",
    "pixart": "pixart-4step",
    "sana": "sana-1step",
    "sd3": "sd3-4step",
    "sdxl": "sdxl-1step",
    "stable_diffusion": "sd15-4step",
    "unet2d": "cifar10-1step",
    "wan": "wan-4step",
}
TRY = ["teacher.tiny=true", "train.batch_size=2"]


def test_every_family_with_a_tiny_teacher_is_tried():
    assert RECIPES.keys() == TINY.keys()


@pytest.mark.parametrize("family", RECIPES)
def test_a_tiny_teacher_is_planned_with_its_own_network_and_inputs(family):
    words = ["train.base=fp32"] if family == "flux" else []
    planned = planned_networks(recipes.load(RECIPES[family], [*TRY, *words]))
    teacher = load_teacher(family, planned.recipe.teacher.path)
    own = sum(p.numel() for p in teacher.denoiser.net.parameters())
    assert sum(p.numel() for p in planned.networks[planned.core].parameters()) == own < 1e6
    inputs = planned.inputs
    assert (inputs.latent or inputs.sample) == teacher.sample_shape
    assert torch.zeros(inputs.sample).numel() == torch.zeros(teacher.sample_shape).numel()
    for name, value in teacher.encode([*teacher.prompts[:1], ""][:1]).items():
        assert inputs.cond[name].numel() == value.numel()
    batch = planned.batch(0)
    assert planned.student.net(batch.x0, torch.zeros(2, device="meta"), **batch.cond).is_meta


def test_its_costs_are_not_those_of_the_teacher_that_it_stands_for():
    found = costs(recipes.load("sd15-4step", TRY), Launch())
    parameters = found.parameters["teacher"]
    assert parameters["denoiser"] == 249_268  # and 859,520,964
    assert found.disk["teacher"] == 4 * sum(parameters.values())
    assert found.memory.total < 1e8
    assert found.flops["teacher_call"] < 1e7
    assert found.samples["made"] == 0  # it has data of its own


def test_a_device_is_compared_with_the_tiny_teacher():
    _, verdict = plan(["recipe=sd15-4step", *TRY], "24MB")
    assert verdict.fits
    _, verdict = plan(["recipe=sd15-4step", *TRY], "2MB")
    assert not verdict.fits


def test_a_run_names_its_tiny_teacher(tmp_path, said):
    recipe = recipes.load("cifar10-1step", [*TRY, "train.steps=1"])
    run = open_run(recipe, str(tmp_path / "run"), False, runs=tmp_path)
    assert run.teacher.name == "tiny-unet2d"
    assert re.search(r"  teacher tiny-unet2d: [\d,]+ parameters$", said[0])
    student = run.train(lambda *_: None)
    assert json.loads((student / "student.json").read_text())["teacher"]["name"] == "tiny-unet2d"


def test_a_run_with_an_older_tiny_teacher_keeps_it(tmp_path):
    recipe = recipes.load("cifar10-1step", [*TRY, "train.steps=1"])
    run = open_run(recipe, str(tmp_path / "run"), False, runs=tmp_path)
    folder, old = run.folder, run.folder / "teacher"
    (folder / "tiny-unet2d").rename(old)
    file = folder / "recipe.yaml"
    file.write_text(file.read_text().replace(str(folder / "tiny-unet2d"), str(old)))
    again = open_run(recipe, str(folder), True, runs=tmp_path)
    assert again.teacher.path == str(old)
    assert not (folder / "tiny-unet2d").exists()
