import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from saturation import exact_int8

from edgedistill.teachers.base import ExportGraph
from edgedistill_export import export_student
from edgedistill_export.bundle import ExportSettings
from edgedistill_export.parity import psnr
from edgedistill_export.targets import Job, find_target
from edgedistill_export.targets.openvino import PRECISIONS, ov
from edgedistill_export.trace import layer_of, ports
from edgedistill_export.walk import calls_of
from edgedistill_runtime import Manifest, Pipeline
from edgedistill_runtime import manifest as schema
from edgedistill_runtime.backends import open_graph

TARGET = find_target("openvino")
CONV = "unet.down_blocks.0.resnets.0.conv1"
LINEAR = "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.2"


@pytest.fixture(scope="module")
def calls(student):
    return calls_of(student, ["red", "blue", "green"], seed=1)


@pytest.fixture
def make(student, calls, tmp_path):
    """A function that builds a graph into tmp_path and returns its manifest entry."""

    def build(precision, name="denoiser", keep=(), **options) -> schema.Graph:
        graph = student.teacher.graphs()[name]
        job = Job(
            name=name,
            graph=graph,
            precision=precision,
            folder=tmp_path,
            options=TARGET.options({key: str(value) for key, value in options.items()}),
            calls=lambda: calls[name],
            keep=frozenset(keep),
        )
        built = TARGET.builder().build(job)
        inputs, outputs = ports(graph, built.batch)
        return schema.Graph(
            file=built.files[0].name,
            sha256={file.name: schema.sha256(file) for file in built.files},
            precision=precision,
            inputs=inputs,
            outputs=outputs,
            notes=dict(built.notes),
        )

    return build


def read(folder, graph):
    return ov.Core().read_model(str(folder / graph.file))


def stored_types(model) -> dict[str, str]:
    """Layer -> type of the constant that its weight starts from."""
    found = {}
    for op in model.get_ops():
        if op.get_type_name() in {"MatMul", "Convolution"}:
            name = op.get_friendly_name()
            weight = op.input_value(1).get_node()
            while weight.get_type_name() != "Constant" and weight.inputs():
                weight = weight.input_value(0).get_node()
            if weight.get_type_name() == "Constant":
                kind = weight.get_element_type().get_type_name()
                found[layer_of(name.removesuffix("/WithoutBiases"))] = kind
    return found


def fake_quantized(model) -> set[str]:
    """Layers whose input is quantized."""
    found = set()
    for op in model.get_ops():
        if op.get_type_name() in {"MatMul", "Convolution"}:
            before = op.input_value(0).get_node()
            while before.get_type_name() in {"Concat", "Reshape", "Transpose"}:
                before = before.input_value(0).get_node()
            if before.get_type_name() == "FakeQuantize":
                found.add(layer_of(op.get_friendly_name().removesuffix("/WithoutBiases")))
    return found


def worst(student, folder, graph, name="denoiser") -> float:
    """PSNR against the module on inputs that the graph was not calibrated on, in dB."""
    call = calls_of(student, ["red apple"], seed=2)[name][0]
    module = student.teacher.graphs()[name].module
    with torch.no_grad():
        expected = module(*(torch.from_numpy(value) for value in call.values())).numpy()
    result = open_graph("openvino", folder, graph, threads=1)(**call)
    return psnr(expected, result[graph.outputs[0].name])[0]


def test_the_table_of_targets_names_what_it_can_do():
    assert PRECISIONS.keys() == TARGET.precisions.keys()


def test_the_bundle_draws_what_the_student_draws(student, student_dir, tmp_path):
    out = export_student(student_dir, "openvino", "fp32", tmp_path / "b")
    manifest = Manifest.read(out)
    assert manifest.parity.passed
    assert {file.suffix for file in out.glob("denoiser.*")} == {".xml", ".bin"}
    prompts = ["red", "a longer prompt than fits", ""]
    noise = student.table.draw((3, 4, 4, 4), torch.Generator().manual_seed(3))
    x0 = student.sample(student.teacher.encode(prompts), noise)
    result = Pipeline.load(out, threads=1)(prompts, noise=[tensor.numpy() for tensor in noise])
    np.testing.assert_allclose(result.samples, x0.numpy(), atol=1e-4)


def test_fp32_computes_in_float32_whatever_the_device_prefers(student, make, tmp_path):
    graph = make("fp32")
    assert graph.notes == {
        "CPU.INFERENCE_PRECISION_HINT": "f32",
        "GPU.INFERENCE_PRECISION_HINT": "f32",
    }
    assert worst(student, tmp_path, graph) > 100
    assert set(stored_types(read(tmp_path, graph)).values()) == {"f32"}


@pytest.mark.parametrize(("precision", "least"), [("fp16", 50), ("bf16", 25)])
def test_half_precision_halves_the_weights(student, make, tmp_path, precision, least):
    make("fp32")
    full = (tmp_path / "denoiser.bin").stat().st_size
    graph = make(precision)
    assert (tmp_path / "denoiser.bin").stat().st_size < 0.55 * full
    assert worst(student, tmp_path, graph) > least


