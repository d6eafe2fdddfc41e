"""Run the stages of an example in order, each once."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

__all__ = ["main", "run"]

Stage = Callable[[Path], object]
"""What a stage does, given the folder for its files."""


def run(stages: Mapping[str, Stage], work: Path, only: str | None = None) -> None:
    """Run the stages that are not done, or one of them; every finished one leaves `NAME.done`.

    The process writes its number to `output/train.pid`, or to `NAME.pid` if it runs one stage.
    """
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    (work / f"{only or 'train'}.pid").write_text(f"{os.getpid()}\n")
    for name in [only] if only else [n for n in stages if not (work / f"{n}.done").exists()]:
        print(f"{name}: starts", flush=True)
        stages[name](work)
        (work / f"{name}.done").touch()


def main(stages: Mapping[str, Stage], here: Path, about: str | None, snapshot: Stage) -> None:
    """Parse an example's command line and do what it says."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=here / "output", help="where files go meanwhile"
    )
    parser.add_argument("--only", choices=stages, help="run one stage, done or not")
    parser.add_argument("--snapshot", action="store_true", help="write snapshot/ and end")
    given = parser.parse_args()
    if given.snapshot:
        snapshot(given.work)
    else:
        run(stages, given.work, given.only)
