"""What recipes say of themselves is what they do, and `recipes show` says it."""

import re
from fractions import Fraction

import pytest

from edgedistill import recipes
from edgedistill.objectives import OBJECTIVES

REAL = sorted(name for name in recipes.shipped() if "/" in recipes.load(name).teacher.path)
BATCH = re.compile(
    r"^# Batch: (\d+) a process, (?:none|(\d+)) published(?: \((\d+/\d+)\))?\.$", re.M
)


@pytest.mark.parametrize("name", REAL)
def test_the_batch_is_the_one_that_the_header_states_with_its_share_of_the_published(name):
    train = recipes.load(name).train
    (own, published, share), *more = BATCH.findall(recipes.header(name))
    assert not more
    assert int(own) == train.batch_size * train.accumulate
    if published:
        assert Fraction(share or 1) == Fraction(int(own), int(published))
    else:
        assert not share


@pytest.mark.parametrize("name", recipes.shipped())
def test_every_header_names_its_source_and_promises_nothing(name):
    header = recipes.header(name)
    assert re.search(r"^# .*Source", header, re.M)
    assert not re.search(r"not here yet|until that|TODO|for now", header)


@pytest.mark.parametrize("name", REAL)
def test_iterations_and_warm_up_leave_steps_to_train(name):
    train = recipes.load(name).train
    assert train.lr_warmup_steps < train.steps / 2
    assert train.checkpoint_every < train.steps


def test_show_prints_the_header_above_what_can_be_loaded_again(tmp_path):
    import yaml
    from typer.testing import CliRunner

    from edgedistill.cli import app

    found = CliRunner().invoke(app, ["recipes", "show", "sdxl-4step-lora", "train.steps=5"])
    assert found.exit_code == 0
    assert found.output.startswith(recipes.header("sdxl-4step-lora"))
    assert "# Batch: 8 a process, 128 published (1/16)." in found.output
    assert yaml.safe_load(found.output)["train"]["steps"] == 5
    file = tmp_path / "again.yaml"
    file.write_text(found.output)
    again = recipes.load(str(file))
    assert again == recipes.load("sdxl-4step-lora", ["train.steps=5"])


def test_the_methods_that_headers_name_in_brackets_exist():
    found = re.findall(r"here both exist \(([a-z, ]+)\)", recipes.header("sana-1step"))
    assert set(found[0].split(", ")) <= set(OBJECTIVES)
