"""Engines are built on any machine; only the last test needs an NVIDIA GPU."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from edgedistill.teachers.base import ExportGraph
from edgedistill_export import export_student
from edgedistill_export.targets import Job, find_target
from edgedistill_export.trace import ports
from edgedistill_runtime import Manifest, Pipeline
from edgedistill_runtime.backends.ort import OrtSession
from edgedistill_runtime.backends.trt import (
    TensorRTSession,
    engine_file,
    error_log,
    find_engine,
    gpu_capability,
    load_cuda,
)
from edgedistill_runtime.manifest import Graph as Entry

trt = pytest.importorskip("tensorrt_rtx")

from edgedistill_export.targets.trt import build, compile_engine  # noqa: E402

TARGET = find_target("trt")
ALL = "sm86-sm89-sm120.engine"


class Net(nn.Module):
    """A layer of each kind: Conv, Gemm, MatMul."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(4, 32, 3, padding=1)
        self.time = nn.Linear(32, 32)
        self.out = nn.Linear(32, 16)

    def forward(self, x, t):
        scale = self.time(torch.sin(t[:, None] * torch.arange(32.0)))
        h = torch.relu(self.conv(x)) + scale[:, :, None, None]
        return self.out(h.flatten(2).transpose(1, 2))


def calls(count, batch=1):
    rng = np.random.default_rng(0)
    return [
        {
            "x": rng.normal(size=(batch, 4, 8, 8)).astype(np.float32),
            "t": rng.uniform(0, 999, size=batch).astype(np.float32),
        }
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def graph():
    return ExportGraph(Net(), {"x": torch.zeros(2, 4, 8, 8), "t": torch.zeros(2)}, ("y",))


@pytest.fixture
def job(graph, tmp_path):
    return Job(
        name="net",
        graph=graph,
        precision="fp16",
        folder=tmp_path,
        options=TARGET.options({}),
        calls=lambda: calls(8),
    )


def entry(job, built):
    inputs, outputs = ports(job.graph, built.batch)
    return Entry(
        file="net",
        sha256={},
        precision=job.precision,
        inputs=inputs,
        outputs=outputs,
        notes=dict(built.notes),
    )


def weight_types(model):
    return {
        w.name: w.data_type
        for w in model.graph.initializer
        if len(w.dims) > 1 and not w.name.endswith("_scale")
    }


def decibels(expected, found):
    return 20 * np.log10(np.abs(expected).max() / np.sqrt(np.mean((expected - found) ** 2)))


@pytest.fixture(scope="module")
def bundle(student_dir, tmp_path_factory) -> Path:
    return export_student(student_dir, "trt", out=tmp_path_factory.mktemp("trt") / "trt-fp16")


def test_a_student_becomes_engines_proven_by_their_onnx(bundle):
    manifest = Manifest.read(bundle)
    manifest.verify(bundle)
    assert (manifest.backend, manifest.precision) == ("trt", "fp16")
    parity = manifest.parity
    assert (parity.backend, parity.passed, parity.floor_db) == ("ort", True, 40)
    assert min(figures.worst for figures in parity.graphs.values()) > 50
    assert set(manifest.graphs) == {"text_encoder", "denoiser", "decoder"}
    for name, part in manifest.graphs.items():
        assert part.file == name
        assert set(part.sha256) == {f"{name}/{f}" for f in ("model.onnx", ALL)}
        assert part.notes["capabilities"] == "8.6,8.9,12.0"
        size = (bundle / name / ALL).stat().st_size
        assert part.notes["engines"] == f"{ALL} {size / 1e6:.1f} MB"


def test_the_library_knows_its_engines(bundle):
    """All it says of an engine without a GPU."""
    runtime = trt.Runtime(error_log(trt))
    malformed = int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
    for file in bundle.glob("*/*.engine"):
        engine = file.read_bytes()
        assert not runtime.get_engine_validity(engine)[1] & malformed
        header = runtime.engine_header_size
        assert runtime.get_engine_validity(bytes(header) + engine[header:])[1] & malformed


def test_an_engine_for_more_gpus_differs_in_its_header_not_its_size(job):
    built = build(job)
    folder = built.files[0]
    compile_engine(folder / "model.onnx", folder / "one.engine", ["8.6"], job.options)
    one, every = (folder / "one.engine").read_bytes(), (folder / ALL).read_bytes()
    header = trt.Runtime(error_log(trt)).engine_header_size
    assert one[:header] != every[:header]
    assert abs(len(one) - len(every)) < 0.01 * len(one)


PRECISIONS = {
    "fp16": (60, {TensorProto.FLOAT16}),
    "fp32": (110, {TensorProto.FLOAT}),
    "bf16": (45, {TensorProto.BFLOAT16}),
    "int8": (35, {TensorProto.INT8}),
    "int8-weights": (40, {TensorProto.INT8}),
    "int4-weights": (18, {TensorProto.INT8, TensorProto.INT4}),
    "fp8": (25, {TensorProto.FLOAT8E4M3FN}),
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_are_stored_as_asked_and_the_proof_computes_the_network(job, precision):
    job = replace(job, precision=precision)
    built = build(job)
    floor, kinds = PRECISIONS[precision]
    model = onnx.load(str(built.files[0] / "model.onnx"))
    onnx.checker.check_model(model, full_check=True)
    assert set(weight_types(model).values()) == kinds
    borders = [*model.graph.input, *model.graph.output]
    assert {port.type.tensor_type.elem_type for port in borders} == {TensorProto.FLOAT}
    session = OrtSession(built.proof, entry(job, built), threads=1)
    for call in calls(3, batch=2):
        expected = job.graph.module(**{k: torch.from_numpy(v) for k, v in call.items()})
        assert decibels(expected.detach().numpy(), session(**call)["y"]) > floor
    assert next(built.files[0].glob("*.engine")).stat().st_size > 0


@pytest.mark.parametrize("precision", ["int8", "int8-weights", "int4-weights", "fp8"])
def test_layers_to_keep_stay_float16(job, precision):
    built = build(replace(job, precision=precision, keep=frozenset({"conv", "time"})))
    model = onnx.load(str(built.files[0] / "model.onnx"))
    types = weight_types(model)
    assert types.pop("conv.weight_fp16") == types.pop("time.weight_fp16") == TensorProto.FLOAT16
    assert len(types) == 1
    assert TensorProto.FLOAT16 not in types.values()


def test_gpus_without_float8_are_left_out_unless_asked_for(job):
    built = build(replace(job, precision="fp8"))
    assert built.notes["capabilities"] == "8.9,12.0"
    asked = replace(
        job, name="other", precision="fp8", options=TARGET.options({"capabilities": "8.6,8.9"})
    )
    with pytest.raises(
        ValueError, match=r"'fp8' needs compute capability 8\.9 or later, not 8\.6"
    ):
        build(asked)


def test_turing_has_an_engine_of_its_own(job):
    built = build(replace(job, options=TARGET.options({"capabilities": "8.9,7.5,12.0"})))
    names = {file.name for file in built.files[0].glob("*.engine")}
    assert names == {"sm75.engine", "sm89-sm120.engine"}
    assert find_engine(built.files[0], "12.0").name == "sm89-sm120.engine"
    assert find_engine(built.files[0], "7.5").name == "sm75.engine"
    with pytest.raises(ValueError, match=r"capability 7\.5, 8\.9, 12\.0, not 9\.0"):
        find_engine(built.files[0], "9.0")


def test_one_batch_fixes_the_graph(job):
    batches = {"min_batch": "2", "opt_batch": "2", "max_batch": "2"}
    assert build(replace(job, options=TARGET.options(batches))).batch == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"capabilities": "8.9,9.0"}, r"unknown compute capability '9\.0'.*choose from .*12\.1"),
        ({"min_batch": "4"}, r"opt_batch=1: must not be under min_batch=4"),
        ({"max_batch": "0"}, r"max_batch='0'"),
        ({"opt_batch": "9"}, r"max_batch=8: must not be under opt_batch=9"),
        ({"library": "trt", "capabilities": "8.9"}, r"library=trt builds for the GPU at hand"),
        ({"library": "tensorrt"}, r"library='tensorrt'.*'rtx' or 'trt'"),
        ({"capability": "8.9"}, r"unknown option.*did you mean 'capabilities'"),
    ],
)
def test_a_wrong_option_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        TARGET.options(given)


