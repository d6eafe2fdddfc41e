"""Rebuild the embedded teacher: `python examples/emoji/build.py`.

Finished stages are skipped and an interrupted one goes on from its checkpoint. Every stage is its
own process, so that it starts with the threads and the memory allocation it wants.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # examples/, for common

import assemble
import autoencoder
import clip
import data
import decoder
import measure
import teacher
import tokenizer

HERE = Path(__file__).resolve().parent
ASSETS = HERE.parents[1] / "edgedistill" / "assets" / "emoji"


@dataclass(frozen=True)
class Stage:
    """A step of the build: what it does, how many threads it may use, the stages it needs."""

    work: Callable[[Path], object]
    threads: int = 1
    needs: tuple[str, ...] = ()


def _prepare(work: Path) -> None:
    data.fetch(work)
    data.prepare(work)


STAGES = {
    "data": Stage(_prepare),
    "tokenizer": Stage(tokenizer.train, needs=("data",)),
    "autoencoder": Stage(
        lambda work: autoencoder.run(work, autoencoder.Config()),
        threads=autoencoder.Config.threads,
        needs=("data",),
    ),
    "teacher": Stage(
        lambda work: teacher.run(work, teacher.Config()),
        needs=("tokenizer", "autoencoder"),
    ),
    "decoder": Stage(lambda work: decoder.run(work, decoder.Config()), needs=("autoencoder",)),
    "clip": Stage(lambda work: clip.run(work, clip.Config()), needs=("tokenizer", "decoder")),
    "assemble": Stage(
        lambda work: assemble.run(work, ASSETS), needs=("teacher", "decoder", "clip")
    ),
    "measure": Stage(
        lambda work: measure.run(work, ASSETS, HERE / "grid.png", measure.Config()),
        needs=("assemble",),
    ),
}


def start(name: str, work: Path) -> subprocess.Popen[bytes]:
    """Run one stage in a fresh interpreter.

    glibc hands large tensors back to the system after every step and faults them in again at the
    next, which is slow on virtual machines; the variables tell it to keep them.
    """
    environment = os.environ | {
        "OMP_NUM_THREADS": str(STAGES[name].threads),
        "MALLOC_MMAP_THRESHOLD_": str(2**32),
        "MALLOC_TRIM_THRESHOLD_": "-1",
        "MALLOC_TOP_PAD_": str(2**28),
    }
    command = [sys.executable, "-u", str(HERE / "build.py"), "--work", str(work), "--only", name]
    return subprocess.Popen(command, env=environment)


def build(work: Path) -> None:
    """Run what is not done, at most as many threads at once as there are processors."""
    work.mkdir(parents=True, exist_ok=True)
    done = {name for name in STAGES if (work / f"{name}.done").exists()}
    running: dict[str, subprocess.Popen[bytes]] = {}
    processors = os.cpu_count() or 1
    while len(done) < len(STAGES):
        for name, stage in STAGES.items():
            busy = sum(STAGES[other].threads for other in running)
            free = not running or busy + stage.threads <= processors
            if free and name not in done and name not in running and done.issuperset(stage.needs):
                running[name] = start(name, work)
        time.sleep(1)
        for name, process in list(running.items()):
            if process.poll() is None:
                continue
            del running[name]
            if process.returncode:
                raise SystemExit(f"stage {name} failed; run this again to go on from there")
            (work / f"{name}.done").touch()
            done.add(name)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=HERE / "output", help="where files go meanwhile"
    )
    parser.add_argument("--only", choices=STAGES, help="run one stage here and now")
    arguments = parser.parse_args()
    if arguments.only:
        STAGES[arguments.only].work(arguments.work)
    else:
        build(arguments.work)


if __name__ == "__main__":
    main()
