"""Every recipe of a public teacher: resolved, and two steps with the family made tiny."""

import pytest
import torch

from edgedistill import recipes
from edgedistill.runs.run_dir import open_run
from edgedistill.students.folder import load_student
from edgedistill.tiny import TINY

REAL = sorted(
    name
    for name in recipes.shipped()
    if "/" in recipes.load(name).teacher.path and recipes.load(name).teacher.family in TINY
)

SHORT = {
    "train.steps": 4,
    "train.batch_size": 2,
    "train.accumulate": 1,
    "train.lr_warmup": 0,
    "train.sample_every": 0,
}

FIT = {
    "sdxl-koala-700m-4step": "compress.preset=bk-sdm-small",
    "sd15-bk-tiny-4step": "compress.preset=bk-sdm-small",
}
"""What a tiny network needs besides: it has two stages of one depth."""


def overrides(name):
    given = [f"{key}={value}" for key, value in SHORT.items()]
    recipe = recipes.load(name)
    if recipe.train.roles == "adapters":
        given.append("train.adapter.rank=2")
    if recipe.compress.first_steps:
        given.append("compress.first=2")
    for key, value in (("regression", 1), ("regression_steps", 2), ("turns", 2)):
        if recipe.objective.get(key):
            given.append(f"objective.{key}={value}")
    return ["teacher.tiny=true", *given, *([FIT[name]] if name in FIT else [])]


@pytest.mark.parametrize("name", REAL)
def test_two_steps_make_a_student(name, tmp_path):
    run = open_run(recipes.load(name, overrides(name)), str(tmp_path / "run"), False)
    before = [value.clone() for value in run.student.parameters()]
    place = run.train(lambda step, figures: None)
    assert any(
        not torch.equal(a, b) for a, b in zip(before, run.student.parameters(), strict=True)
    )
    student = load_student(place)
    assert len(student.table.rows) == recipes.load(name).student.steps
    shape = (2, *student.teacher.sample_shape)
    noise = student.table.draw(shape, torch.Generator().manual_seed(0))
    drawn = student.sample(student.teacher.encode(["red", "blue"]), noise)
    assert drawn.isfinite().all()


def test_every_public_family_has_a_recipe():
    assert {recipes.load(name).teacher.family for name in REAL} == set(TINY)
