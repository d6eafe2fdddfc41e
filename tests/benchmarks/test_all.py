"""Every benchmark can still be started: its imports and its command line are whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PROGRAMS = sorted(
    file for file in BENCHMARKS.glob("*.py") if "__main__" in file.read_text("utf-8")
)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda file: file.stem)
def test_a_benchmark_says_how_it_is_used(program):
    done = subprocess.run(
        [sys.executable, program, "--help"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.startswith("usage: ")
