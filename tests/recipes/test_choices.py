"""Keys of a recipe that take a name from a table: their descriptions list the names."""

import pytest

from edgedistill.compress.config import Compress
from edgedistill.compress.presets import PRESETS
from edgedistill.objectives.added.reward import Reward
from edgedistill.objectives.compression.shrink import TAPS, Shrink
from edgedistill.recipes.explain import meanings
from edgedistill.recipes.schema import TeacherSection
from edgedistill.rewards import REWARDS
from edgedistill.teachers import TEACHERS


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
