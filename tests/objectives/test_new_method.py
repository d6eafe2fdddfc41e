"""A method is one file and one table row, or a file of another distribution.

The method is the example of CONTRIBUTING.md, as it stands there.
"""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from edgedistill import objectives, recipes
from edgedistill.runs.run import Run
from edgedistill.students.folder import load_student
from edgedistill.training import trainer

PAGE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
METHOD = next(text for kind, text in BLOCKS if "class Regression" in text)
ROW = next(text for kind, text in BLOCKS if text.startswith('"regression":'))
TEST = next(text for kind, text in BLOCKS if "def test_no_loss" in text)
RECIPE = next(text for kind, text in BLOCKS if kind == "yaml")


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    """A folder with the method's one file, where Python finds it."""
    (tmp_path / "regression_method.py").write_text(METHOD, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("regression_method", None)


def train(folder: Path, two_modes: Path) -> None:
    recipe = folder / "mixture-regression.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    choices = ["train.steps=3", "train.batch_size=8", f"teacher.path={two_modes}"]
    run_dir = folder / "run"
    run_dir.mkdir()
    chosen = recipes.load(str(recipe), [*choices, "objective.times={low: 0.1}"])
    run = Run(chosen, run_dir)
    student = load_student(run.train(lambda step, figures: None))
    assert student.info.method == "regression"
    times = student.info.recipe["objective"]["times"]
    assert (times["kind"], times["low"], times["high"]) == ("uniform", 0.1, 1.0)


def test_one_file_and_one_table_row(file, two_modes, quick_fit, monkeypatch):
    name, place = yaml.safe_load("{" + ROW + "}").popitem()
    assert place.startswith("edgedistill.objectives.regression:")
    here = place.replace("edgedistill.objectives.regression", "regression_method")
    monkeypatch.setitem(objectives.OBJECTIVES, name, here)
    train(file, two_modes)


def test_one_file_and_an_entry_point_of_another_distribution(file, two_modes, quick_fit):
    info = file / "regression_method-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: regression-method\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[edgedistill.objectives]\nregression = regression_method:Regression\n"
    )
    importlib.invalidate_caches()
    train(file, two_modes)
    with pytest.raises(ValueError, match=r"unknown method 'regresion'.*mean 'regression'"):
        objectives.find("regresion")


def test_the_examples_test_passes_and_can_fail(file, capfd):
    test = file / "test_regression.py"
    text = TEST.replace("edgedistill.objectives.regression", "regression_method")
    for said, result in ((text, 0), (text.replace("loss(DATA)", "loss(OTHER)"), 1)):
        test.write_text(said, encoding="utf-8")
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(file), *sys.path])}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)]
        done = subprocess.run(command, env=env, cwd=file, capture_output=True, check=False)
        assert done.returncode == result, done.stdout.decode()


def test_without_either_it_is_unknown():
    with pytest.raises(ValueError, match=r"unknown method 'regression'.* choose from .*lcm"):
        objectives.find("regression")


def test_the_loop_names_no_method():
    text = Path(trainer.__file__).read_text(encoding="utf-8").lower()
    names = set(objectives.OBJECTIVES) - {"add"}  # which is a word as well
    assert not [name for name in names if re.search(rf"\b{name}\b", text)]
