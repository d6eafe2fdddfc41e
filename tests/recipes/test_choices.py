"""Keys of a recipe that take a name from a table: their descriptions list the names."""

from typing import get_args

import pytest

from edgedistill.common.settings import Settings
from edgedistill.compress.config import Compress
from edgedistill.compress.presets import PRESETS
from edgedistill.objectives import OBJECTIVES, find
from edgedistill.objectives.added.reward import Reward
from edgedistill.objectives.compression.shrink import TAPS, Shrink
from edgedistill.recipes.explain import meanings
from edgedistill.recipes.loading import load
from edgedistill.recipes.schema import Recipe, TeacherSection
from edgedistill.rewards import REWARDS
from edgedistill.teachers import TEACHERS


def sections(kind):
    """A section of a recipe, and those inside it."""
    yield kind
    for field in kind.model_fields.values():
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, Settings):
                yield from sections(part)


def test_no_key_names_its_choices_by_a_pattern():
    """The message for a wrong value would name the pattern, which is nothing to choose from."""
    kinds = {*sections(Recipe)}
    for name in OBJECTIVES:
        kinds.update(sections(find(name).Config))
    assert len(kinds) > len(OBJECTIVES)
    found = {
        f"{kind.__module__}: {name}"
        for kind in kinds
        for name, field in kind.model_fields.items()
        if any(getattr(each, "pattern", None) for each in field.metadata)
    }
    assert not found


def test_a_wrong_kind_of_distance_lists_the_choices():
    with pytest.raises(ValueError, match=r"^objective\.distance\.kind='x': ") as error:
        load("emoji-lcm", ["objective.distance.kind=x"])
    assert str(error.value).endswith(
        "'l2', 'l1', 'pseudo-huber', 'vector-huber', 'features' or 'latent-lpips'"
    )


@pytest.mark.parametrize(
    ("section", "key", "table"),
    [
        (TeacherSection, "family", TEACHERS),
        (Compress, "preset", PRESETS),
        (Reward, "name", REWARDS),
        (Shrink.Config, "taps", TAPS),
    ],
)
def test_the_names_that_a_key_takes_are_in_its_description(section, key, table):
    described = meanings(section)[key]
    words = set(described.replace(",", " ").replace(":", " ").replace(";", " ").split())
    assert not set(table) - words


def steps_of_differences():
    """Methods with a choice of a derivative, its key, and the key of a step of differences."""
    for name in OBJECTIVES:
        keys = find(name).Config.model_fields
        for choice in {"tangent", "derivative"} & set(keys):
            for number in sorted({"difference", "last_difference"} & set(keys)):
                yield name, choice, number


@pytest.mark.parametrize(("name", "choice", "number"), steps_of_differences())
def test_a_step_that_the_derivative_does_not_take_is_refused(name, choice, number):
    """It was taken and had no effect."""
    words = ["student.steps=1", f"objective.name={name}", f"objective.{number}=0.005"]
    load("mixture-lcm", [*words, f"objective.{choice}=difference"])
    plain = "null" if number == "last_difference" else r"0\.01"
    said = rf"^objective\.{number}=0\.005: not used with {choice}=jvp; choose {choice}=\w+, or "
    with pytest.raises(ValueError, match=f"{said}{number}={plain}$"):
        load("mixture-lcm", [*words, f"objective.{choice}=jvp"])


def test_all_numbers_that_are_not_used_are_told_at_once():
    given = (
        r"^objective\.ema=0\.95, difference=0\.5, last_difference=0\.05: not used with tangent=jvp"
    )
    with pytest.raises(
        ValueError, match=f"{given}.* ema=0, difference=0.01, last_difference=null$"
    ):
        load("mixture-scm", ["objective.tangent=jvp"])
