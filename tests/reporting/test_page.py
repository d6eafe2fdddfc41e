"""What the report says, and that no user's text is markup in it."""

from __future__ import annotations

import pytest
from evaluations import evaluated, make_student
from jinja2 import Environment

from edgedistill.common.files import write_json
from edgedistill.reporting.page import write_report
from edgedistill.reporting.verdict import Facts, verdict
from edgedistill.tiny import make_tiny


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
    ("student", "words"), [(40.0, "1.8 times nearer"), (84.0, "1.2 times far")]
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
    assert "The bundle a passed the parity check; its worst sample: identical." in text
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
        "All 12 bundles passed the parity check; the worst sample: 79.0 dB, of bundle-11." in text
    )
    assert "On disk: student 9 MB, the bundles 20 MB (bundle-0) to 31 MB (bundle-11)." in text
    assert not any(f"bundle-{i} " in text for i in range(1, 11))
    assert text.count(" dB") == 1


@pytest.mark.parametrize("family", ["unet2d", "dit", "wan"])
def test_every_family_has_a_report(family, tmp_path):
    teacher = make_tiny(family, tmp_path / "teacher")
    student = make_student(tmp_path / "run", family, teacher)
    evaluated(student, samples=8)
    page = write_report(tmp_path / "run", tmp_path / "report.html").read_text()
    assert page.count("<figcaption>") == 0
    assert page.count('class="row"') >= 8
    assert "Farthest from the teacher" in page
    assert "What these figures compare with" in page
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
