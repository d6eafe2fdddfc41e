"""How `passes.py` hands a graph to each engine, and how large it is there.

ONNX Runtime, OpenVINO, onnxruntime-web and TensorRT for RTX are given the traced ONNX file. Core
ML and ExecuTorch convert the network themselves, and none of the passes is for them. Programs of
Core ML and engines of TensorRT are built on any machine, and do not run here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from edgedistill.teachers.base import ExportGraph
from edgedistill_export import onnx_files
from edgedistill_export.targets import Call, Job, find_target
from edgedistill_export.trace import ports
from edgedistill_runtime.manifest import Graph

__all__ = ["ENGINES", "Engine", "Given", "Opened", "Run"]

Run = Callable[[], object]

CAPABILITY = "8.9"
"""Compute capability that TensorRT compiles for, one of its target's."""


@dataclass(frozen=True)
class Given:
    """A graph for an engine.

    Attributes:
        graph: The network.
        file: The ONNX file that it was traced to.
        call: Inputs of one call, with a batch of one.
    """

    graph: ExportGraph
    file: Path
    call: Call

    @property
    def entry(self) -> Graph:
        """Entry of a manifest, as far as sessions read it."""
        inputs, outputs = ports(self.graph)
        return Graph(
            file=self.file.name,
            sha256={},
            precision="fp32",
            inputs=inputs,
            outputs=outputs,
            notes={},
        )


@dataclass(frozen=True)
class Opened:
    """A graph in an engine.

    Attributes:
        operators: Number of operators of what the engine is given, or has built for a device.
        size: Bytes of the same.
        seconds: Time until it could run, or was built for the device that runs it.
        run: Function that runs it once; None where it cannot run here.
    """

    operators: int
    size: int
    seconds: float
    run: Run | None = None


@dataclass(frozen=True)
class Engine:
    """An engine.

    Attributes:
        target: Name of the target whose bundles it runs.
        open: Function that opens a graph.
        traced: Whether it is given the ONNX file, which the passes are for.
    """

    target: str
    open: Callable[[Given], Opened]
    traced: bool = True


def _loaded(given: Given, load: Callable[[], Run]) -> Opened:
    """Open an ONNX file by `load`, which is timed."""
    start = time.perf_counter()
    run = load()
    seconds = time.perf_counter() - start
    nodes = len(onnx.load(str(given.file), load_external_data=False).graph.node)
    size = sum(file.stat().st_size for file in onnx_files.files_of(given.file))
    return Opened(nodes, size, seconds, run)


def in_onnxruntime(given: Given) -> Opened:
    """Open a graph in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1

    def load() -> Run:
        session = onnxruntime.InferenceSession(
            str(given.file), options, providers=["CPUExecutionProvider"]
        )
        return lambda: session.run(None, given.call)

    return _loaded(given, load)


def in_openvino(given: Given, hint: str) -> Opened:
    """Open a graph in OpenVINO, compiled for this call's batch."""
    import openvino

    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": hint})

    def load() -> Run:
        model = core.read_model(str(given.file))
        model.reshape({name: list(value.shape) for name, value in given.call.items()})
        compiled = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
        request = compiled.create_infer_request()
        return lambda: request.infer(given.call)

    return _loaded(given, load)


def in_web(given: Given) -> Opened:
    """Open a graph in onnxruntime-web, in a process of node's that is called over a pipe."""
    from edgedistill_export.backends.web import WebSession

    def load() -> Run:
        session = WebSession(given.file, given.entry, threads=1)
        return lambda: session(**given.call)

    return _loaded(given, load)


def in_tensorrt(given: Given) -> Opened:
    """Build an engine of TensorRT for RTX, in float16."""
    from edgedistill_export.passes.fp16 import fp16
    from edgedistill_export.targets.trt import Options, compile_engine

    with TemporaryDirectory() as folder:
        file, engine = Path(folder) / "model.onnx", Path(folder) / "one.engine"
        model = fp16(onnx_files.read(given.file))
        onnx_files.write(model, file)
        start = time.perf_counter()
        compile_engine(file, engine, (CAPABILITY,), Options(max_batch=1))
        seconds = time.perf_counter() - start
        return Opened(len(model.graph.node), engine.stat().st_size, seconds)


def _built(given: Given, target: str, precision: str, folder: Path) -> tuple[Path, float, str]:
    """Build a graph by its target; return its file, the time it took, and a note on operators."""
    builder = find_target(target)
    job = Job(
        name="graph",
        graph=given.graph,
        precision=precision,
        folder=folder,
        options=builder.options({}),
    )
    start = time.perf_counter()
    made = builder.builder().build(job)
    return made.files[0], time.perf_counter() - start, made.notes.get("delegated", "")


def in_coreml(given: Given) -> Opened:
    """Convert a network to a program of Core ML, in float16; the size is that of its weights."""
    from edgedistill_export.mil.reader import read_package

    with TemporaryDirectory() as folder:
        package, seconds, _ = _built(given, "coreml", "fp16", Path(folder))
        size = sum(file.stat().st_size for file in package.rglob("weight.bin"))
        return Opened(len(read_package(package).operations), size, seconds)


def in_executorch(given: Given) -> Opened:
    """Convert a network for ExecuTorch, and open it there."""
    from edgedistill_export.backends.executorch import ExecuTorchSession

    with TemporaryDirectory() as folder:
        file, seconds, delegated = _built(given, "executorch", "fp32", Path(folder))
        # "xnnpack N of M nodes, ..."
        operators, size = int(delegated.split()[3]), file.stat().st_size
        session = ExecuTorchSession(file, replace(given.entry, file=file.name), threads=1)
    return Opened(operators, size, seconds, lambda: session(**given.call))


ENGINES: Mapping[str, Engine] = {
    "ort fp32": Engine("ort", in_onnxruntime),
    "openvino fp32": Engine("openvino", lambda given: in_openvino(given, "f32")),
    "openvino bf16": Engine("openvino", lambda given: in_openvino(given, "bf16")),
    "web fp32": Engine("web", in_web),
    "trt fp16": Engine("trt", in_tensorrt),
    "coreml fp16": Engine("coreml", in_coreml, traced=False),
    "executorch fp32": Engine("executorch", in_executorch, traced=False),
}
