import numpy as np
import pytest

from edgedistill_runtime import Pipeline
from edgedistill_runtime.noise import noise
from edgedistill_runtime.pipeline import to_uint8


@pytest.fixture(scope="module")
def pictures(picture_bundle):
    return Pipeline.load(picture_bundle, threads=1)


@pytest.fixture(scope="module")
def points(planar_bundle):
    return Pipeline.load(planar_bundle, threads=1)


def test_planar_samples_follow_the_closed_form(points):
    x_T, extra = noise(4, 0, 3, [(2,)] * 2)
    x = 2 * x_T
    x = 0.3 * x + 0.6 * (0.5 * (0.5 * x) + 0.75) + 0.25 * extra
    x = 0.5 * x - 0.5 * (0.5 * x + 0.25)
    result = points.samples(3, seed=4)
    np.testing.assert_allclose(result.samples, x, atol=1e-6)
    assert result.images is None


def test_pictures_follow_the_prompt_and_the_noise(pictures):
    x_T, extra = noise(9, 0, 2, [(3, 1, 1)] * 2)
    embedding = np.linspace(-1, 1, 18, dtype=np.float32).reshape(6, 3)
    ids = [[0, 2, 4, 1, 1, 1], [0, 3, 5, 1, 1, 1]]
    shift = embedding[ids].mean(1).reshape(2, 3, 1, 1)
    x = 2 * x_T
    x = 0.3 * x + 0.6 * (0.75 * 0.5 * x + shift) + 0.25 * extra
    x = 0.5 * x - 0.5 * (0.25 * x + shift)
    result = pictures(["red apple", "blue car"], seed=9)
    np.testing.assert_allclose(result.samples, x, atol=1e-6)
    expected = np.clip(np.rint(127.5 * x + 127.5), 0, 255).reshape(2, 1, 1, 3)
    np.testing.assert_array_equal(result.images, np.broadcast_to(expected, (2, 2, 2, 3)))
    assert result.images.dtype == np.uint8


def test_a_picture_is_the_same_in_any_batch(pictures, monkeypatch):
    prompts = ["red apple", "blue car", "red car", "blue apple", "apple"]
    whole = pictures(prompts, seed=1)
    monkeypatch.setattr("edgedistill_runtime.pipeline._BATCH_VALUES", 6)  # two pictures a call
    pieces = pictures(prompts, seed=1)
    np.testing.assert_array_equal(whole.images, pieces.images)
    np.testing.assert_allclose(whole.samples, pieces.samples, atol=1e-6)
    first = pictures("red apple", seed=1)
    np.testing.assert_allclose(first.samples, whole.samples[:1], atol=1e-6)


def test_given_noise_replaces_the_seed(pictures):
    draws = noise(7, 0, 2, [(3, 1, 1)] * 2)
    given = pictures(["red", "blue"], seed=0, noise=draws)
    np.testing.assert_array_equal(given.samples, pictures(["red", "blue"], seed=7).samples)


def test_a_prompt_is_encoded_once_for_many_seeds(picture_bundle):
    pipe = Pipeline.load(picture_bundle, threads=1)
    fresh = [Pipeline.load(picture_bundle, threads=1) for _ in range(4)]
    asked = [("red", 1), ("red", 2), ("blue", 2), ("red", 3)]
    encoded = []
    for (prompt, seed), other in zip(asked, fresh, strict=True):
        result = pipe(prompt, seed=seed)
        encoded.append(result.timings["text_encoder"] > 0)
        np.testing.assert_array_equal(result.samples, other(prompt, seed=seed).samples)
    assert encoded == [True, False, True, True]


def test_timings_add_up(pictures):
    timings = pictures("red").timings
    assert set(timings) == {"text_encoder", "denoiser", "decoder", "other", "total"}
    assert sum(timings.values()) == pytest.approx(2 * timings["total"])
    assert min(timings.values()) > 0


def test_requests_that_do_not_fit_are_refused(pictures, points):
    with pytest.raises(ValueError, match="no prompts"):
        pictures([])
    with pytest.raises(ValueError, match="needs prompts"):
        pictures.samples(2)
    with pytest.raises(ValueError, match="takes no prompts"):
        points("red")
    with pytest.raises(ValueError, match="below 1"):
        points.samples(0)


def test_an_unknown_provider_names_the_choices(planar_bundle):
    with pytest.raises(ValueError, match=r"unknown provider 'Magic'; choose from .*CPUExecution"):
        Pipeline.load(planar_bundle, providers=["Magic"])


def test_uint8_rounds_and_clips():
    image = np.array([-2, -1, 0, 0.5, 1, 3], np.float32).reshape(1, 3, 1, 2)
    assert to_uint8(image).reshape(2, 3).T.ravel().tolist() == [0, 0, 128, 191, 255, 255]


def test_a_graph_of_a_fixed_batch_takes_any(planar_bundle):
    from dataclasses import replace

    from edgedistill_runtime.backends import open_graph
    from edgedistill_runtime.manifest import Manifest

    graph = Manifest.read(planar_bundle).graphs["denoiser"]
    ports = tuple(replace(port, shape=(2, *port.shape[1:])) for port in graph.inputs)
    free = open_graph("ort", planar_bundle, graph)
    fixed = open_graph("ort", planar_bundle, replace(graph, inputs=ports))
    for count in (1, 2, 5):
        given = {
            "x": np.arange(2 * count, dtype=np.float32).reshape(count, 2),
            "t": np.linspace(0, 1, count, dtype=np.float32),
        }
        np.testing.assert_array_equal(fixed(**given)["f"], free(**given)["f"])


def test_a_provider_that_takes_too_little_is_refused():
    from edgedistill_runtime.backends.ort import check_coverage

    check_coverage("g.onnx", "GPU", {"GPU": 75, "CPU": 25})
    with pytest.raises(ValueError, match=r"g\.onnx: GPU takes 74 of 100 nodes, under 75%"):
        check_coverage("g.onnx", "GPU", {"GPU": 74, "CPU": 26})
