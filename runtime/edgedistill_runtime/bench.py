"""Measures a bundle on this machine: `python -m edgedistill_runtime.bench BUNDLE --json FILE`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill_runtime.pipeline import Pipeline

__all__ = ["PROMPTS", "command", "main", "measure", "peak_rss_mb", "summary"]

PROMPTS = ("red apple", "a cat with heart eyes", "rocket", "birthday cake")
_WARM_UP, _LEAST = 3, 3


def summary(
    draw: Callable[[int], Mapping[str, float]], runs: int, seconds: float | None = None
) -> dict[str, Any]:
    """Measure latencies of drawing one picture a call.

    Args:
        draw: Function that draws picture i and returns its seconds by stage, including "total".
        runs: Number of timed calls, after the first and a few to warm up.
        seconds: Time after which no further call begins, once there are three; None is no limit.

    Returns:
        `first_s`, `p50_s`, `p90_s`, `p99_s`, and `stages`: the same percentiles by stage.
    """
    first = draw(0)["total"]
    for i in range(_WARM_UP):
        draw(i)
    start, timings = time.perf_counter(), []
    for i in range(runs):
        if seconds is not None and i >= _LEAST and time.perf_counter() - start > seconds:
            break
        timings.append(draw(i))
    stages = {stage: _percentiles([timing[stage] for timing in timings]) for stage in timings[0]}
    return {"first_s": first, **stages.pop("total"), "stages": stages}


def _percentiles(seconds: list[float]) -> dict[str, float]:
    p50, p90, p99 = np.percentile(seconds, [50, 90, 99])
    return {"p50_s": float(p50), "p90_s": float(p90), "p99_s": float(p99)}


def peak_rss_mb() -> float | None:
    """Return the peak resident memory of this process in MiB; None if the system has no figure."""
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage is not used, since a child's maximum there starts at its parent's.
        lines = status.read_text().splitlines()
        return next(int(s.split()[1]) / 1024 for s in lines if s.startswith("VmHWM:"))
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def measure(
    bundle: str | Path,
    runs: int,
    *,
    threads: int | None = None,
    providers: Sequence[str] | None = None,
    prompts: Sequence[str] = PROMPTS,
    batch: int = 1,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Load a bundle and time drawing `batch` samples a call.

    `seconds` is a limit as in `summary`.

    Returns:
        `load_s`, what `summary` returns, `peak_rss_mb`, `target` and `precision`.

    Raises:
        BundleError: If the bundle is invalid or damaged.
    """
    start = time.perf_counter()
    pipe = Pipeline.load(bundle, threads=threads, providers=providers)
    load_s = time.perf_counter() - start

    known = _readable(pipe, prompts)

    def draw(index: int) -> dict[str, float]:
        if pipe.tokenizer is None:
            return pipe.samples(batch, seed=index).timings
        texts = [known[(index + i) % len(known)] for i in range(batch)]
        return pipe(texts, seed=index).timings

    return {
        "load_s": load_s,
        **summary(draw, runs, seconds),
        "peak_rss_mb": peak_rss_mb(),
        "target": pipe.manifest.target,
        "precision": pipe.manifest.precision,
    }


def _readable(pipe: Pipeline, prompts: Sequence[str]) -> Sequence[str]:
    """Return `prompts`, or the prompt of the parity check if the bundle reads only classes."""
    try:
        if pipe.tokenizer is not None:
            pipe.tokenizer(prompts)
    except ValueError:
        return [pipe.manifest.parity.worst_prompt]
    return prompts


def command(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    figures: Callable[[argparse.Namespace], Mapping[str, Any]],
) -> int:
    """Run a command that measures, and write its figures as JSON.

    Args:
        parser: Parser of the command's arguments, to which --json is added.
        argv: Arguments; by default the process's.
        figures: Function from the parsed arguments to the figures.

    Returns:
        The exit code: 2, with one line on standard error, if `figures` raised a ValueError.
    """
    parser.add_argument("--json", type=Path, help="file to write; standard output if left out")
    args = parser.parse_args(argv)
    try:
        text = json.dumps(figures(args), indent=2) + "\n"
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if args.json:
        args.json.write_text(text, "utf-8")
    else:
        sys.stdout.write(text)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure a bundle from the command line; the exit code is 2 if the bundle is wrong."""
    parser = argparse.ArgumentParser(prog="edgedistill-bench", description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--runs", type=int, default=50, help="number of timed calls")
    parser.add_argument("--batch", type=int, default=1, help="pictures drawn by a call")
    parser.add_argument("--seconds", type=float, help="time after which no further call begins")
    parser.add_argument("--threads", type=int, help="threads inside an operator")
    parser.add_argument("--provider", action="append", help="execution provider, by preference")

    def figures(args: argparse.Namespace) -> dict[str, Any]:
        return measure(
            args.bundle,
            args.runs,
            threads=args.threads,
            providers=args.provider,
            batch=args.batch,
            seconds=args.seconds,
        )

    return command(parser, argv, figures)


if __name__ == "__main__":
    sys.exit(main())
