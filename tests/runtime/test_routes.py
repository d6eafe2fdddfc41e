"""Which of several students draws a condition."""

import json
import logging

import numpy as np
import pytest

from edgedistill_runtime import BundleError
from edgedistill_runtime.routes import Routes, pooled


def test_a_prompt_goes_to_the_nearest_centroid():
    random = np.random.default_rng(0)
    centroids, states = random.normal(size=(3, 5)), random.normal(size=(40, 7, 5))
    states += 2 * random.normal(size=(40, 1, 5))
    routes = Routes("prompt", tuple(map(tuple, centroids.tolist())))
    found = routes.of(states.astype(np.float32))
    expected = [
        min(range(3), key=lambda k: float(np.linalg.norm(state.mean(0) - centroids[k])))
        for state in states
    ]
    assert found.tolist() == expected
    assert len(set(expected)) == 3
    np.testing.assert_allclose(pooled(states), states.mean(1))


def test_a_class_goes_to_the_student_that_has_it():
    routes = Routes("label", ((0.0, 1.0), (2.0, 5.0)))
    assert routes.of(np.array([5, 0, 2, 1])).tolist() == [1, 0, 1, 0]
    assert routes.of(np.array([5.0, 0.0], np.float32)).tolist() == [1, 0]
    with pytest.raises(ValueError, match="class 3 belongs to none of 2 students"):
        routes.of(np.array([3]))


@pytest.mark.parametrize(
    "routes",
    [Routes("label", ((0.0, 1.0), (2.0,))), Routes("prompt", ((0.25, -1.0), (1e-3, 2.5)))],
)
def test_the_file_is_read_as_it_was_written(tmp_path, routes):
    (tmp_path / "students.json").write_text(json.dumps(routes.to_json()))
    assert Routes.read(tmp_path) == routes


def test_a_changed_number_is_noticed_and_old_files_are_read(tmp_path, caplog):
    file, routes = tmp_path / "students.json", Routes("label", ((0.0, 1.0), (2.0, 3.0)))
    data = routes.to_json()
    file.write_text(json.dumps(dict(reversed(data.items())), indent=2))
    assert Routes.read(tmp_path) == routes
    for changed in (
        {"labels": [[0, 2], [1, 3]]},
        {"sha256": "0" * 64},
        {"sha256": None},
        {"a": 1},
    ):
        file.write_text(json.dumps(data | changed))
        with pytest.raises(BundleError, match=r"students\.json: damaged or changed"):
            Routes.read(tmp_path)
    file.write_text(json.dumps({"schema_version": 1, "kind": "label", "labels": data["labels"]}))
    with caplog.at_level(logging.WARNING, "edgedistill_runtime"):
        assert Routes.read(tmp_path) == routes
        assert Routes.read(tmp_path) == routes
    (said,) = caplog.messages
    assert said == f"{file}: schema_version 1 of an older edgedistill, under no hash"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (None, "no such file"),
        ("{", "not JSON"),
        ("[]", "schema_version"),
        ('{"schema_version": 3}', "schema_version"),
        ('{"schema_version": 2, "kind": "label", "labels": [[0]]}', "sha256"),
        ('{"schema_version": 1, "kind": "word"}', "kind: 'word'"),
        ('{"schema_version": 1, "kind": "label"}', "labels"),
        ('{"schema_version": 1, "kind": "label", "labels": [[0], []]}', "labels"),
        ('{"schema_version": 1, "kind": "prompt", "centroids": [[1, 2], [3]]}', "centroids"),
        ('{"schema_version": 1, "kind": "prompt", "centroids": [[NaN]]}', "NaN is no number"),
        ('{"schema_version": 1, "kind": "prompt", "centroids": "x"}', "centroids"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path, text, named):
    if text is not None:
        (tmp_path / "students.json").write_text(text)
    with pytest.raises(BundleError, match=r"students\.json") as error:
        Routes.read(tmp_path)
    assert named in str(error.value)
    assert "\n" not in str(error.value)
