"""The web target, its proof in node, and the JavaScript runtime against the Python one."""

import gc
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from javascript import WEB, draw, needs_node, node
from onnx import TensorProto, helper, numpy_helper
from saturation import exact_int8

from edgedistill_export import export_student
from edgedistill_export.backends import web_home
from edgedistill_export.backends.web import WebSession
from edgedistill_export.backends.web_home import HOME
from edgedistill_export.targets import web as target
from edgedistill_export.targets.web import half_weights
from edgedistill_runtime import Manifest, Pipeline
from edgedistill_runtime.backends.ort import OrtSession
from edgedistill_runtime.bench import measure
from edgedistill_runtime.manifest import sha256
from edgedistill_runtime.noise import normals
from edgedistill_runtime.tokenizer import Tokenizer

PROMPTS = ["red", "a longer prompt than fits", "", "Über ☕ 日本 it's"]

pytestmark = needs_node


def refusal(folder, call="await Pipeline.load(input[0])"):
    """The error of a load in node, as (name, message)."""
    code = f"""
    import {{ Pipeline }} from "./edgedistill.mjs";
    try {{ {call}; give(null); }} catch (error) {{ give([error.name, error.message]); }}
    """
    return node(code, str(folder))


@pytest.fixture(scope="module")
def bundles(student_dir, tmp_path_factory):
    """The tiny student in every precision, built when asked for."""
    root, built = tmp_path_factory.mktemp("web"), {}

    def get(precision):
        if precision not in built:
            built[precision] = export_student(student_dir, "web", precision, root / precision)
        return built[precision]

    return get


@pytest.fixture
def copied(bundles, tmp_path):
    """A bundle to break."""
    return Path(shutil.copytree(bundles("fp32"), tmp_path / "bundle"))


def open_session(folder, name="denoiser"):
    graph = Manifest.read(folder).graphs[name]
    return WebSession(folder / graph.file, graph)


@pytest.fixture(scope="module")
def session(bundles):
    """The tiny denoiser in node."""
    session = open_session(bundles("fp32"))
    yield session
    session.close()


def denoiser_inputs():
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(3, 4, 4, 4)).astype(np.float32),
        "t": np.array([999, 499, 999], np.float32),  # the student's times
        "encoder_hidden_states": rng.normal(size=(3, 8, 16)).astype(np.float32),
    }


# The target


@pytest.mark.parametrize(("precision", "floor"), [("fp32", 100), ("fp16", 60), ("int8", 0)])
def test_the_proof_runs_in_node_and_the_bundle_in_python(bundles, precision, floor):
    manifest = Manifest.read(bundles(precision))
    assert (manifest.backend, manifest.parity.backend) == ("ort", "web")
    assert manifest.parity.passed
    assert min(figures.worst for figures in manifest.parity.graphs.values()) > floor
    pinned = json.loads((WEB / "package.json").read_text())["dependencies"]["onnxruntime-web"]
    assert manifest.graphs["denoiser"].notes["onnxruntime-web"] == pinned


def test_fp16_stores_layers_in_half_and_keeps_the_rest(bundles):
    full, half = (onnx.load(bundles(p) / "denoiser.onnx").graph for p in ("fp32", "fp16"))
    kinds = {weight.name: weight.data_type for weight in half.initializer}
    assert kinds["unet.conv_in.weight_fp16"] == TensorProto.FLOAT16
    assert kinds["unet.conv_in.bias"] == TensorProto.FLOAT
    halves = sum(np.prod(w.dims) for w in half.initializer if w.name.endswith("_fp16"))
    assert halves > 0.9 * sum(np.prod(w.dims) for w in full.initializer)


def test_int8_has_no_large_weight_in_float32(bundles):
    graph = onnx.load(bundles("int8") / "text_encoder.onnx").graph
    large = {w.name: w.data_type for w in graph.initializer if len(w.dims) > 1 and w.dims[0] > 8}
    assert set(large.values()) == {TensorProto.INT8, TensorProto.FLOAT16}


