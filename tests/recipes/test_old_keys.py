"""Keys under their older and their newer names: equal recipes, and errors in the user's words."""

from pathlib import Path

import pytest

from edgedistill import objectives, recipes
from edgedistill.compress.config import Compress
from edgedistill.recipes.old_keys import kind_of
from edgedistill.training.config import Train

NEW_NAMES = {
    "adversarial": "adversarial_weight",
    "alone": "alone_share",
    "annealed": "annealed_share",
    "augment": "augment_share",
    "backward": "backward_weight",
    "budget": "budget_share",
    "consistency": "consistency_weight",
    "denoising": "denoising_weight",
    "distillation": "distillation_weight",
    "drop": "drop_share",
    "encode": "encode_weight",
    "features": "features_weight",
    "first": "first_steps",
    "fresh": "fresh_share",
    "guided": "guided_weight",
    "instant": "instant_share",
    "joint": "joint_weight",
    "l1": "l1_weight",
    "level": "times.high",
    "lr_warmup": "lr_warmup_steps",
    "matching": "matching_weight",
    "max_time": "times.high",
    "mean": "times.mean",
    "min_time": "times.low",
    "output": "output_weight",
    "perceptual": "perceptual_weight",
    "preserve": "preserve_weight",
    "r1": "r1_weight",
    "reconstruction": "reconstruction_weight",
    "reflow": "reflow_share",
    "regression": "pretraining_steps",
    "std": "times.std",
    "straight": "straight_weight",
    "task": "task_weight",
    "velocity": "velocity_weight",
    "warmup": "warmup_steps",
    "width": "width_share",
}
"""Every older name, which files and run dirs have and which must be read for ever."""

SECTIONS = {"compress": Compress, "train": Train}
PAIRS = [
    *(("objective", method, old) for method in sorted(objectives.OBJECTIVES) for old in NEW_NAMES),
    *((section, "lcm", old) for section in SECTIONS for old in NEW_NAMES),
]
PAIRS = [pair for pair in PAIRS if pair[2] in kind_of(*pair[:2]).all_old_keys()]


def minimal(section, method, keys):
    needs = {"fresh": {"path": "random"}}
    extra = next((needs[key.removesuffix("_share")] for key in keys if "fresh" in key), {})
    data = {
        "name": "one",
        "teacher": {"family": "mixture", "path": "ring"},
        "student": {"steps": 1},
        "objective": {"name": method},
        "train": {"steps": 10, "batch_size": 4},
    }
    data[section] = data.get(section, {}) | keys | extra
    return recipes.resolve(data)


def another(default):
    """A valid value that is not the default."""
    if isinstance(default, tuple):
        return [another(each) for each in default]
    return default + 1 if isinstance(default, int) else 0.75 if default == 0.5 else 0.5


@pytest.mark.parametrize(("section", "method", "old"), PAIRS)
def test_both_names_make_equal_recipes(section, method, old):
    kind = kind_of(section, method)
    new = kind.all_old_keys()[old]
    assert new == NEW_NAMES[old]
    first, _, key = new.partition(".")
    default = kind.model_fields[first].get_default()
    value = another(getattr(default, key) if key else default)
    recipe = minimal(section, method, {old: value})
    assert recipe == minimal(section, method, {first: {key: value} if key else value})
    assert recipe != minimal(section, method, {})
    assert recipe.model_dump(mode="json")[section][old] == value


def test_no_older_name_is_left_out():
    kinds = [objectives.find(name).Config for name in objectives.OBJECTIVES]
    found = {}
    for kind in (*kinds, *SECTIONS.values()):
        found |= kind.all_old_keys()
    assert found == NEW_NAMES
    assert all(
        new.endswith(("_weight", "_steps", "_share")) or "times." in new for new in found.values()
    )


def test_times_of_another_kind_are_shown_beside_the_older_names():
    words = ["objective.times.kind=logit-normal", "objective.min_time=0.1"]
    shown = recipes.load("mixture-dmd2", words).objective
    assert (shown["min_time"], shown["max_time"]) == (0.1, 0.98)
    assert shown["times"] == {"kind": "logit-normal", "mean": 0.0, "std": 1.0}


def written(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


@pytest.mark.parametrize("names", [("warmup", "warmup_steps"), ("warmup_steps", "warmup")])
def test_the_upper_layer_wins_by_either_name(tmp_path, names):
    below, above = names
    written(tmp_path, "below.yaml", f"base: mixture-dmd2\nobjective: {{{below}: 5}}\n")
    text = (tmp_path / "below.yaml").read_text()
    under = written(tmp_path, "child.yaml", text)
    assert recipes.load(under).objective["warmup"] == 5
    assert recipes.load(under, [f"objective.{above}=6"]).objective["warmup"] == 6
    assert recipes.load(under, [f"objective.{below}=7"]).objective["warmup"] == 7


def test_layers_meet_in_a_section_with_older_names(tmp_path):
    child = written(tmp_path, "child.yaml", "base: mixture-dmd2\nobjective: {max_time: 0.5}\n")
    for key in ("min_time", "times.low"):
        shown = recipes.load(child, [f"objective.{key}=0.1"]).objective
        assert (shown["min_time"], shown["max_time"]) == (0.1, 0.5)
    both = recipes.load(child, ["objective.times={high: 0.6}", "train.lr_warmup_steps=3"])
    assert both.objective["max_time"] == 0.6
    assert both.train.lr_warmup_steps == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["objective.warmup=x"], r"^objective\.warmup='x': "),
        (["objective.warmup_steps=x"], r"^objective\.warmup_steps='x': "),
        (["objective.min_time=7"], r"^objective\.min_time=7: "),
        (["objective.times.low=7"], r"^objective\.times\.low=7: "),
        (["train.lr_warmup=-1"], r"^train\.lr_warmup=-1: "),
        (["objective.warmups=1"], r"did you mean objective\.warmup_steps"),
        (
            ["objective.warmup=1", "objective.warmup_steps=1"],
            r"^objective: warmup is an older name of warmup_steps; give one of the two$",
        ),
        (["objective.name=none", "objective.warmup=1"], "unknown method 'none'"),
    ],
)
def test_a_mistake_is_told_by_the_name_that_was_given(words, message):
    with pytest.raises(ValueError, match=message):
        recipes.load("mixture-dmd2", words)


def test_a_typed_key_counts_under_both_names():
    words = ["recipe=mixture-dmd2", "objective.times.low=0.1", "train.lr_warmup_steps=2"]
    _, _, typed = recipes.asked("distill", words)
    assert typed == [
        "objective.times.low",
        "train.lr_warmup_steps",
        "objective.min_time",
        "train.lr_warmup",
    ]
    _, _, typed = recipes.asked("distill", ["recipe=mixture-dmd2", "objective.times={low: 0.1}"])
    assert typed == ["objective.times", "objective.min_time", "objective.max_time"]
