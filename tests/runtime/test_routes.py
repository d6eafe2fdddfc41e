"""Which of several students draws a condition."""

import json

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


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (None, "no such file"),
        ("{", "not JSON"),
        ("[]", "schema_version"),
        ('{"schema_version": 2}', "schema_version"),
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