def test_half_weights_leaves_what_float16_cannot_hold_and_what_is_no_layer():
    weights = {
        "fits": np.full((2, 2), 3.14159, np.float32),
        "large": np.full((2, 2), 1e5, np.float32),
        "rates": np.full((2, 2), 1.1, np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "fits"], ["a"]),
            helper.make_node("MatMul", ["a", "large"], ["b"]),
            helper.make_node("Mul", ["b", "rates"], ["y"]),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = half_weights(helper.make_model(graph))
    onnx.checker.check_model(model)
    stored = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    assert set(stored) == {"fits_fp16", "large", "rates"}
    np.testing.assert_array_equal(stored["fits_fp16"], weights["fits"].astype(np.float16))
    x = np.ones((1, 2), np.float32)
    (found,) = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(
        found, x @ weights["fits"] @ weights["large"] * weights["rates"], 1e-3
    )


def test_without_the_package_nothing_is_traced(student_dir, tmp_path, monkeypatch):
    monkeypatch.setenv(HOME, str(tmp_path))
    monkeypatch.setattr(target, "build_onnx", lambda *_: pytest.fail("traced"))
    with pytest.raises(ValueError, match="npm install --prefix runtime/web") as error:
        export_student(student_dir, "web", out=tmp_path / "bundle")
    assert str(tmp_path) in str(error.value)
    assert not (tmp_path / "bundle").exists()


def test_the_working_directory_may_have_the_package(tmp_path, monkeypatch):
    monkeypatch.delenv(HOME, raising=False)
    monkeypatch.setattr(web_home, "_CHECKOUT", tmp_path / "none")
    monkeypatch.chdir(WEB)
    assert web_home.find_home() == WEB


# The proof backend


def test_a_session_computes_what_onnxruntime_does(bundles, session):
    folder = bundles("fp32")
    graph = Manifest.read(folder).graphs["denoiser"]
    inputs = denoiser_inputs()
    found = session(**inputs)["f"]
    expected = OrtSession(folder / graph.file, graph, threads=1)(**inputs)["f"]
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    found += 1  # the caller's own, as every session's


def test_a_failed_call_is_told_and_the_session_goes_on(session):
    inputs = denoiser_inputs()
    with pytest.raises(RuntimeError, match=r"onnxruntime-web: .*'t' is missing"):
        session(x=inputs["x"], encoder_hidden_states=inputs["encoder_hidden_states"])
    with pytest.raises(ValueError, match="t is float64; choose from float32, int64"):
        session(**{**inputs, "t": inputs["t"].astype(np.float64)})
    assert session(**inputs)["f"].shape == (3, 4, 4, 4)


def test_the_process_ends_with_close_and_with_the_object(bundles):
    session = open_session(bundles("fp32"))
    process = session._process
    assert process.poll() is None
    session.close()
    assert process.poll() == 0
    session = open_session(bundles("fp32"))
    process = session._process
    del session
    gc.collect()
    assert process.poll() == 0


def test_a_dead_process_is_an_error(bundles):
    session = open_session(bundles("fp32"))
    session._process.kill()
    session._process.wait()
    with pytest.raises(RuntimeError, match="node ended with status -9"):
        session(**denoiser_inputs())


def test_an_operator_the_engine_lacks_is_named(bundles, tmp_path):
    graph = Manifest.read(bundles("fp32")).graphs["decoder"]
    model = onnx.load(bundles("fp32") / graph.file)
    for layer in model.graph.node:
        if layer.op_type == "Sigmoid":
            layer.op_type, layer.domain = "Zigmoid", "zig"
    model.opset_import.append(helper.make_opsetid("zig", 1))
    onnx.save(model, tmp_path / "decoder.onnx")
    with pytest.raises(ValueError, match=r"decoder\.onnx: onnxruntime-web: .*Zigmoid"):
        WebSession(tmp_path / "decoder.onnx", graph)


def test_an_unknown_provider_is_named(bundles):
    graph = Manifest.read(bundles("fp32")).graphs["decoder"]
    with pytest.raises(ValueError, match="unknown provider 'webgpu'; choose from wasm"):
        WebSession(bundles("fp32") / graph.file, graph, providers=["webgpu"])


