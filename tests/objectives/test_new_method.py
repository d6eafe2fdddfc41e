"""A method is one file and one table row, or a file of another distribution."""

import importlib
import sys
from pathlib import Path

import pytest
from edgedistill import objectives
from edgedistill import recipe as recipes
from edgedistill.distill import Run
from edgedistill.student import load_student

REGRESSION = '''
from pydantic import Field

from edgedistill.objectives import Batch, Losses, Objective, Player, Settings, Setup
from edgedistill.losses import uniform_times


class Regression(Objective):
    """The student's x0 is the teacher's, at every noise level."""

    class Config(Settings):
        weight: float = Field(1.0, gt=0)

    name = "regression"

    def __init__(self, config: Config, setup: Setup) -> None:
        self.config, self.setup = config, setup

    def players(self) -> list[Player]:
        return [Player("student", self.setup.student, self.setup.optim)]

    def loss(self, player: str, batch: Batch) -> Losses:
        student, teacher = self.setup.student, self.setup.teacher
        t = uniform_times(len(batch.x0), 0.1, 1.0, batch.generator, batch.x0)
        x_t = student.noised(batch.x0, t, batch.noise())
        gap = student(x_t, t, batch.cond) - teacher(x_t, t, batch.cond)
        return Losses(self.config.weight * gap.square().mean())
'''
ENTRY_POINTS = "[edgedistill.objectives]\nregression = regression_method:Regression\n"


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    """The method's one file, where Python finds it."""
    (tmp_path / "regression_method.py").write_text(REGRESSION)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("regression_method", None)


def train(folder: Path, two_modes: Path) -> str:
    overrides = [
        "objective.name=regression", "objective.weight=2", "train.steps=3", "train.batch_size=8",
        f"teacher.path={two_modes}",
    ]
    recipe_file = folder / "mine.yaml"
    recipe_file.write_text(
        "base: mixture-lcm\nobjective: {name: regression}\n", encoding="utf-8"
    )
    run_dir = folder / "run"
    run_dir.mkdir()
    run = Run(recipes.load(str(recipe_file), overrides[1:]), run_dir, lambda line: None)
    student = load_student(run.train(lambda step, figures: None))
    assert student.info.recipe["objective"] == {"name": "regression", "weight": 2.0}
    return student.info.method


def test_one_file_and_one_table_row(file, two_modes, quick_fit, monkeypatch):
    monkeypatch.setitem(objectives.OBJECTIVES, "regression", "regression_method:Regression")
    assert train(file, two_modes) == "regression"


def test_one_file_and_an_entry_point_of_another_distribution(file, two_modes, quick_fit):
    info = file / "regression_method-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: regression-method\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    importlib.invalidate_caches()
    assert train(file, two_modes) == "regression"
    with pytest.raises(ValueError, match="unknown method 'regresion'.*did you mean 'regression'"):
        objectives.find("regresion")


def test_without_either_it_is_unknown():
    with pytest.raises(ValueError, match="unknown method 'regression'; choose from dmd2, lcm"):
        objectives.find("regression")


def test_the_loop_names_no_method():
    from edgedistill import trainer

    text = Path(trainer.__file__).read_text(encoding="utf-8").lower()
    assert not [name for name in objectives.OBJECTIVES if name in text]
