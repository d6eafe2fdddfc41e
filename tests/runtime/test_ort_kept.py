"""ONNX Runtime's optimised graphs: kept for one graph, engine and processor, and no trouble."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import FLOAT, node, write_graph

from edgedistill_runtime import Pipeline, compiled, machine
from edgedistill_runtime.backends.ort import OrtSession
from edgedistill_runtime.manifest import BundleError

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((2, 32, 8, 8)).astype(np.float32)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A graph of two convolutions, for which the optimiser picks a layout: (file, entry)."""
    file = tmp_path_factory.mktemp("graph") / "denoiser.onnx"
    weights = {k: RANDOM.standard_normal((32, 32, 3, 3)).astype(np.float32) for k in ("v", "w")}
    nodes = [
        node("Conv", ["x", "v"], "y", pads=[1, 1, 1, 1]),
        node("Relu", ["y"], "z"),
        node("Conv", ["z", "w"], "f", pads=[1, 1, 1, 1]),
    ]
    ports = {"x": (["batch", 32, 8, 8], FLOAT)}, {"f": (["batch", 32, 8, 8], FLOAT)}
    return file, write_graph(file, nodes, *ports, weights)


@pytest.fixture
def opened(monkeypatch):
    """Paths of the graphs that the engine opens."""
    paths, kind = [], onnxruntime.InferenceSession

    def counted(path, *arguments, **options):
        paths.append(Path(path))
        return kind(path, *arguments, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", counted)
    return paths


def run(made, **changes):
    file, graph = made
    return OrtSession(file, replace(graph, **changes), threads=1)(x=X)["f"]


def test_the_second_session_opens_what_the_first_one_optimised(made, folder, opened):
    first, second = run(made), run(made)
    (kept,) = folder.iterdir()
    assert opened == [made[0], kept]
    np.testing.assert_array_equal(first, second)
    operators = [each.op_type for each in onnx.load(str(kept)).graph.node]
    assert len(operators) < 3 or "ReorderInput" in operators  # it is the optimised graph


def test_a_bundle_draws_the_same_pictures_from_kept_graphs(picture_bundle, folder, opened):
    first = Pipeline.load(picture_bundle, threads=1)(["red apple"], seed=3)
    assert len(list(folder.iterdir())) == 3
    second = Pipeline.load(picture_bundle, threads=1)(["red apple"], seed=3)
    assert {path.parent for path in opened[3:]} == {folder}
    np.testing.assert_array_equal(first.samples, second.samples)
    np.testing.assert_array_equal(first.images, second.images)


def foreign(kept):
    """Put a graph with other inputs in a kept one's place, with the checksum that fits."""
    graph = write_graph(
        kept.parent / "other.onnx",
        [node("Relu", ["z"], "f")],
        {"z": (["batch", 2], FLOAT)},
        {"f": (["batch", 2], FLOAT)},
        {},
    )
    other = kept.parent / graph.file
    key, _, _ = kept.name.partition("-")
    other.replace(kept.with_name(f"{key}-{compiled._checksum(other)}"))
    kept.unlink()


def no_graph(kept):
    """Put a file that is no graph in a kept one's place, with the checksum that fits."""
    key, _, _ = kept.name.partition("-")
    kept.write_bytes(b"no graph")
    kept.replace(kept.with_name(f"{key}-{compiled._checksum(kept)}"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: kept.write_bytes(kept.read_bytes()[:-9]),
        lambda kept: kept.write_bytes(b""),
        no_graph,
        foreign,
    ],
    ids=["cut", "empty", "no graph", "foreign"],
)
def test_a_kept_graph_that_is_wrong_is_made_again(damage, made, folder, opened, capfd):
    first = run(made)
    (kept,) = folder.iterdir()
    damage(kept)
    second = run(made)
    np.testing.assert_array_equal(first, second)
    assert opened[-1] == made[0]
    (kept,) = folder.iterdir()
    run(made)
    assert opened[-1] == kept
    assert capfd.readouterr() == ("", "")


def test_each_processor_and_engine_has_its_own(made, folder, monkeypatch):
    run(made)
    monkeypatch.setattr(machine, "processor_kind", lambda: "x86_64\nflags: avx")
    run(made)
    monkeypatch.setattr(onnxruntime, "__version__", "1.99")
    run(made)
    run(made, sha256={"denoiser.onnx": "0" * 64})
    assert len(list(folder.iterdir())) == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"sha256": {}},
        {"sha256": {"denoiser.onnx": "0" * 64, "denoiser.onnx.data": "1" * 64}},
        {"precision": "int8-weights"},
    ],
    ids=["not in a bundle", "weights beside", "weights in few bits"],
)
def test_some_graphs_are_not_kept(changes, made, folder):
    run(made, **changes)
    assert not folder.exists()


def test_nothing_is_kept_where_the_system_names_no_instruction_sets(made, folder, monkeypatch):
    monkeypatch.setattr(machine, "processor_kind", lambda: None)
    run(made)
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_is_no_error(made, tmp_path, monkeypatch, capfd):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "file" / "kept"))
    run(made)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_the_engine_cannot_write_is_no_error(made, folder, monkeypatch):
    monkeypatch.setattr(
        compiled.tempfile,
        "mkstemp",
        lambda **_: (os.open(os.devnull, os.O_RDONLY), "/dev/full/x"),
    )
    first = run(made)
    np.testing.assert_array_equal(first, run(made, sha256={}))
    assert list(folder.iterdir()) == []


def test_a_graph_that_is_not_the_manifests_is_refused_each_time(made, folder):
    file, graph = made
    wrong = replace(graph, inputs=(replace(graph.inputs[0], name="z"),))
    for _ in range(2):
        with pytest.raises(BundleError, match=r"denoiser\.onnx: inputs: x; the manifest says z"):
            OrtSession(file, wrong, threads=1)


def test_this_processor_is_told_by_its_instruction_sets():
    kind = machine.processor_kind()
    if Path("/proc/cpuinfo").is_file():
        assert "flags" in kind or "Features" in kind
        assert "MHz" not in kind  # it changes from call to call
