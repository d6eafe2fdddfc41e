"""What the report says, and that no user's text is markup in it."""

from __future__ import annotations

import re

import pytest
import typer.testing
from evaluations import evaluated, make_student
from jinja2 import Environment
from tiny import save

from edgedistill.cli import app
from edgedistill.common.files import write_json
from edgedistill.reporting.age import Outdated, outdated
from edgedistill.reporting.page import write_report
from edgedistill.reporting.verdict import Facts, explained, milliseconds, verdict
from edgedistill.students.folder import load_student
from edgedistill.teachers.families.mixture import Mixture
from edgedistill.tiny import make_tiny
from edgedistill.verbs.measuring import report
from edgedistill_export.bundle import ExportSettings, export_student


def figures(student: float, teacher: float, cut: float) -> dict:
    return {
        "student": {"calls": 4, "fd": student, "samples": 512},
        "teacher": {"calls": 50, "fd": teacher, "samples": 512},
        "teacher@4": {"calls": 4, "fd": cut, "samples": 512},
    }


def said(**known) -> str:
    return " ".join(verdict(Facts("emoji", 4, 50, **known)))


def test_what_is_not_known_is_said():
    text = said()
    assert "4 network calls what emoji draws in 50" in text
    for word in ("edgedistill bench", "edgedistill evaluate", "edgedistill export"):
        assert word in text


@pytest.mark.parametrize(
    ("student", "cut", "words"),
    [
        (20.5, 53.0, "keeps its teacher's quality"),
        (20.5, 20.2, "does not tell them apart"),
        (30.0, 53.0, "behind its teacher, and ahead of the teacher cut short"),
        (60.0, 53.0, "gained nothing"),
        (60.0, 12.0, "does not tell what more steps give"),
    ],
)
def test_quality_is_judged_against_the_teacher_and_the_teacher_cut_short(student, cut, words):
    text = said(evaluation=figures(student, 20.0, cut))
    assert words in text
    assert "512 samples" in text
    assert f"at the same 4 calls {cut:g}" in text.replace("calls 53.0", "calls 53")


def test_figures_have_their_intervals_and_the_teacher_its_best_solver():
    found = figures(30.0, 20.0, 53.0)
    found["teacher@4 dpm++2m"] = {"calls": 4, "fd": 28.0, "samples": 512}
    found["student"]["spread"] = {"fd_interval": 1.26, "samples": 512}
    text = said(evaluation=found)
    assert "Its FD is 30 \u00b1 1.3, the teacher's 20," in text
    assert "at the same 4 calls 28" in text
    assert "gained nothing" in text


@pytest.mark.parametrize(
    ("student", "words"),
    [
        (40.0, "1.8 times nearer than the"),
        (84.0, "1.2 times farther than the"),
        (71.0, "is about as near as the teacher cut short"),
        (79.0, "is about as near as the teacher cut short"),
        (79.5, "1.1 times farther than the"),
        (65.0, "1.1 times nearer than the"),
    ],
)
def test_open_captions_are_told_where_they_were_measured(student, words):
    found = {"schema_version": 1, **figures(0.8, 0.9, 0.8)}
    assert "many pictures" not in said(evaluation=found)
    for name, value in (("student", student), ("teacher", 24.0), ("teacher@4", 80.0)):
        found[name]["open"] = {"fd": value, "samples": 170}
    found["teacher@4 dpm++2m"] = {"calls": 4, "open": {"fd": 72.0}}
    text = said(evaluation=found)
    assert f"FD is {student:g}, the teacher's 24 and at the same 4 calls 72" in text
    assert words in text


def test_proof_and_speed():
    parity = {"passed": True, "final": {"worst": 200.0}}
    bench = {
        "speedup_over_teacher": {"student": 5.0, "bundle:a": 9.5},
        "bundle:a": {"p50_s": 0.04},
    }
    text = said(parity={"a": parity}, bench=bench, sizes={"student": 3_000_000})
    assert "The bundle a is 9.5 times as fast (40 ms a sample)." in text
    assert (
        "The bundle a passed the parity check: every sample compared is identical to the "
        "student's." in text
    )
    assert "student 3 MB" in text
    failed = said(parity={"a": {"passed": False, "final": {"worst": 9.0}}})
    assert "Below the floor of the parity check: a." in failed


def test_of_many_bundles_the_worst_and_their_number_are_told():
    """The others stand in the tiles below."""
    worst = {f"bundle-{i}": 200.0 - 11 * i for i in range(12)}
    parity = {name: {"passed": True, "final": {"worst": db}} for name, db in worst.items()}
    sizes = {"student": 9_000_000} | {name: 10**6 * (20 + i) for i, name in enumerate(worst)}
    text = said(parity=parity, sizes=sizes)
    assert (
        "All 12 bundles passed the parity check; the worst sample agrees with the student's to "
        "79.0 dB (bundle-11)." in text
    )
    assert "On disk: student 9 MB, the bundles 20 MB (bundle-0) to 31 MB (bundle-11)." in text
    assert not any(f"bundle-{i} " in text for i in range(1, 11))
    assert text.count(" dB") == 1


