"""OpenVINO at the size of Stable Diffusion 1.5: time and memory of exports, int8 against float16.

    python benchmarks/openvino_sd15.py [--runs 5] [--width 320]

A U-Net with SD 1.5's configuration and random weights (0.86 billion; it takes 13 GB of memory,
10 GB of disk and minutes) stands for a student's denoiser. Each export runs in a process of its
own, with the weights on disk as in every export, and reports its peak resident memory against the
bytes of the float32 weights. int8 and float16 are then timed alternately in one process.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypedDict

from sd15 import GRAPHS

from edgedistill_export.memory import WeightsOnDisk, watch_peak
from edgedistill_export.quiet import quiet
from edgedistill_export.targets import Job, find_target
from edgedistill_export.trace import ports
from edgedistill_runtime import manifest as schema
from edgedistill_runtime.backends import Session, open_graph

EXPORTS = (("ort", "fp32"), ("openvino", "fp16"), ("openvino", "int8"))
CALLS = 4
MIB = 2**20
FIGURES = "figures.json"
"""File of an export's figures, beside the graph."""

Port = tuple[str, list[int | str], str]
"""Name, shape and type."""


class Exported(TypedDict):
    """Figures of an export, and the manifest's entry for what became of it."""

    graph: str
    seconds: float
    before_mb: float | None
    peak_mb: float | None
    weights_mb: float
    files_mb: float
    file: str
    notes: dict[str, str]
    inputs: list[Port]
    outputs: list[Port]


def export(target: str, precision: str, folder: Path, width: int, name: str = "unet") -> Exported:
    """Export in this process; figures, and the manifest's entry for what became of it."""
    goal = find_target(target)
    builder, options = goal.builder(), goal.options({})
    graph = GRAPHS[name].graph(width)
    stored = WeightsOnDisk(graph.module, folder / "weights")
    job = Job(
        name="denoiser",
        graph=graph,
        precision=precision,
        folder=folder,
        options=options,
        calls=lambda: GRAPHS[name].calls(CALLS),
        traced=stored.forget,
    )
    gc.collect()
    with watch_peak() as empty:
        pass
    start = time.perf_counter()
    with watch_peak() as peak:
        built = builder.build(job)
    seconds = time.perf_counter() - start
    inputs, outputs = ports(graph, built.batch)
    return {
        "graph": name,
        "seconds": seconds,
        "before_mb": empty.mb,
        "peak_mb": peak.mb,
        "weights_mb": sum(p.nbytes for p in graph.module.parameters()) / MIB,
        "files_mb": sum(file.stat().st_size for file in built.files) / MIB,
        "file": built.files[0].name,
        "notes": dict(built.notes),
        "inputs": [(port.name, list(port.shape), port.dtype) for port in inputs],
        "outputs": [(port.name, list(port.shape), port.dtype) for port in outputs],
    }


def export_apart(
    target: str, precision: str, folder: Path, width: int, name: str = "unet"
) -> Exported:
    """The same in a process of its own."""
    folder.mkdir()
    command = [sys.executable, __file__, "--width", str(width), "--graph", name]
    command += ["--export", target, precision, str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: Exported = json.loads(done.stdout.splitlines()[-1])
    return figures


def session(folder: Path, figures: Exported, threads: int) -> Session:
    """Open what `export` made."""

    def read(rows: list[Port]) -> tuple[schema.Port, ...]:
        return tuple(schema.Port(name=n, shape=tuple(s), dtype=d) for n, s, d in rows)

    graph = schema.Graph(
        file=figures["file"],
        sha256={},
        precision="",
        inputs=read(figures["inputs"]),
        outputs=read(figures["outputs"]),
        notes=figures["notes"],
    )
    return open_graph("openvino", folder, graph, threads=threads)


def race(
    sessions: dict[str, Session], runs: int, graphs: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Median seconds of a call of each, in turns; `graphs` has those that are not `unet`."""
    calls = {name: GRAPHS[(graphs or {}).get(name, "unet")].calls(1)[0] for name in sessions}
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for name, graph in sessions.items():
        graph(**calls[name])
    for _ in range(runs):
        for name, graph in sessions.items():
            start = time.perf_counter()
            graph(**calls[name])
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def memory(figures: Exported) -> str:
    """The peak of an export against its weights, where the system tells it."""
    before, peak, weights = figures["before_mb"], figures["peak_mb"], figures["weights_mb"]
    if before is None or peak is None:
        return "peak unknown"
    return (
        f"peak {peak:.0f} MiB = {peak / weights:.2f} x the weights' {weights:.0f} MiB "
        f"({before:.0f} before)"
    )


def main() -> None:
    """Print a line for each export, and the ratio of the latencies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--width", type=int, default=320, help="channels; 320 are SD 1.5's")
    parser.add_argument("--export", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--graph", choices=GRAPHS, default="unet", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.export:
        target, precision, folder = args.export
        with quiet():
            figures = export(target, precision, Path(folder), args.width, args.graph)
        (Path(folder) / FIGURES).write_text(json.dumps(figures))
        print(json.dumps(figures))
        return
    with TemporaryDirectory() as scratch:
        made = {}
        for target, precision in EXPORTS:
            folder = Path(scratch) / f"{target}-{precision}"
            figures = export_apart(target, precision, folder, args.width)
            print(
                f"{folder.name:14} {figures['seconds']:6.0f} s  {memory(figures)}  "
                f"files {figures['files_mb']:.0f} MiB",
                flush=True,
            )
            if target == "openvino":
                made[precision] = (folder, figures)
        sessions = {name: session(*one, args.threads) for name, one in made.items()}
        medians = race(sessions, args.runs)
    for name, seconds in medians.items():
        print(f"{name:14} {seconds:8.3f} s a call")
    print(f"fp16 / int8    {medians['fp16'] / medians['int8']:8.2f}")


if __name__ == "__main__":
    main()
