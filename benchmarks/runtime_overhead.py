"""What surrounds the network calls: the runtime's time over the bare ONNX Runtime calls.

    python benchmarks/runtime_overhead.py BUNDLE [--runs 50]

Both are measured alternately in one process on the same sessions. Ratio 1 is no overhead.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgedistill_runtime import Pipeline
from edgedistill_runtime.noise import noise

PROMPT = "red apple, noto"


def seconds(call: Callable[[], object]) -> float:
    """Duration of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def bare(pipe: Pipeline) -> Callable[[], None]:
    """The same graph calls on ready-made inputs, and nothing else."""
    table, graphs = pipe.manifest.steps, pipe.graphs
    shape = pipe.manifest.latent.shape
    x = noise(0, 0, 1, [shape])[0]
    assert pipe.tokenizer is not None
    tokens = pipe.tokenizer([PROMPT])
    times = [np.array([row.t], np.float32) for row in table.rows]
    cond = graphs["text_encoder"](**tokens)

    def run() -> None:
        graphs["text_encoder"](**tokens)
        for t in times:
            graphs["denoiser"](x=x, t=t, **cond)
        graphs["decoder"](x0=x)

    return run


def main() -> None:
    """Print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, nargs="?", default="runs/latest/bundles/ort-fp32")
    parser.add_argument("--runs", type=int, default=50)
    args = parser.parse_args()
    pipe = Pipeline.load(args.bundle)
    calls: dict[str, Callable[[], object]] = {
        "bare calls": bare(pipe),
        "runtime": lambda: pipe(PROMPT, seed=1),
    }
    for call in calls.values():
        for _ in range(5):
            call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(args.runs):
        for name, call in calls.items():
            taken[name].append(seconds(call))
    medians = {name: statistics.median(values) for name, values in taken.items()}
    for name, value in medians.items():
        print(f"{name:12} {1000 * value:8.2f} ms")
    print(f"{'ratio':12} {medians['runtime'] / medians['bare calls']:8.3f}")


if __name__ == "__main__":
    main()