def test_two_bundles_are_both():
    parity = {name: {"passed": True, "final": {"worst": db}} for name, db in BOTH.items()}
    assert "Both bundles passed the parity check; the worst sample agrees with the " in said(
        parity=parity
    )


BOTH = {"a": 200.0, "b": 41.0}


def test_bundles_of_an_older_student_are_told_and_prove_nothing():
    parity = {name: {"passed": True, "final": {"worst": db}} for name, db in BOTH.items()}
    text = said(parity=parity, outdated=Outdated(bundles=("b",)))
    assert "The bundle b was made from an older student: run edgedistill export again." in text
    assert "The bundle a passed the parity check: every sample" in text
    text = said(parity=parity, outdated=Outdated(bundles=("a", "b")))
    assert "Both bundles were made from an older student: run edgedistill export again." in text
    assert "passed" not in text


def test_figures_of_an_older_student_are_told():
    bench = {"speedup_over_teacher": {"student": 5.0}, "student": {"p50_s": 2.0196}}
    known = {"bench": bench, "evaluation": figures(0.8, 0.9, 0.8)}
    assert "older" not in said(**known)
    text = said(**known, outdated=Outdated(quality=True, speed=("student",)))
    assert "(2020 ms a sample), measured on an older student: run edgedistill bench again." in text
    assert "Its quality was measured on an older student: run edgedistill evaluate again." in text


def test_the_page_marks_bundles_of_an_older_student(tmp_path):
    teacher = make_tiny("unet2d", tmp_path / "teacher")
    student = make_student(tmp_path / "run", "unet2d", teacher)
    settings = ExportSettings(prompts=[""])
    assert export_student(student, settings=settings).parent == tmp_path / "run" / "bundles"
    page = report(tmp_path / "run").read_text()
    assert "The bundle ort-fp32 passed the parity check" in page
    assert "older student" not in page
    make_student(tmp_path / "run", "unet2d", teacher, {"method": "dmd2"})
    page = report(student).read_text()
    words = "made from an older student: run edgedistill export again"
    verdict_, rest = page.split('<div class="cards">')
    assert f"The bundle ort-fp32 was {words}." in verdict_
    assert f'<b>ort-fp32</b><span class="bad">{words}</span>' in rest
    assert f'<td>ort-fp32<br><span class="bad">{words}</span></td>' in rest
    assert "passed the parity check" not in page


def test_what_holds_no_hash_is_of_unknown_age():
    bundles = [{"name": "a", "student_sha256": "1"}, {"name": "b", "student_sha256": "2"}]
    bench = {"teacher": {}, "student": {"student_sha256": "1"}, "machine": {}, "version": 1}
    assert outdated("1", [*bundles, {"name": "c"}], {}, bench) == Outdated(bundles=("b",))
    found = outdated("2", [{"name": "c"}], {"student_sha256": "1"}, bench)
    assert found == Outdated(quality=True, speed=("student",))
    assert outdated("1", [], None, None) == Outdated()


def test_milliseconds_have_plain_digits():
    assert [milliseconds(s) for s in (2.0196, 0.1, 0.0371, 0.00025)] == [
        "2020",
        "100",
        "37.1",
        "0.25",
    ]


def planar_row(within: float, smallest: float, distance: float = 0.1) -> dict:
    return {
        "calls": 4,
        "sliced_w2": distance,
        "within_3_sigma": within,
        "smallest_mode": smallest,
        "samples": 2000,
    }


def test_a_figure_of_points_that_fell_is_named_beside_a_distance_that_did_not():
    rows = {"student": planar_row(0.866, 0.9), "teacher": planar_row(0.984, 0.95)}
    text = said(evaluation=rows)
    assert "keeps its teacher's quality by this figure; it is behind by others: " in text
    assert text.count("the teacher's 0.984") == 1
    assert "smallest mode" not in text
    rows["student"] = planar_row(0.91, 0.2)
    text = said(evaluation=rows)
    assert "its smallest mode is 0.2, the teacher's 0.95." in text
    assert "within 3 sigma" not in text


def test_every_column_of_points_and_of_intervals_is_explained():
    columns = ["sliced_w2", "floor", "w2_ratio", "within_3_sigma", "smallest_mode", "rmse"]
    found = explained(columns, planar=True)
    assert len(found) == len(columns)
    assert not any("picture" in text or "pixel" in text for text in found)
    assert "pixel for pixel" in explained(["rmse", "psnr"])[0]
    for column, word in (("cmmd", "CMMD: "), ("kid_interval", "KID, +-: ")):
        (text,) = explained([column])
        assert word in text


