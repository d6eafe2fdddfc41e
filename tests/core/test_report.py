"""The report's picture of latency against quality."""

import base64
import json

from edgedistill.report.page import _tradeoff


def write(run, times, figures):
    (run / "bench.json").write_text(json.dumps(times))
    (run / "eval.json").write_text(json.dumps(figures))


def test_bundles_with_both_figures_are_drawn(tmp_path):
    assert _tradeoff(tmp_path) is None
    times = {"schema_version": 1, "student": {"p50_s": 0.1}, "bundle:a": {"p50_s": 0.03}}
    write(tmp_path, times, {"student": {"fd": 1.0}})
    assert _tradeoff(tmp_path) is None
    write(tmp_path, times, {"student": {"fd": 1.0}, "bundle:a": {"fd": 1.1}, "teacher@4": {}})
    head, _, data = (_tradeoff(tmp_path) or "").partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data).startswith(b"\x89PNG")


def test_points_of_the_plane_have_no_fd(tmp_path):
    write(tmp_path, {"bundle:a": {"p50_s": 0.03}}, {"bundle:a": {"w2_ratio": 1.1}})
    assert _tradeoff(tmp_path) is None
