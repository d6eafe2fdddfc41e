"""Is my loss normal: what the report says of logged figures."""

import math
import re

import numpy as np
import pytest
from PIL import Image

from edgedistill import recipes
from edgedistill.reporting.health import CHECKS, Check, Finding, findings, sparkline
from edgedistill.reporting.page import write_report
from edgedistill.runs.run import Run

RATIO = Check("ratio", "lag", 0.5, 2.0, "too far", "nowhere", over="teacher_lag")


def lines(**figures):
    """Logs of twenty intervals; the player `student` logs each."""
    count = 20
    logged = {k: v if isinstance(v, list) else [v] * count for k, v in figures.items()}
    return [
        {"step": 50 * i, **{f"student/{k}": v[i] for k, v in logged.items()}} for i in range(count)
    ]


def test_what_counts_is_the_mean_of_the_last_tenth():
    found = Finding(RATIO, "student", [9.0] * 18 + [1.0, 2.0])
    assert found.now == 1.5
    assert found.healthy
    assert not Finding(RATIO, "student", [1.0] * 19 + [9.0]).healthy
    assert not Finding(RATIO, "student", [1.0] * 19 + [math.nan]).healthy


def test_a_ratio_is_of_the_lines_that_have_both():
    logged = [{"step": 1, "student/lag": 5.0}, *lines(lag=3.0, teacher_lag=2.0)]
    assert RATIO.series(logged, "student") == [1.5] * 20


def test_a_run_with_healthy_figures_has_none_outside():
    healthy = lines(lag=0.88, teacher_lag=0.879, mean_drift=0.9, std_ratio=1.0, matching=0.4)
    found = findings(healthy)
    assert {f.check.key for f in found} >= {"lag", "mean_drift", "std_ratio"}
    assert all(f.healthy for f in found)


@pytest.mark.parametrize(
    ("figures", "key"),
    [
        ({"lag": 1.2, "teacher_lag": 0.9}, "lag"),
        ({"std_ratio": 0.5}, "std_ratio"),
        ({"mean_drift": 9.0}, "mean_drift"),
        ({"accuracy": 0.999}, "accuracy"),
        ({"fake_error": -1.8}, "fake_error"),
    ],
)
def test_a_sick_figure_is_named(figures, key):
    (found,) = (f for f in findings(lines(**figures)) if f.check.key == key)
    assert not found.healthy


def test_the_spread_of_x0_says_nothing_of_deterministic_steps():
    sick = lines(std_ratio=0.5)
    assert findings(sick, "ddim") == []
    assert not findings(sick, "renoise")[0].healthy


def test_a_run_without_such_figures_has_no_findings():
    assert findings(lines(loss=1.0, grad_norm=0.5)) == []
    assert findings([]) == []


def test_every_check_says_what_to_do_and_where_its_range_is_from():
    for check in CHECKS:
        assert check.low < check.high
        assert check.outside
        assert check.measured


def test_the_course_is_drawn_within_its_box_over_the_range():
    text = sparkline(Finding(RATIO, "student", [0.0, 1.0, math.nan, 4.0]))
    (points,) = re.findall(r'points="(.*?)"', text)
    places = [tuple(map(float, pair.split(","))) for pair in points.split()]
    assert [x for x, _ in places] == [0, 80, 160]
    heights = [y for _, y in places]
    assert 0 < heights[2] < heights[1] < heights[0] < 32
    box = text.split("<rect")[1]
    top, height = (float(re.search(rf'{k}="(.*?)"', box)[1]) for k in ("y", "height"))
    assert heights[2] < top < heights[1] < top + height < heights[0]


def silent(*args):
    pass


def test_a_run_on_pictures_draws_what_each_role_sees(tmp_path, tiny_sd):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("red\nblue\n")
    overrides = [
        *("train.steps=2", "train.batch_size=2", "train.sample_every=1", "objective.turns=1"),
        *("teacher.steps=2", "data.samples=2", "student.steps=2", "train.log_every=1"),
        *(f"teacher.path={tiny_sd}", f"data.prompts={prompts}"),
    ]
    folder = tmp_path / "run"
    folder.mkdir()
    Run(recipes.load("emoji-dmd2", overrides), folder).train(silent)
    names = [f"roles-0000000{step}.png" for step in (1, 2)]
    first, last = (np.asarray(Image.open(folder / "samples" / name)) for name in names)
    frame = (first.shape[1] - 2) // 8
    assert first.shape == (4 * frame + 2, 8 * frame + 2, 3)
    assert not np.array_equal(first, last)
    page = write_report(folder, tmp_path / "report.html").read_text()
    assert "Is my loss normal?" in page
    assert "One noised sample" in page
    assert page.count('<svg class="course"') == 4
