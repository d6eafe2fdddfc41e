"""What a run takes up when its recipe has changed since."""

import pytest
import yaml

from edgedistill import recipe as recipes
from edgedistill.run_dir import open_run


@pytest.fixture
def mine(tmp_path, two_modes, quick_fit):
    """A function that writes mine.yaml with a batch size, and one that opens a run of it."""
    file = tmp_path / "mine.yaml"

    def write(**train):
        sections = {
            "base": "mixture-lcm",
            "teacher": {"path": str(two_modes)},
            "train": {"steps": 3, "batch_size": 8, **train},
        }
        file.write_text(yaml.safe_dump(sections))

    def opened(*words, resume=True):
        said = []
        typed = [word.partition("=")[0] for word in words]
        recipe = recipes.load(str(file), words)
        folder = str(tmp_path / "run")
        return open_run(recipe, folder, resume, said.append, tmp_path, typed), said

    return write, opened


def test_a_changed_file_leaves_the_run_as_it_was(mine):
    write, opened = mine
    write()
    first, _ = opened("train.clip=0.5", resume=False)
    write(batch_size=16, steps=7)
    again, said = opened()
    assert again.recipe == first.recipe
    assert said[0].endswith(
        ": train.batch_size=8, not 16; train.clip=0.5, not 1.0; train.steps=3, not 7"
    )
    assert said[0].startswith("resumed with the recipe in ")


def test_what_is_typed_is_obeyed_or_refused(mine):
    write, opened = mine
    write()
    opened(resume=False)
    write(lr_warmup=5)
    longer, said = opened("train.steps=9", "train.batch_size=8")
    assert (longer.recipe.train.steps, longer.recipe.train.lr_warmup) == (9, 0)
    assert "train.lr_warmup=0, not 5" in said[0]
    assert opened()[0].recipe.train.steps == 9
    with pytest.raises(ValueError, match=r"was trained with train.batch_size=8, not 9"):
        opened("train.batch_size=9")


def test_nothing_is_said_where_nothing_differs(mine):
    write, opened = mine
    write()
    opened(resume=False)
    assert not any(line.startswith("resumed with") for line in opened()[1])


def test_a_run_of_another_recipe_is_refused(mine):
    write, opened = mine
    write()
    opened(resume=False)
    with pytest.raises(ValueError, match=r"was trained with name='mine', not 'yours'"):
        opened("name=yours")


def test_a_stored_recipe_that_cannot_be_read_names_its_file(mine, tmp_path):
    write, opened = mine
    write()
    opened(resume=False)
    file = tmp_path / "run" / "recipe.yaml"
    file.write_text(file.read_text().replace("lr_warmup:", "lr_warm_up:"))
    with pytest.raises(ValueError, match=r"run/recipe.yaml: unknown key train.lr_warm_up"):
        opened()


@pytest.mark.parametrize("method", ["boot", "emd", "instaflow", "slimflow", "swiftbrush"])
def test_students_of_one_step_take_no_more(method, tmp_path, two_modes):
    """Refused before the first line, let alone the teacher's paths."""
    recipe = recipes.load(f"mixture-{method}", ["student.steps=4", f"teacher.path={two_modes}"])
    said = []
    with pytest.raises(ValueError, match=f"student.steps=4: {method}'s students take one step"):
        open_run(recipe, str(tmp_path / "run"), False, said.append, tmp_path)
    assert not said
    assert not list(tmp_path.glob("run/data/*"))


@pytest.mark.parametrize(
    ("regression", "warmup", "turns", "steps", "first"), [(3, 2, 3, 5, 5), (0, 0, 4, 3, 3)]
)
def test_a_run_too_short_for_its_method_says_so(
    regression, warmup, turns, steps, first, tmp_path, two_modes, quick_fit
):
    said = []
    words = [f"teacher.path={two_modes}", f"train.steps={steps}", f"objective.turns={turns}"]
    words += [f"objective.regression={regression}", f"objective.warmup={warmup}"]
    recipe = recipes.load("mixture-dmd2", words)
    open_run(recipe, str(tmp_path / "run"), False, said.append, tmp_path)
    assert [line for line in said if "turns" in line] == [
        f"the turns of student begin at step {first}, and the run ends at {steps}"
    ]
