import json
import os
import subprocess
import sys
from io import StringIO
from shutil import copytree

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from edgedistill.students.folder import load_student
from edgedistill_export import bench as benching
from edgedistill_export.bench import chart, run_bench, subjects_of, tables
from edgedistill_export.bench_subjects import BenchSubject, find_subjects, home_of
from edgedistill_runtime.machine import busy_cores

KEYS = {"load_s", "first_s", "p50_s", "p90_s", "p99_s", "stages", "peak_rss_mb"}


def figures(p50, **stages):
    times = dict.fromkeys(("load_s", "first_s", "p90_s", "p99_s"), 2 * p50)
    spread = {stage: {"p50_s": t, "p90_s": 2 * t, "p99_s": 3 * t} for stage, t in stages.items()}
    return {**times, "p50_s": p50, "stages": spread, "peak_rss_mb": 100.0}


RESULTS = {
    "schema_version": 1,
    "teacher": figures(0.5, text_encoder=0.01, denoiser=0.45, decoder=0.02, other=0.02),
    "bundle:ort-fp32": figures(0.025, text_encoder=0.001, denoiser=0.02, decoder=0.004),
    "speedup_over_teacher": {"bundle:ort-fp32": 20.0},
    "machine": {},
}


def test_subjects_are_found_in_order_with_the_students_teacher(
    tiny_sd, student_dir, bundle, planar_dir, tmp_path
):
    other = copytree(bundle, tmp_path / "ort-fp32")
    found = find_subjects([bundle, student_dir, other])
    assert [s.name for s in found] == [
        "teacher",
        "student",
        "bundle:ort-fp32",
        "bundle:ort-fp32-2",
    ]
    assert found[0] == BenchSubject(name="teacher", path=str(tiny_sd), steps=2, guidance=3.0)
    assert [s.name for s in find_subjects([planar_dir])] == ["student"]


def test_a_folder_that_is_named_twice_is_one_subject(student_dir, bundle, monkeypatch):
    monkeypatch.chdir(bundle)
    found = find_subjects([bundle, student_dir, ".", student_dir, f"{bundle}/../{bundle.name}"])
    assert [s.name for s in found] == ["teacher", "student", "bundle:ort-fp32"]


def test_subjects_hold_the_hash_of_their_student(student_dir, bundle):
    sha256 = load_student(student_dir).sha256
    assert [s.student for s in find_subjects([student_dir, bundle])] == ["", sha256, sha256]


def test_a_run_dir_brings_its_bundles_along(student_dir, bundle, tmp_path):
    run = tmp_path / "run"
    (run / "bundles").mkdir(parents=True)
    (run / "student").symlink_to(student_dir)
    for name in ("ort-int8", "ort-fp32"):
        copytree(bundle, run / "bundles" / name)
    names = [subject.name for subject in find_subjects([run])]
    assert names == ["teacher", "student", "bundle:ort-fp32", "bundle:ort-int8"]


def test_a_folder_that_is_neither_is_named(tmp_path):
    with pytest.raises(ValueError, match="neither a bundle"):
        find_subjects([tmp_path])


def test_student_and_bundle_run_in_processes_of_their_own(student_dir, bundle, monkeypatch):
    monkeypatch.setattr(benching, "BEAT", 600.0)  # a slow machine shows signs of life
    seen = []
    subjects = find_subjects([student_dir, bundle])
    results = run_bench(
        subjects, runs=2, threads=1, progress=lambda done, total, name: seen.append((done, name))
    )
    names = ["teacher", "student", "bundle:ort-fp32"]
    assert seen == [*enumerate(names), (3, "done")]
    assert list(subjects_of(results)) == names
    for result in subjects_of(results).values():
        assert set(result) >= KEYS
        assert set(result["stages"]) == {"text_encoder", "denoiser", "decoder", "other"}
        assert result["stages"]["denoiser"]["p50_s"] > 0
    assert results["teacher"]["steps"] == 2
    kept = {name: row.get("student_sha256") for name, row in subjects_of(results).items()}
    sha256 = load_student(student_dir).sha256
    assert kept == {"teacher": None, "student": sha256, "bundle:ort-fp32": sha256}
    assert results["speedup_over_teacher"]["bundle:ort-fp32"] > 1
    json.dumps(results, allow_nan=False)


def test_a_broken_subject_is_reported_in_its_own_words(tmp_path):
    broken = BenchSubject(name="bundle:x", path=str(tmp_path), bundle=True)
    with pytest.raises(ValueError, match=r"bundle:x: .*manifest\.json: no such file"):
        run_bench([broken], runs=1)


def test_tables_show_milliseconds_and_speed_up_in_80_columns():
    out = StringIO()
    console = Console(file=out, width=80)
    for table in tables(RESULTS):
        console.print(table)
    lines = out.getvalue().splitlines()
    rows = [line.split() for line in lines if line.strip().startswith("bundle:ort-fp32")]
    assert rows[0] == ["bundle:ort-fp32", "50", "50", "25", "50", "50", "100", "20.0x"]
    assert " ".join(rows[1]) == "bundle:ort-fp32 1 / 2 / 3 20 / 40 / 60 4 / 8 / 12 -"


def test_chart_is_a_picture(tmp_path):
    chart(RESULTS, tmp_path / "bench.png")
    with Image.open(tmp_path / "bench.png") as picture:
        assert picture.width > 1000
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 5


def test_a_total_has_the_colour_of_no_stage():
    axes = Figure().add_subplot()
    benching._draw_totals(axes, RESULTS)
    totals = {to_hex(bar.get_facecolor()) for bar in axes.patches}
    assert len(totals) == 1
    assert totals.isdisjoint(colour for _, colour in benching._STAGES.values())


def test_figures_belong_to_the_run_that_all_subjects_are_of(tmp_path, monkeypatch):
    for run in ("one", "two"):
        (tmp_path / run / "student").mkdir(parents=True)
        (tmp_path / run / "student" / "student.json").touch()
    monkeypatch.chdir(tmp_path)
    one = ["one/student", "one/bundles/ort-fp32", tmp_path / "one" / "bundles" / "web-fp16"]
    assert home_of(one) == tmp_path / "one"
    assert home_of([tmp_path / "one"]) == tmp_path / "one"
    assert home_of([tmp_path / "one", *one]) == tmp_path / "one"
    assert home_of([*one, "two/student"]) is None
    assert home_of(["elsewhere/ort-fp32"]) is None


def test_a_busy_machine_is_told(monkeypatch, caplog):
    caplog.set_level("WARNING", "edgedistill_export")
    for busy, told in ((None, 0), (0.01, 0), (float(os.cpu_count()), 1)):
        caplog.clear()
        monkeypatch.setattr(benching, "busy_cores", lambda busy=busy: busy)
        benching.warn_if_busy()
        assert len(caplog.records) == told
    assert "times here are too long" in caplog.text
    found = busy_cores(0.05)
    assert found is None or 0 <= found <= os.cpu_count()


def test_a_long_subject_shows_signs_of_life_and_ends_with_its_parent(monkeypatch):
    monkeypatch.setattr(benching, "BEAT", 0.05)

    def start(program):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, "-c", program], **pipes)

    beats = []
    slow = start("import sys, time; time.sleep(0.5); sys.exit('last words')")
    assert benching._waited(slow, beats.append) == "last words\n"
    assert len(beats) >= 3
    assert beats == sorted(beats)

    def interrupted(seconds):
        raise KeyboardInterrupt

    endless = start("import time; time.sleep(600)")
    with pytest.raises(KeyboardInterrupt):
        benching._waited(endless, interrupted)
    assert endless.poll() is not None
