"""The benchmark of methods on the example teachers: its recipes, and its figures of variety."""

import itertools
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from edgedistill.recipes import resolve

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from methods_teachers import KINDS, METHODS, Row, spread, within


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [4, 1])
def test_each_method_has_a_recipe_for_each_teacher(kind, method, steps):
    own = {"teacher": {"path": "folder"}, "student": {"steps": steps}, "name": method}
    found = resolve(
        OmegaConf.to_container(OmegaConf.merge(KINDS[kind].recipe, METHODS[method], own))
    )
    assert (found.objective["name"], found.student.steps) == (method, steps)


def test_variety_is_that_of_pairs():
    features = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))

    def by_pairs(rows):
        gaps = [
            (rows[i] - rows[j]).square().sum()
            for i, j in itertools.combinations(range(len(rows)), 2)
        ]
        return float(torch.stack(gaps).mean().sqrt())

    assert spread(features) == pytest.approx(by_pairs(features))
    prompts = ["a", "b", "c"] * 3
    groups = [by_pairs(features[k::3]) ** 2 for k in range(3)]
    assert within(features, prompts) == pytest.approx((sum(groups) / 3) ** 0.5)
    alone = [str(i) for i in range(9)]
    assert within(features, alone) == pytest.approx(by_pairs(features))


def test_a_line_has_the_columns_of_the_heading():
    row = Row("lcm-4", 4, 1.5, 0.25, 0.875, 0.0125, 0.75, 4.25)
    assert row.text().split() == [
        "lcm-4",
        "4",
        "1.50",
        "+-",
        "0.25",
        "0.875",
        "+-",
        "0.013",
        "0.750",
        "4.2",
    ]
