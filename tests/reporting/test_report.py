"""The report's pictures: latency against quality, and points."""

import base64
import json
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure

from edgedistill.common.axes import log_scale
from edgedistill.common.pictures import scatter
from edgedistill.reporting import charts
from edgedistill.reporting.charts import curves, tradeoff


def write(run, times, figures):
    (run / "bench.json").write_text(json.dumps(times))
    (run / "eval.json").write_text(json.dumps(figures))


def test_bundles_with_both_figures_are_drawn(tmp_path):
    assert tradeoff(tmp_path) is None
    times = {"schema_version": 1, "student": {"p50_s": 0.1}, "bundle:a": {"p50_s": 0.03}}
    write(tmp_path, times, {"student": {"fd": 1.0}})
    assert tradeoff(tmp_path) is None
    write(tmp_path, times, {"student": {"fd": 1.0}, "bundle:a": {"fd": 1.1}, "teacher@4": {}})
    head, _, data = (tradeoff(tmp_path) or "").partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data).startswith(b"\x89PNG")


def test_points_of_the_plane_have_no_fd(tmp_path):
    write(tmp_path, {"bundle:a": {"p50_s": 0.03}}, {"bundle:a": {"w2_ratio": 1.1}})
    assert tradeoff(tmp_path) is None


@pytest.mark.parametrize("which", ["x", "y"])
def test_a_logarithmic_axis_has_plain_digits(which):
    axes = Figure().subplots()
    places = [13.0, 82.6, 516.0], [1, 2, 3]
    axes.plot(*(places if which == "x" else places[::-1]))
    log_scale(axes, which)
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    axes.figure.draw_without_rendering()
    ticks = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
    assert [each.get_text() for at, each in ticks if low <= at <= high][1:3] == ["50", "100"]
    assert not any("$" in each.get_text() for each in axis.get_ticklabels(which="both"))


@pytest.mark.parametrize("ends", [(2.0, 12000.0), (0.5, 90000.0), (20.0, 900.0)])
def test_labels_of_a_logarithmic_axis_stand_apart(ends):
    """Two panels side by side, as in the chart of latencies."""
    figure = Figure(figsize=(10, 2.7), layout="constrained")
    axes, _ = figure.subplots(1, 2)
    axes.barh([0, 1], ends)
    log_scale(axes)
    axes.set_xlim(ends[0] / 3, ends[1] * 6)
    figure.draw_without_rendering()
    low, high = axes.get_xlim()
    shown = [
        label.get_window_extent()
        for at, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
        if low <= at <= high
    ]
    assert len(shown) >= 3
    assert all(a.x1 + 4 < b.x0 for a, b in pairwise(shown))


def test_training_figures_are_over_training_steps(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(charts, "figure_uri", lambda figure: drawn.append(figure) or "")
    lines = [{"step": step, "student/loss": 1.0} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curves(tmp_path)
    assert drawn[0].get_supxlabel() == "training steps"


def test_points_of_one_number_are_drawn_on_a_line():
    axes = scatter(np.array([[-1.0], [2.0]], np.float32)).axes[0]
    assert axes.collections[0].get_offsets().tolist() == [[-1, 0], [2, 0]]


def test_clouds_that_stand_side_by_side_have_the_same_axes():
    points = np.array([[0.5, 1.0], [9.0, 9.0]], np.float32)
    limits = []
    for few in (points, points[:1]):
        figure = scatter(few, points, extent=10)
        figure.draw_without_rendering()
        limits.append([*figure.axes[0].get_xlim(), *figure.axes[0].get_ylim()])
    assert limits[0] == pytest.approx(limits[1])
    assert limits[0][:2] == pytest.approx([-10, 10], rel=0.1)