def test_a_page_of_points_has_no_words_of_pictures(two_modes, tmp_path):
    run, mixture = tmp_path / "run", Mixture.load(str(two_modes))
    recipe = {"name": "two", "teacher": {"family": "mixture", "path": str(two_modes), "steps": 3}}
    made = mixture.spawn()
    changes = {"recipe": recipe}
    student = save(run / "student", mixture, made.net, made.prediction, 2, changes=changes)
    sha256 = load_student(student).sha256
    rows = {name: planar_row(0.9, 0.9) for name in ("teacher", "student")}
    rows["student"]["to_teacher"] = {"rmse": 0.2, "samples": 2000}
    write_json(run / "eval.json", {**rows, "student_sha256": sha256})
    times = dict.fromkeys(("load_s", "first_s", "p50_s", "p90_s", "p99_s"), 0.1)
    machine = {"processor": "Z80", "threads": 1}
    bench = {"student": times, "speedup_over_teacher": {}, "machine": machine}
    write_json(run / "bench.json", bench)
    page = report(run / "student")
    assert page == run / "report.html"
    assert not (student / "report.html").exists()
    text = re.sub("<[^>]*>", " ", page.read_text().split("</style>")[1])
    assert "Distance to the teacher&#39;s sample" in text
    assert "one sample a call" in text
    assert re.findall("picture|caption|PSNR|pixel|older student", text) == []
    write_json(run / "eval.json", {**rows, "student_sha256": "0" * 64})
    text = report(run).read_text()
    assert "Measured on an older student: run edgedistill evaluate again." in text


@pytest.mark.parametrize("family", ["unet2d", "dit", "wan"])
def test_every_family_has_a_report(family, tmp_path):
    teacher = make_tiny(family, tmp_path / "teacher")
    student = make_student(tmp_path / "run", family, teacher)
    found = evaluated(student, samples=8)
    assert found["student_sha256"] == load_student(student).sha256
    page = write_report(tmp_path / "run", tmp_path / "report.html").read_text()
    assert page.count("<figcaption>") == 0
    assert page.count('class="row"') >= 8
    assert "Farthest from the teacher" in page
    assert "What these figures compare with" in page
    assert "older student" not in page
    assert "ntervals of 95 %" not in page.split("<table>")[0]
    assert "counts as a copy" not in page.split("Farthest from the teacher")[1]
    assert "nan" not in page.replace("data:", "").split("<style>")[0].lower()


EVIL = '<script>alert("1")</script> $x_1$ [bold] {{ 7 * 7 }} \u202e \x1b[31m \x07 \x9b \u2028'


def test_text_of_users_is_text(tmp_path):
    teacher = make_tiny("stable_diffusion", tmp_path / "teacher")
    write_json(teacher / "prompts.json", {"grid": [EVIL], "train": [EVIL] * 8})
    words = {
        "method": EVIL,
        "teacher": {"name": EVIL, "path": str(teacher), "licences": [EVIL], "usage": EVIL},
    }
    student = make_student(
        tmp_path / "run", "stable_diffusion", teacher, words, name=EVIL, description=EVIL
    )
    (tmp_path / "run" / "recipe.yaml").write_text(f"# {EVIL}\n", encoding="utf-8")
    evaluated(student, samples=4)
    page = write_report(tmp_path / "run", tmp_path / "page.html").read_text()
    assert "<script" not in page
    shown = EVIL.encode("unicode_escape").decode()
    escaped = Environment(autoescape=True).from_string("{{ x }}").render(x=shown)
    assert page.count(escaped) > 6
    assert "49" not in page.split("<style>")[0]
    assert [char for char in page if not char.isprintable() and char != "\n"] == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("afile", "afile: a file; give a run dir, a student, or a folder of runs"),
        ("bundles/ort-fp32", "ort-fp32: a bundle; give a run dir, a student"),
        ("empty", "empty: no run, student or folder of runs; give a run dir"),
        ("nowhere", "nowhere: no such file or folder; give a run dir"),
    ],
)
def test_what_is_no_run_is_named_as_it_was_given(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "afile").touch()
    for folder in ("bundles/ort-fp32", "empty/x"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "bundles" / "ort-fp32" / "manifest.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    done = typer.testing.CliRunner().invoke(app, ["report", name])
    assert isinstance(done.exception, ValueError)
    (line,) = str(done.exception).splitlines()
    assert words in line
    assert "--out" not in line
    assert sorted(tmp_path.rglob("*")) == before
