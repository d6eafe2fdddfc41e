"""What each pass over a student's graphs gains: nodes, size, load and time, taken in turns.

`python benchmarks/passes.py STUDENT [--calls 300]` traces the student's denoiser with and without
each pass, and runs both graphs in one process, one call of each after the other, so that both meet
the same machine. One thread, one picture a call.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime
import openvino

from edgedistill.students.folder import Student, load_student
from edgedistill.teachers.base import ExportGraph
from edgedistill_export import trace as tracing
from edgedistill_export.fuse import fuse
from edgedistill_export.onnx_build import build_onnx
from edgedistill_export.targets import Call
from edgedistill_export.walk import calls_of, networks

Run = Callable[[], object]


@contextmanager
def without_attention() -> Any:
    """Leave attention to the tracer's own translation."""
    with patch.object(tracing, "TRANSLATIONS", {}):
        yield


def without_times(graph: ExportGraph) -> ExportGraph:
    """Forget that the times are known."""
    return replace(graph, times=())


def variants(student: Student, folder: Path) -> dict[str, Path]:
    """Write the denoiser with no pass, with each and with both."""
    graph = networks(student)["denoiser"]
    plan = {
        "none": (False, False),
        "attention": (True, False),
        "times": (False, True),
        "both": (True, True),
    }
    made = {}
    for name, (attention, times) in plan.items():
        made[name] = folder / f"{name}.onnx"
        chosen = graph if times else without_times(graph)
        if attention:
            build_onnx(chosen, made[name])
        else:
            with without_attention():
                build_onnx(chosen, made[name])
    return made


def in_onnxruntime(path: Path, call: Call) -> Run:
    """Open a graph in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, call)


def in_openvino(path: Path, call: Call, hint: str) -> Run:
    """Open a graph in OpenVINO, compiled for this call's batch."""
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": hint})
    model = core.read_model(str(path))
    model.reshape({name: list(value.shape) for name, value in call.items()})
    request = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
    made = request.create_infer_request()
    return lambda: made.infer(call)


ENGINES: Mapping[str, Callable[[Path, Call], Run]] = {
    "ort fp32": in_onnxruntime,
    "openvino fp32": lambda path, call: in_openvino(path, call, "f32"),
    "openvino bf16": lambda path, call: in_openvino(path, call, "bf16"),
}


def in_turns(runs: Mapping[str, Run], calls: int) -> dict[str, list[float]]:
    """Time all graphs, one call of each after the other; milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(calls + 10):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn >= 10:
                times[name].append(1000 * (time.perf_counter() - start))
    return times


def main() -> None:
    """Print one table of graphs, and one of times and the fused student's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student", type=Path)
    parser.add_argument("--calls", type=int, default=300)
    args = parser.parse_args()
    student = load_student(args.student)
    with tempfile.TemporaryDirectory() as work:
        paths = variants(student, Path(work))
        print("| passes | nodes | MiB |\n|---|---|---|")
        for name, path in paths.items():
            nodes = len(onnx.load(str(path)).graph.node)
            print(f"| {name} | {nodes} | {path.stat().st_size / 2**20:.1f} |")
        call = calls_of(student, [student.teacher.prompts[0]], seed=0)["denoiser"][0]
        print(
            "\n| engine | passes | load s | p50 ms | of none |\n|---|---|---|---|---|", flush=True
        )
        for engine, opened in ENGINES.items():
            runs, loads = {}, {}
            for name, path in paths.items():
                start = time.perf_counter()
                runs[name] = opened(path, call)
                loads[name] = time.perf_counter() - start
            p50 = {k: float(np.median(v)) for k, v in in_turns(runs, args.calls).items()}
            for name, value in p50.items():
                share = value / p50["none"]
                print(f"| {engine} | {name} | {loads[name]:.2f} | {value:.2f} | {share:.3f} |")
        _fused(student, Path(work), args.calls)


def _fused(student: Student, work: Path, calls: int) -> None:
    """Print the loop's network calls beside the one graph."""
    graphs = networks(student)
    prompts = [student.teacher.prompts[0]]
    loop, whole = (
        calls_of(student, prompts, seed=0),
        calls_of(student, prompts, seed=0, fused=True),
    )
    for name, graph in {**graphs, "pipeline": fuse(student)}.items():
        build_onnx(graph, work / f"{name}.onnx")
    print("\n| engine | loop ms | fused ms | fused of loop |\n|---|---|---|---|", flush=True)
    for engine, opened in ENGINES.items():
        parts = {name: opened(work / f"{name}.onnx", loop[name][0]) for name in graphs}
        steps = len(student.table.rows)

        def walked(parts: Mapping[str, Run] = parts, steps: int = steps) -> None:
            for name, run in parts.items():
                for _ in range(steps if name == "denoiser" else 1):
                    run()

        one = opened(work / "pipeline.onnx", whole["pipeline"][0])
        times = in_turns({"loop": walked, "fused": one}, max(20, calls // 6))
        p50 = {k: float(np.median(v)) for k, v in times.items()}
        share = p50["fused"] / p50["loop"]
        print(f"| {engine} | {p50['loop']:.2f} | {p50['fused']:.2f} | {share:.3f} |", flush=True)


if __name__ == "__main__":
    main()