@pytest.mark.parametrize("name", ["text_encoder", "denoiser", "decoder"])
@exact_int8
def test_int8_quantizes_layers_and_their_inputs(student, make, tmp_path, capfd, name):
    graph = make("int8", name)
    assert capfd.readouterr() == ("", "")
    model = read(tmp_path, graph)
    assert set(stored_types(model).values()) == {"i8"}
    assert stored_types(model).keys() <= fake_quantized(model)
    assert worst(student, tmp_path, graph, name) > 20


@exact_int8
def test_int8_holds_the_largest_numbers_of_the_calls(tmp_path):
    """A range from the mean of the calls' extremes would clip the loudest one."""
    torch.manual_seed(0)
    graph = ExportGraph(torch.nn.Linear(16, 8).eval(), {"x": torch.zeros(2, 16)}, ("y",))
    quiet, loud = torch.randn(2, 1, 16), 5 * torch.randn(1, 16)
    calls = [{"x": x.numpy()} for x in (*quiet, loud)]
    options = TARGET.options({})
    built = TARGET.builder().build(
        Job(
            name="net",
            graph=graph,
            precision="int8",
            folder=tmp_path,
            options=options,
            calls=lambda: calls,
        )
    )
    compiled = ov.Core().compile_model(str(built.files[0]), "CPU")
    with torch.no_grad():
        wanted = graph.module(loud).numpy()
    assert psnr(wanted, compiled(calls[-1])["y"])[0] > 35


def test_kept_layers_stay_in_floating_point_and_layers_that_are_gone_are_no_matter(make, tmp_path):
    keep = {CONV, LINEAR, "unet.no_longer.there"}
    model = read(tmp_path, make("int8", keep=keep))
    types = stored_types(model)
    assert {layer for layer, kind in types.items() if kind == "f32"} == {CONV, LINEAR}
    assert not fake_quantized(model) & keep


@exact_int8
def test_hybrid_quantizes_the_inputs_of_convolutions_only(student, make, tmp_path):
    graph = make("int8-hybrid", keep={CONV, LINEAR})
    model = read(tmp_path, graph)
    types = stored_types(model)
    assert {layer for layer, kind in types.items() if kind != "i8"} == {CONV, LINEAR}
    quantized = fake_quantized(model)
    assert "unet.conv_out" in quantized
    assert not {layer for layer in quantized if "transformer_blocks" in layer}
    assert worst(student, tmp_path, graph) > 20


def test_hybrid_of_a_network_without_convolutions_is_weights_only(make, tmp_path):
    model = read(tmp_path, make("int8-hybrid", "text_encoder"))
    assert set(stored_types(model).values()) == {"i8"}
    assert fake_quantized(model) == set()


def test_int8_weights_leave_activations_alone(student, make, tmp_path):
    graph = make("int8-weights", keep={LINEAR})
    model = read(tmp_path, graph)
    assert fake_quantized(model) == set()
    assert {layer for layer, kind in stored_types(model).items() if kind != "i8"} == {LINEAR}
    assert worst(student, tmp_path, graph) > 35


def test_int4_takes_the_group_that_divides_a_layer(student, make, tmp_path):
    graph = make("int4-weights", keep={LINEAR})
    model = read(tmp_path, graph)
    types = stored_types(model)
    assert types[CONV] == "i8"
    assert types[LINEAR] == "f32"
    # Of layers with 64 inputs or more the 64 asked for, of smaller ones all they have.
    groups = {
        tuple(op.shape)[-1]
        for op in model.get_ops()
        if op.get_type_name() == "Constant" and op.get_element_type() == ov.Type.i4
    }
    assert groups == {16, 32, 64}
    assert worst(student, tmp_path, graph) > 20


def test_the_ratio_of_4_bit_weights_is_an_option(make, tmp_path):
    def count(**options):
        types = stored_types(read(tmp_path, make("int4-weights", **options)))
        assert set(types.values()) == {"i4", "i8"}
        return list(types.values()).count("i4")

    assert 0 < count(ratio=0.5) < count()


@exact_int8
def test_smooth_quant_moves_ranges_into_the_weights(student, make, tmp_path):
    plain = make("int8").sha256["denoiser.bin"]
    graph = make("int8", smooth_quant=0.5)
    assert graph.sha256["denoiser.bin"] != plain
    assert worst(student, tmp_path, graph) > 20


def test_a_fixed_batch_runs_calls_of_any_size(student, make, tmp_path):
    x, t = torch.randn(3, 4, 4, 4), torch.tensor([9.0, 500.0, 990.0])
    states = torch.randn(3, 8, 16)
    with torch.no_grad():
        expected = student.net(x, t, encoder_hidden_states=states).numpy()
    call = {"x": x.numpy(), "t": t.numpy(), "encoder_hidden_states": states.numpy()}
    cases = [({"static": True}, 1), ({"static": True, "batch": 2}, 2), ({}, None)]
    for options, batch in cases:
        graph = make("fp32", **options)
        assert graph.batch == batch
        shape = read(tmp_path, graph).input("x").partial_shape
        assert shape.is_dynamic == (batch is None)
        found = open_graph("openvino", tmp_path, graph, threads=1)(**call)["f"]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_planar_student_quantizes_too(planar_dir, tmp_path):
    settings = ExportSettings(strict=False)
    out = export_student(planar_dir, "openvino", "int8", tmp_path / "b", settings=settings)
    assert Manifest.read(out).parity.final.worst > 15


