"""Verbs ask for the place of what they write before they work, and leave no half of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from heard import hearing
from tiny import save

from edgedistill.common import progress
from edgedistill.diffusion.prediction import Prediction
from edgedistill.draw.generate import generate
from edgedistill.evaluation import run as evaluation
from edgedistill.networks.planar import PlanarNet
from edgedistill.reporting.page import write_report
from edgedistill.students.folder import load_student
from edgedistill.teachers.families.mixture import Mixture


@pytest.fixture
def student(two_modes, tmp_path) -> Path:
    torch.manual_seed(0)
    teacher = Mixture.load(str(two_modes))
    return save(tmp_path / "run" / "student", teacher, PlanarNet(width=16), Prediction.V, steps=2)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def too_late(*arguments, **choices):
    pytest.fail("work had begun")


@pytest.fixture
def evaluate(student, two_modes, monkeypatch):
    def call(place=None):
        recipe = {"name": "mine", "teacher": {"family": "mixture", "path": str(two_modes)}}
        found = evaluation.evaluation_recipe(recipe)
        monkeypatch.setattr(evaluation, "evaluation_recipe", lambda given: found)
        meter = progress.Bar("evaluate", 1, 0, None)
        return evaluation.evaluate_subjects([str(student)], 64, None, place, meter)

    return call


def test_evaluate_asks_for_its_place_first(student, evaluate, monkeypatch):
    (student.parent / "eval.json").mkdir()
    monkeypatch.setattr(evaluation, "load_teacher", too_late)
    with pytest.raises(ValueError, match=r"eval\.json: cannot write there: Is a directory"):
        evaluate()
    assert names(student.parent) == ["eval.json", "student"]


def test_figures_go_into_the_student_and_change_nothing_of_it(student, evaluate, capsys):
    before = load_student(student).sha256
    results, file = evaluate()
    assert file == student.parent / "eval.json"
    again = load_student(student)
    assert again.info.evaluation == results["student"]
    assert again.sha256 == before
    assert names(student.parent) == ["eval.json", "student"]


def test_the_report_asks_for_its_place_first(student, monkeypatch):
    (student.parent / "report.html").mkdir()
    line = r"report\.html: cannot write there: Is a directory"
    with hearing(too_late), pytest.raises(ValueError, match=line):
        write_report(student.parent, student.parent / "report.html")
    assert names(student.parent) == ["report.html", "student"]


@pytest.mark.parametrize("name", ["a.npy", "a.png"])
def test_generate_names_a_file_that_could_not_be_written_and_leaves_nothing(
    student, tmp_path, monkeypatch, name
):
    out = tmp_path / "drawn" / name
    generate(str(student), None, seed=1, count=4, out=out)
    whole = out.read_bytes()

    def full(*arguments, **choices):
        arguments[0].write_bytes(b"half")
        raise OSError("1024 requested and 12 written")

    monkeypatch.setattr(np, "save", full)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, *given, **_: full(*given))
    with pytest.raises(ValueError, match=rf"{name}: cannot write there: requested and 12 written"):
        generate(str(student), None, seed=2, count=4, out=out)
    assert out.read_bytes() == whole
    assert names(out.parent) == [name]
