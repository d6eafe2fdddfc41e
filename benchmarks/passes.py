"""What each pass over a student's graphs gains on every target: operators, size, load and time.

`python benchmarks/passes.py STUDENT [--calls 300] [--engines "web fp32,trt fp16"]` traces the
student's denoiser with and without each pass. An engine has all graphs open at once and runs them
in turns, one call of each after the other, so that all meet the same machine. One thread, one
picture a call. The second table is the whole student: its networks in a loop, and as one graph.
Engines that are built and do not run here have no times.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from passes_engines import ENGINES, Engine, Given, Opened, Run

from edgedistill.students.folder import Student, load_student
from edgedistill.teachers.base import ExportGraph
from edgedistill_export import trace as tracing
from edgedistill_export.fuse import fuse
from edgedistill_export.onnx_build import build_onnx
from edgedistill_export.targets import find_target
from edgedistill_export.walk import calls_of, networks

WARM_UP = 10
PASSES = {
    "none": (False, False),
    "attention": (True, False),
    "times": (False, True),
    "both": (True, True),
}
"""Whether attention and the times are passed over, by a row's name."""


@contextmanager
def without_attention() -> Any:
    """Leave attention to the tracer's own translation."""
    with patch.object(tracing, "TRANSLATIONS", {}):
        yield


def without_times(graph: ExportGraph) -> ExportGraph:
    """Forget that the times are known."""
    return replace(graph, times=())


def prompts(student: Student) -> list[str]:
    """Return the prompt of the one picture; an empty one where the student takes none."""
    return [*student.teacher.prompts[:1], ""][:1]


def variants(student: Student, folder: Path) -> dict[str, Given]:
    """Trace the denoiser with no pass, with each and with both."""
    graph = networks(student)["denoiser"]
    call = calls_of(student, prompts(student), seed=0)["denoiser"][0]
    made = {}
    for name, (attention, times) in PASSES.items():
        chosen = graph if times else without_times(graph)
        made[name] = Given(chosen, folder / f"{name}.onnx", call)
        if attention:
            build_onnx(chosen, made[name].file)
        else:
            with without_attention():
                build_onnx(chosen, made[name].file)
    return made


def parts(student: Student, folder: Path) -> tuple[dict[str, Given], Given]:
    """Trace the student's networks, and the student as one graph."""
    given, whole = prompts(student), fuse(student)
    loop = calls_of(student, given, seed=0)
    one = calls_of(student, given, seed=0, fused=True)["pipeline"][0]
    made = {
        name: Given(graph, folder / f"{name}.onnx", loop[name][0])
        for name, graph in networks(student).items()
    }
    fused = Given(whole, folder / "pipeline.onnx", one)
    for each in (*made.values(), fused):
        build_onnx(each.graph, each.file)
    return made, fused


def in_turns(runs: Mapping[str, Run], calls: int, seconds: float) -> dict[str, float]:
    """Return the median of the calls of each graph in milliseconds, made one after the other.

    Args:
        runs: Functions that run a graph, by name.
        calls: Number of calls of each.
        seconds: Time after which no further round begins.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    begin = time.perf_counter()
    for turn in range(calls + WARM_UP):
        if turn > 2 * WARM_UP and time.perf_counter() - begin > seconds:
            break
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn >= WARM_UP:
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: float(np.median(found)) for name, found in times.items()}


def walked(opened: Mapping[str, Opened], steps: int) -> Run | None:
    """Return a function that draws a picture by the networks one after the other."""
    runs = {name: each.run for name, each in opened.items()}

    def draw() -> None:
        for name, run in runs.items():
            assert run is not None
            for _ in range(steps if name == "denoiser" else 1):
                run()

    return draw if all(runs.values()) else None


def row(cells: list[Any], opened: list[Opened], ms: float | None, base: float | None) -> str:
    """Write a row of a table: operators, size and seconds, time, and share of the base's time."""
    size = sum(each.size for each in opened) / 2**20
    seconds = sum(each.seconds for each in opened)
    cells = [*cells, sum(each.operators for each in opened), f"{size:.1f}", f"{seconds:.2f}"]
    cells += [""] * 2 if ms is None or base is None else [f"{ms:.2f}", f"{ms / base:.3f}"]
    return f"| {' | '.join(map(str, cells))} |"


def by_pass(name: str, engine: Engine, given: Mapping[str, Given], args: Any) -> list[str]:
    """Return the rows of an engine in the table of passes."""
    if not engine.traced:
        return []
    opened = {key: engine.open(each) for key, each in given.items()}
    runs = {key: each.run for key, each in opened.items() if each.run}
    p50 = in_turns(runs, args.calls, args.seconds)
    base = p50.get("none")
    return [row([name, key], [each], p50.get(key), base) for key, each in opened.items()]


def fused_of_loop(
    name: str, engine: Engine, graphs: Mapping[str, Given], whole: Given, args: Any
) -> list[str]:
    """Return an engine's two rows in the table of the whole student."""
    loop = {key: engine.open(each) for key, each in graphs.items()}
    one = engine.open(whole)
    draw, p50 = walked(loop, args.steps), {}
    if draw and one.run:
        p50 = in_turns({"loop": draw, "fused": one.run}, max(20, args.calls // 6), args.seconds)
    base = p50.get("loop")
    return [
        row([name, key], found, p50.get(key), base)
        for key, found in (("loop", [*loop.values()]), ("fused", [one]))
    ]


def table(head: str, columns: str) -> None:
    """Print the head of a table."""
    names = [*head.split(","), "operators", "MiB", "load or build s", "p50 ms", columns]
    print(f"\n| {' | '.join(names)} |\n|{'---|' * len(names)}", flush=True)


def main() -> None:
    """Print a table of passes by engine, and one of the whole student."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student", type=Path)
    parser.add_argument("--calls", type=int, default=300, help="timed calls of a graph")
    parser.add_argument("--seconds", type=float, default=120, help="after which no round begins")
    parser.add_argument(
        "--engines", type=lambda text: text.split(","), default=list(ENGINES), help="of all"
    )
    args = parser.parse_args()
    if unknown := [name for name in args.engines if name not in ENGINES]:
        parser.error(f"--engines: no {unknown[0]!r}; choose from {', '.join(ENGINES)}")
    chosen = {}
    for name in args.engines:
        if problem := find_target(ENGINES[name].target).problem():
            print(f"{name}: {problem}", file=sys.stderr)
        else:
            chosen[name] = ENGINES[name]
    student = load_student(args.student)
    args.steps = len(student.table.rows)
    with tempfile.TemporaryDirectory() as work:
        table("engine,passes", "of none")
        given = variants(student, Path(work))
        for name, engine in chosen.items():
            for line in by_pass(name, engine, given, args):
                print(line, flush=True)
        table("engine,student", "of the loop")
        graphs, whole = parts(student, Path(work))
        for name, engine in chosen.items():
            for line in fused_of_loop(name, engine, graphs, whole, args):
                print(line, flush=True)


if __name__ == "__main__":
    main()
