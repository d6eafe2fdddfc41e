"""Trackers get what metrics.jsonl gets, and never cost a run."""

import sys

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from edgedistill import recipes
from edgedistill.runs.run_dir import open_run
from edgedistill.training import trackers
from edgedistill.training.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("quick_fit")


@pytest.fixture
def opened(two_modes, tmp_path):
    """A function that opens a planar run of 6 steps with trackers."""

    def opened(names, *words, resume=False):
        keys = ("train.batch_size=8", "train.steps=6", "train.log_every=2", *words)
        recipe = recipes.load(
            "mixture-lcm", [f"teacher.path={two_modes}", f"train.trackers={names}", *keys]
        )
        return open_run(recipe, str(tmp_path / "run"), resume, tmp_path)

    return opened


def train(run):
    run.restore()
    run.train(lambda step, figures: None)
    return run.folder


def test_tensorboard_holds_the_figures_of_metrics_jsonl(opened):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(opened("tensorboard", "train.checkpoint_every=4"))
    folder = train(opened("tensorboard", "train.steps=8", resume=True))
    events = accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    lines = read_metrics(folder)
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert set(events.Tags()["scalars"]) == {*lines[0]} - {"step"}
    for name in ("student/loss", "lr", "seconds"):
        seen = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in seen] == [2, 4, 6, 8]
        assert [v for _, v in seen] == pytest.approx([line[name] for line in lines], rel=1e-6)


def test_nothing_is_tracked_unless_asked(opened):
    folder = train(opened("[]"))
    assert "metrics.jsonl" in {path.name for path in folder.iterdir()}
    assert not (folder / "tensorboard").exists()


def test_every_tracker_of_accelerate_has_a_row():
    assert set(trackers.TRACKERS) == set(LOGGER_TYPE_TO_CLASS)


def test_an_unknown_tracker_is_refused_with_the_known_ones(opened):
    known = "aim, clearml, comet_ml, dvclive, mlflow, swanlab, tensorboard, trackio, wandb"
    with pytest.raises(ValueError, match=rf"unknown tracker 'wandbb'.*'wandb'.*from {known}"):
        opened("[tensorboard,wandbb]")


def test_a_tracker_that_is_not_installed_is_refused_with_the_command(
    opened, tmp_path, monkeypatch
):
    for name in ("mlflow", "tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    before = sorted(tmp_path.iterdir())
    line = r"train\.trackers needs tensorboard, mlflow: pip install 'edgedistill\[tensorboard\]' m"
    with pytest.raises(ValueError, match=line):
        opened("[tensorboard,mlflow]")
    assert sorted(tmp_path.iterdir()) == before


class Flaky(GeneralTracker):
    """A tracker of somebody's own that fails in one of its methods."""

    name, requires_logging_directory, tracker = "flaky", False, None
    fails, seen = "", []

    def __init__(self, project):
        super().__init__()
        self._did("start", project)

    def _did(self, what, *given):
        self.seen.append((what, *given))
        if what == self.fails:
            raise ConnectionError("no route\nto the server")

    def store_init_configuration(self, values):
        self._did("settings", values)

    def log(self, values, step):
        self._did("log", step)

    def finish(self):
        self._did("finish")


@pytest.fixture
def flaky(tmp_path, monkeypatch):
    """A function that installs the tracker flaky."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "flaky.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")

    def install(fails=""):
        kind = type("Flaky", (Flaky,), {"fails": fails, "seen": []})
        monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "flaky", kind)
        monkeypatch.setitem(trackers.TRACKERS, "flaky", lambda folder, step: {})
        return kind.seen

    return install


def test_a_tracker_is_told_the_recipe_and_every_line(opened, flaky):
    seen = flaky()
    train(opened("flaky"))
    assert seen[0] == ("start", "edgedistill")
    assert seen[2:] == [("log", 2), ("log", 4), ("log", 6), ("finish",)]
    settings = seen[1][1]
    assert (settings["train.steps"], settings["teacher.lora"]) == (6, "[]")
    assert all(isinstance(value, int | float | str) for value in settings.values())


def test_a_tracker_that_fails_costs_no_line(opened, flaky, said):
    seen = flaky("log")
    folder = train(opened("flaky"))
    assert [line["step"] for line in read_metrics(folder)] == [2, 4, 6]
    assert [what for what, *_ in seen] == ["start", "settings", "log"]
    assert "flaky gets no more figures: no route" in said


def test_a_tracker_that_does_not_start_stops_the_run_before_its_first_step(opened, flaky):
    flaky("start")
    run = opened("flaky")
    with pytest.raises(ValueError, match=r"^train\.trackers: flaky does not start: no route$"):
        train(run)
    assert read_metrics(run.folder) == []
