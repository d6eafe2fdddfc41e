import json
import subprocess
import sys

import pytest

from edgedistill_runtime.bench import main, measure, summary

KEYS = {"load_s", "first_s", "p50_s", "p90_s", "p99_s", "stages", "peak_rss_mb"}


def test_summary_takes_percentiles_after_the_warm_up():
    totals = iter([100.0, 50.0, 50.0, 50.0, *range(1, 101)])

    def draw(index):
        total = float(next(totals))
        return {"denoiser": 0.75 * total, "other": 0.25 * total, "total": total}

    figures = summary(draw, 100)
    assert figures["first_s"] == 100
    assert figures["p50_s"] == pytest.approx(50.5)
    assert figures["p90_s"] == pytest.approx(90.1)
    assert figures["p99_s"] == pytest.approx(99.01)
    assert figures["stages"]["denoiser"] == pytest.approx(
        {"p50_s": 37.875, "p90_s": 67.575, "p99_s": 74.2575}
    )
    assert figures["stages"]["other"]["p50_s"] == pytest.approx(12.625)
    assert set(figures["stages"]) == {"denoiser", "other"}


def test_measures_a_bundle(picture_bundle):
    figures = measure(picture_bundle, 5, threads=1)
    assert set(figures) >= KEYS
    assert 0 < figures["p50_s"] <= figures["p90_s"] <= figures["p99_s"]
    assert sum(stage["p50_s"] for stage in figures["stages"].values()) < 3 * figures["p99_s"]


def test_measures_a_planar_bundle(planar_bundle):
    assert set(measure(planar_bundle, 2, threads=1)["stages"]) >= {"denoiser", "other"}


def test_command_line(planar_bundle, tmp_path):
    file = tmp_path / "bench.json"
    command = [sys.executable, "-m", "edgedistill_runtime.bench", str(planar_bundle)]
    subprocess.run([*command, "--runs", "2", "--json", str(file)], check=True)
    assert set(json.loads(file.read_text())) >= KEYS


def test_command_line_names_what_is_wrong(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "manifest.json" in error
    assert error.count("\n") == 1


def test_peak_memory_grows_with_what_is_held():
    """In a process of its own, whose peak no other test has raised."""
    code = (
        "from edgedistill_runtime.bench import peak_rss_mb; before = peak_rss_mb();"
        "held = bytearray(b'\\1' * (64 << 20));"
        "assert before is None or peak_rss_mb() - before > 30"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
