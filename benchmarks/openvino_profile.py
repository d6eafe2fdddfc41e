"""Where an OpenVINO graph's time goes: by kind of layer and the precision that it runs in.

    python benchmarks/openvino_profile.py FOLDER [--graph denoiser] [--threads 2]

FOLDER is a bundle, or what `openvino_sd15.py --export` or row b of `peers.py` made. The inputs are
random, one row. Prints the milliseconds of the fastest of --calls, with counters on, and the kinds
of layers with at least 1 % of the layers' time in it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import openvino
from openvino_sd15 import FIGURES
from peers_tables import markdown

from edgedistill_runtime.manifest import Graph, Manifest, Port

TYPES = {"float32": np.float32, "int64": np.int64, "int32": np.int32}


def graph_of(folder: Path, name: str) -> Graph:
    """Read the entry of a graph: a bundle's, or that of an export of one graph."""
    if not (folder / FIGURES).is_file():
        return Manifest.read(folder).graphs[name]
    figures = json.loads((folder / FIGURES).read_text())
    return Graph(
        file=figures["file"],
        sha256={},
        precision="",
        inputs=tuple(Port(name=n, shape=tuple(s), dtype=d) for n, s, d in figures["inputs"]),
        outputs=(),
        notes=figures["notes"],
    )


def random_input(port: Port) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Draw one row of a port."""
    rng = np.random.default_rng(0)
    shape = [size if isinstance(size, int) else 1 for size in port.shape]
    return rng.standard_normal(shape).astype(TYPES[port.dtype])


def main() -> None:
    """Run with counters, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--graph", default="denoiser")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calls", type=int, default=5)
    args = parser.parse_args()
    graph = graph_of(args.folder, args.graph)
    core = openvino.Core()
    for note, value in graph.notes.items():
        device, _, key = note.partition(".")
        if device == "CPU":
            core.set_property(device, {key: value})
    model = core.read_model(str(args.folder / graph.file))
    inputs = {port.name: random_input(port) for port in graph.inputs}
    model.reshape({name: list(value.shape) for name, value in inputs.items()})
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "PERF_COUNT": True,
        "INFERENCE_NUM_THREADS": args.threads,
    }
    request = core.compile_model(model, "CPU", options).create_infer_request()
    request.infer(inputs)
    calls = []
    for _ in range(args.calls):
        start = time.perf_counter()
        request.infer(inputs)
        calls.append((time.perf_counter() - start, request.profiling_info))
    taken, layers = min(calls, key=lambda call: call[0])
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for node in layers:
        spent = node.real_time.total_seconds()
        if spent:
            kind, _, precision = node.exec_type.rpartition("_")
            seconds[node.node_type, f"{kind} {precision}"].append(spent)
    total = sum(map(sum, seconds.values()))
    print(f"{1000 * taken:.1f} ms the fastest call, {1000 * total:.1f} ms in layers")
    rows = [
        [kind, how, str(len(each)), f"{1000 * sum(each):.1f}", f"{100 * sum(each) / total:.1f}"]
        for (kind, how), each in sorted(seconds.items(), key=lambda item: -sum(item[1]))
        if sum(each) >= 0.01 * total
    ]
    print(markdown(["layer", "runs as", "count", "ms", "%"], rows))


if __name__ == "__main__":
    main()
