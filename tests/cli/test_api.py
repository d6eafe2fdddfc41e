"""`import edgedistill as ed`: each verb as a function, with objects that show themselves."""

import subprocess
import sys

import pytest
from heard import hearing

import edgedistill as ed


@pytest.fixture(scope="module")
def trained(tmp_path_factory, two_modes):
    folder = tmp_path_factory.mktemp("api")
    words = {"train.steps": 3, "train.batch_size": 16, "teacher.path": str(two_modes)}
    recipe = ed.load_recipe("mixture-lcm", **words)
    seen, said = [], []
    with hearing(said.append):
        run = ed.distill(recipe, folder / "run", progress=lambda step, _: seen.append(step))
    return run, seen, said


def test_importing_it_imports_nothing_heavy():
    code = (
        "import sys, edgedistill; edgedistill.__version__;"
        "sys.exit(bool({'torch', 'numpy', 'typer', 'yaml'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_name_is_there():
    for name in ed.__all__:
        assert callable(getattr(ed, name))
    assert set(ed.__all__) <= set(dir(ed))
    assert ed.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        _ = ed.distil


def test_overrides_are_python_values():
    recipe = ed.load_recipe(
        "mixture-lcm", ["seed=3"] * 0, **{"train.steps": 7, "data.prompts": None}
    )
    assert (recipe.train.steps, recipe.data.prompts) == (7, None)
    assert ed.load_recipe("mixture-lcm", name="mine").name == "mine"
    with pytest.raises(ValueError, match=r"unknown key train\.step"):
        ed.load_recipe("mixture-lcm", **{"train.step": 7})


def test_a_run_has_its_student_metrics_and_pictures(trained):
    run, seen, said = trained
    assert seen[-1] == 3
    assert said[0].startswith(f"run {run.folder}  method lcm")
    assert run.product == run.folder / "student"
    assert run.metrics[-1]["step"] == 3
    assert run.samples[-1].name == "step-00000003.png"
    assert "data:image/png;base64," in run._repr_html_()
    assert repr(run) == f"TrainedRun({str(run.folder)!r}, product='student')"


def test_a_student_draws_and_becomes_a_bundle_that_draws_the_same(trained):
    student = trained[0].student
    assert (student.steps, student.info.family) == (4, "mixture")
    drawn = student.samples(seed=5, count=6)
    assert drawn.shape == (6, 2)
    bundle = student.export(target="ort", precision="fp32")
    assert abs(bundle.samples(seed=5, count=6) - drawn).max() < 1e-4
    assert bundle.manifest.target == "ort"
    assert ed.load_bundle(bundle.path).size_mb == bundle.size_mb > 0
    assert repr(bundle).startswith("Bundle(")
    assert "4 steps" in repr(ed.load_student(trained[0].folder))
    with pytest.raises(ValueError, match="unknown target 'orth'"):
        student.export(target="orth")
    with pytest.raises(ValueError, match="its samples are points"):
        student.draw()


def test_figures_show_themselves(trained, tmp_path):
    found = ed.evaluate(trained[0].student, samples=200, json=tmp_path / "eval.json")
    assert found.file == tmp_path / "eval.json"
    assert "student" in found
    assert "<table>" in found._repr_html_()
    assert ed.report(trained[0].folder).name == "report.html"


def test_a_plan_is_of_the_recipe(tmp_path):
    found = ed.plan("emoji-4step", ["train.batch_size=2"], memory="8GB")
    assert found.to_json()["fit"]["fits"] is True
    assert "GB" in repr(found)
    assert "<table>" in found._repr_html_()