def test_without_node_there_is_no_session(bundles, monkeypatch):
    graph = Manifest.read(bundles("fp32")).graphs["decoder"]
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="needs the program 'node'"):
        WebSession(bundles("fp32") / graph.file, graph)


# The JavaScript runtime


def test_noise_is_the_python_runtimes():
    cases = [(s, i, n) for s, i in [(0, 0), (1234, 7), (2**64 - 1, 2**40)] for n in (1, 9, 64)]
    code = """
    import { normals } from "./noise.mjs";
    give(input[0].map(([seed, index, n]) => [...normals(BigInt(seed), BigInt(index), n)]));
    """
    found = node(code, [(str(seed), str(index), n) for seed, index, n in cases])
    for numbers, case in zip(found, cases, strict=True):
        np.testing.assert_allclose(numbers, normals(*case), rtol=1e-6)


def test_a_seed_out_of_range_is_named():
    code = """
    import { normals } from "./noise.mjs";
    const said = (seed) => {
      try { normals(seed, 0, 2); } catch (error) { return error.message; }
    };
    give([-1, 2n ** 64n, 0.5, 1e20].map(said));
    """
    seeds = ["-1", str(2**64), "0.5", "100000000000000000000"]
    for seed, message in zip(seeds, node(code), strict=True):
        assert message == f"seed must be a whole number in [0, 2**64), not {seed}"


def test_token_ids_are_the_python_runtimes(bundles):
    folder = bundles("fp32")
    entry = Manifest.read(folder).tokenizer
    prompts = [
        *PROMPTS,
        " two  spaces\tand a tab",
        "RED Red",
        "<|endoftext|>",
        "é e\u0301",
        "1234",
    ]
    code = """
    import { readFileSync } from "node:fs";
    import { Tokenizer } from "./tokenizer.mjs";
    const [file, length, padId, prompts] = input;
    const tokenizer = new Tokenizer(JSON.parse(readFileSync(file)), length, padId);
    const rows = prompts.map((prompt) => tokenizer.encode(prompt));
    give(rows.map(({ ids, mask }) => [Array.from(ids, Number), Array.from(mask, Number)]));
    """
    found = node(code, str(folder / entry.file), entry.length, entry.pad_id, prompts)
    expected = Tokenizer(folder / entry.file, entry.length, entry.pad_id)(prompts)
    np.testing.assert_array_equal(np.swapaxes(found, 0, 1), expected)


# In int8, engines that differ in the last bit of a float soon differ by whole steps of the scale.
@pytest.mark.parametrize(
    ("precision", "levels"),
    [("fp32", 1), ("fp16", 1), pytest.param("int8", 16, marks=exact_int8)],
)
def test_pictures_are_the_python_runtimes(bundles, precision, levels):
    folder = bundles(precision)
    pipe = Pipeline.load(folder, threads=1)
    drawn = draw(folder, *((prompt, 2**63, i) for i, prompt in enumerate(PROMPTS)))
    expected = pipe(PROMPTS, seed=2**63)
    found = np.array([each["picture"] for each in drawn]).reshape(-1, 8, 8, 4)
    assert np.abs(found[..., :3] - expected.images.astype(int)).max() <= levels
    assert (found[..., 3] == 255).all()
    assert set(drawn[0]["timings"]) == set(expected.timings)


def test_a_prompt_is_encoded_once_for_many_seeds(bundles):
    folder = bundles("fp32")
    asked = [("red", 1, 0), ("red", 2, 0), ("blue", 2, 0), ("red", 2, 0)]
    drawn = draw(folder, *asked)
    encoded = [each["timings"]["text_encoder"] > 0 for each in drawn]
    assert encoded == [True, False, True, True]
    for picture, each in zip(asked, drawn, strict=True):
        assert draw(folder, picture)[0]["sample"] == each["sample"]


