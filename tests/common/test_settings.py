"""Sections of a recipe: older names of their keys."""

import pytest
from pydantic import ValidationError

from edgedistill.common.settings import Settings, renamed, without_replaced


class Inner(Settings):
    low: float = 0.0
    high: float = 1.0
    kind: str = "uniform"


class Section(Settings):
    old_keys = renamed(r1="r1_weight", min_time="times.low")

    steps: int = 1
    r1_weight: float = 0.5
    times: Inner = Inner(low=0.1, high=0.9)


class Extended(Section):
    old_keys = renamed(max_time="times.high", warmup="warmup_steps")

    times: Inner = Inner(low=0.2, high=0.8, kind="other")
    warmup_steps: int = 7


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"r1": 2.0}, {"r1_weight": 2.0}),
        ({"min_time": 0.3}, {"times": {"low": 0.3, "high": 0.8, "kind": "other"}}),
        ({"min_time": 0.3}, {"times": {"low": 0.3}}),
        ({"max_time": 0.7, "times": {"kind": "new"}}, {"times": {"high": 0.7, "kind": "new"}}),
        ({"warmup": 3, "r1": 0.0}, {"warmup_steps": 3, "r1_weight": 0.0}),
    ],
)
def test_both_names_of_a_key_are_read_alike(old, new):
    assert Extended(**old) == Extended(**new) != Extended()


def test_a_dump_has_the_older_names_where_their_class_declares_them():
    dumped = Extended(r1_weight=3.0).model_dump()
    assert list(dumped.items()) == [
        ("steps", 1),
        ("r1", 3.0),
        ("min_time", 0.2),
        ("warmup", 7),
        ("max_time", 0.8),
    ]


@pytest.mark.parametrize("times", [{}, {"low": 0.3}, {"kind": "new"}, {"kind": "new", "high": 2}])
def test_a_dump_is_read_as_what_was_dumped(times):
    section = Extended(times=times)
    dumped = section.model_dump(mode="json")
    assert dumped.get("times") == ({"kind": times["kind"]} if "kind" in times else None)
    assert Extended(**dumped) == section


@pytest.mark.parametrize(
    "given", [{"r1": 1, "r1_weight": 1}, {"min_time": 0.3, "times": {"low": 0.3}}]
)
def test_both_names_at_once_are_refused(given):
    with pytest.raises(ValidationError, match=r"is an older name of .*; give one of the two"):
        Section(**given)


def test_a_section_that_is_none_is_refused_as_such():
    with pytest.raises(ValidationError, match="times"):
        Section(times=3)


@pytest.mark.parametrize(
    ("below", "above", "kept"),
    [
        ({"r1": 1, "steps": 2}, {"r1_weight": 3}, {"steps": 2}),
        ({"r1_weight": 1, "steps": 2}, {"r1": 3}, {"steps": 2}),
        ({"r1": 1}, {"r1": 3}, {"r1": 1}),
        ({"min_time": 0.2}, {"times": {"low": 0.1}}, {}),
        ({"min_time": 0.2}, {"times": {"kind": "new"}}, {"min_time": 0.2}),
        ({"times": {"low": 0.1, "high": 1}}, {"min_time": 0.2}, {"times": {"high": 1}}),
        ({"times": 3, "min_time": 1}, {"times": 4}, {"times": 3, "min_time": 1}),
    ],
)
def test_a_layer_replaces_a_key_by_either_name(below, above, kept):
    before = repr(below)
    assert without_replaced(Section, below, above) == kept
    assert repr(below) == before