def one_node(path, *node, **attributes):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node(*node, **attributes)], "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("acme", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))


def test_what_the_parser_does_not_know_is_named(tmp_path):
    one_node(tmp_path / "model.onnx", "Wobble", ["x"], ["y"], "net/wobble", domain="acme")
    with pytest.raises(RuntimeError, match=r"cannot compile model\.onnx: .*[Ww]obble") as caught:
        compile_engine(tmp_path / "model.onnx", tmp_path / "e", ["8.6"], TARGET.options({}))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "e").exists()


def test_what_the_compiler_refuses_is_told(job):
    folder = build(replace(job, precision="fp8")).files[0]
    with pytest.raises(RuntimeError, match=r"target\(s\) sm86.*fp8"):
        compile_engine(folder / "model.onnx", folder / "e", ["8.6"], job.options)


def without(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)


def test_without_the_library_the_runtime_says_what_to_do(bundle, monkeypatch):
    without(monkeypatch, "tensorrt_rtx")
    with pytest.raises(
        ValueError, match=r"text_encoder: needs tensorrt_rtx .*; model\.onnx in it is for other"
    ):
        Pipeline.load(bundle)


def test_without_cuda_the_runtime_says_what_to_do(bundle, monkeypatch):
    without(monkeypatch, "cuda.bindings.runtime")
    with pytest.raises(ValueError, match=r"needs cuda\.bindings .*; model\.onnx in it is"):
        Pipeline.load(bundle)


def test_library_trt_builds_where_it_is_and_a_gpu_is(job, monkeypatch):
    without(monkeypatch, "tensorrt")
    with pytest.raises(ValueError, match=r"needs tensorrt \(pip install tensorrt\)"):
        build(replace(job, options=TARGET.options({"library": "trt"})))


def gpu() -> str:
    """The GPU's compute capability, "" without one."""
    try:
        return gpu_capability(load_cuda())
    except ValueError:
        return ""


@pytest.mark.skipif(bool(gpu()), reason="there is a GPU")
def test_without_a_gpu_the_runtime_says_what_to_do(bundle):
    pytest.importorskip("cuda.bindings.runtime")
    with pytest.raises(
        ValueError, match=r"needs an NVIDIA GPU.*; model\.onnx in it is for other engines"
    ):
        Pipeline.load(bundle)


@pytest.mark.skipif(gpu() not in ("8.6", "8.9", "12.0"), reason="needs an RTX GPU")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_engine_computes_what_its_proof_does(job, precision):
    if precision == "fp8" and gpu() == "8.6":
        pytest.skip("no float8")
    built = build(replace(job, precision=precision))
    here, there = (
        session(path, entry(job, built), threads=1)
        for session, path in ((TensorRTSession, built.files[0]), (OrtSession, built.proof))
    )
    for batch in (1, 3, 17):
        call = calls(1, batch)[0]
        assert decibels(there(**call)["y"], here(**call)["y"]) > PRECISIONS[precision][0]


def test_engines_are_named_after_their_gpus():
    assert engine_file(["8.6", "8.9", "12.0"]) == ALL