def test_a_bundle_without_prompts_or_pictures(planar_dir, tmp_path):
    folder = export_student(planar_dir, "web", out=tmp_path / "planar")
    drawn = draw(folder, (None, 5, 0), (None, 5, 1))
    expected = Pipeline.load(folder, threads=1).samples(2, seed=5).samples
    np.testing.assert_allclose([each["sample"] for each in drawn], expected, atol=1e-5)
    assert drawn[0]["picture"] is None
    assert refusal(folder, 'await (await Pipeline.load(input[0])).draw("red")') == [
        "TypeError",
        "this bundle takes no prompt",
    ]


def test_weights_beside_the_graph(bundles, copied):
    inside, name = bundles("fp32"), "denoiser.onnx.data"
    options = {"save_as_external_data": True, "location": name}
    onnx.save(onnx.load(inside / "denoiser.onnx"), copied / "denoiser.onnx", **options)
    manifest = Manifest.read(copied)
    hashes = {file: sha256(copied / file) for file in ("denoiser.onnx", name)}
    graph = replace(manifest.graphs["denoiser"], sha256=hashes)
    replace(manifest, graphs={**manifest.graphs, "denoiser": graph}).write(copied)
    assert (copied / name).stat().st_size > (inside / "denoiser.onnx").stat().st_size / 2
    picture = ("red", 5, 0)
    assert draw(copied, picture)[0]["sample"] == draw(inside, picture)[0]["sample"]
    assert open_session(copied)(**denoiser_inputs())["f"].shape == (3, 4, 4, 4)


def test_a_changed_or_missing_file_is_refused(copied):
    weights = bytearray((copied / "denoiser.onnx").read_bytes())
    weights[-1] ^= 1
    (copied / "denoiser.onnx").write_bytes(weights)
    name, message = refusal(copied)
    assert name == "BundleError"
    assert message.endswith(
        "denoiser.onnx: damaged or changed: its SHA-256 is not that in manifest.json"
    )
    (copied / "denoiser.onnx").unlink()
    name, message = refusal(copied)
    assert name == "BundleError"
    assert "denoiser.onnx: cannot be read" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 1}, "schema_version: 1 is unknown; this runtime reads 2, 3, 4, 5"),
        ({"backend": "openvino"}, 'backend: unknown "openvino"; this runtime runs ort'),
        ({"graphs": 3}, "graphs: missing"),
        ({"tokenizer": None}, "tokenizer: must be there exactly when graphs.text_encoder is"),
        ({"image": None}, "image: must be there exactly when graphs.decoder is"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused(copied, change, message):
    path = copied / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert refusal(copied) == ["BundleError", f"{path.as_uri()}: {message}"]


def test_a_file_outside_of_the_bundle_is_refused(copied):
    manifest = Manifest.read(copied)
    graph = replace(manifest.graphs["denoiser"], file="../x.onnx", sha256={"../x.onnx": ""})
    replace(manifest, graphs={**manifest.graphs, "denoiser": graph}).write(copied)
    assert refusal(copied)[1].endswith('graphs.denoiser.file: "../x.onnx" leaves the bundle')


# Its bench


def bench(*arguments):
    command = ["node", str(WEB / "bench.mjs"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_bench_measures_what_the_python_one_does(bundles, tmp_path):
    file = tmp_path / "bench.json"
    assert bench(bundles("fp32"), "--runs", 5, "--threads", 1, "--json", file).returncode == 0
    found, expected = json.loads(file.read_text()), measure(bundles("fp32"), 2, threads=1)
    assert found.keys() == expected.keys()
    assert found["stages"].keys() == expected["stages"].keys()
    assert found["stages"]["decoder"].keys() == expected["stages"]["decoder"].keys()
    assert 0 < found["p50_s"] <= found["p90_s"] <= found["p99_s"]
    assert 20 < found["peak_rss_mb"] < 4096
    assert (found["target"], found["precision"]) == ("web", "fp32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "manifest.json: cannot be read"),
        (["nowhere", "--runs", "0"], "0 is no number above 0"),
        (["nowhere", "--speed", "9"], "--speed"),
        ([], "name one bundle folder"),
    ],
)
def test_bench_names_what_is_wrong(arguments, message):
    found = bench(*arguments)
    assert found.returncode == 2
    assert message in found.stderr
    assert found.stderr.count("\n") == 1