def test_without_calls_there_is_no_calibration(student, tmp_path):
    job = Job(
        name="decoder",
        graph=student.teacher.graphs()["decoder"],
        precision="int8",
        folder=tmp_path,
        options=TARGET.options({}),
    )
    with pytest.raises(ValueError, match="calibration needs at least one call"):
        TARGET.builder().build(job)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch": "2"}, "batch='2': only where static=true"),
        ({"batch": "0"}, "batch='0'"),
        ({"group_size": "24"}, "group_size='24': not a power of two"),
        ({"ratio": "2"}, "ratio='2'"),
        ({"hint": "f16"}, "'hint'.*choose from batch, group_size, ratio, smooth_quant, static"),
    ],
)
def test_a_wrong_option_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        TARGET.options(given)


def test_a_device_that_is_not_there_is_named(make, tmp_path):
    graph = make("fp32")
    with pytest.raises(ValueError, match=r"unknown device 'TPU'; choose from CPU.*AUTO"):
        open_graph("openvino", tmp_path, graph, providers=["CPU", "TPU"])


@pytest.mark.parametrize("providers", [["CPU"], ["AUTO"], ["AUTO", "CPU"]])
def test_devices_get_threads_and_precision(make, tmp_path, providers):
    graph = make("fp32")
    session = open_graph("openvino", tmp_path, graph, threads=1, providers=providers)
    compiled = session._session._request(1).get_compiled_model()
    assert compiled.get_property("EXECUTION_DEVICES") == ["CPU"]
    if providers == ["CPU"]:
        assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
        assert compiled.get_property("INFERENCE_PRECISION_HINT") == ov.Type.f32


def test_a_session_leaves_inputs_alone_and_serves_threads_in_turn(make, calls, tmp_path):
    session = open_graph("openvino", tmp_path, make("fp32"), threads=1)
    given = calls["denoiser"]
    before = [{key: value.copy() for key, value in call.items()} for call in given]
    one_by_one = [session(**call)["f"] for call in given]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda call: session(**call)["f"], given))
    for a, b in zip(one_by_one, together, strict=True):
        np.testing.assert_array_equal(a, b)
    for call, copy in zip(given, before, strict=True):
        for key, value in call.items():
            np.testing.assert_array_equal(value, copy[key])


def test_one_row_and_several_are_compiled_apart_and_agree(make, calls, tmp_path):
    session = open_graph("openvino", tmp_path, make("fp32"), threads=1)
    inner = session._session
    given = [{key: value[:1] for key, value in call.items()} for call in calls["denoiser"][:3]]
    alone = np.concatenate([session(**call)["f"] for call in given])
    assert list(inner._requests) == [1]
    together = session(**{key: np.concatenate([c[key] for c in given]) for key in given[0]})["f"]
    assert list(inner._requests) == [1, 3]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    # Further numbers share one graph, so that a caller whose batches vary compiles no more.
    for count in (2, 4, 5):
        rows = {key: np.concatenate([value] * count) for key, value in given[0].items()}
        np.testing.assert_allclose(session(**rows)["f"], np.repeat(alone[:1], count, 0), atol=1e-5)
    assert list(inner._requests) == [1, 3, None]


def test_a_bundle_is_compiled_once_and_again_when_what_was_kept_is_damaged(
    student_dir, tmp_path, monkeypatch
):
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "kept"))
    out = export_student(student_dir, "openvino", "fp32", tmp_path / "b")
    assert not (tmp_path / "kept").exists()  # what is not yet proven is not kept
    kind, counts = ov.Core, []

    class Counted(kind):
        def compile_model(self, *arguments):
            counts.append("compile")
            return super().compile_model(*arguments)

    monkeypatch.setattr(ov, "Core", Counted)
    first = Pipeline.load(out, threads=1)(["red apple"], seed=3)
    assert (
        len(counts) == len(Manifest.read(out).graphs) == len(list((tmp_path / "kept").iterdir()))
    )
    second = Pipeline.load(out, threads=1)(["red apple"], seed=3)
    assert len(counts) == 3
    np.testing.assert_array_equal(first.images, second.images)
    for file in (tmp_path / "kept").iterdir():
        file.write_bytes(file.read_bytes()[:-9])
    third = Pipeline.load(out, threads=1)(["red apple"], seed=3)
    assert len(counts) == 6
    np.testing.assert_array_equal(first.images, third.images)


def test_without_openvino_the_package_is_named(make, tmp_path, monkeypatch):
    graph = make("fp32")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ValueError, match="pip install openvino"):
        open_graph("openvino", tmp_path, graph)


def test_nothing_is_reported_over_the_network(tmp_path):
    program = """
import sys
import edgedistill_export.targets.openvino
assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]
import openvino_telemetry  # is there for others
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Where it keeps an id for this user.
    assert not (tmp_path / "intel").exists()
