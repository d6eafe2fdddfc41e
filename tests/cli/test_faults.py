"""The fast form of `make faults`: some kills and damages of the real programs."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_nothing_is_lost_or_silently_different():
    words = ["--kills", "1", "--damages", "24", "--fuzz", "0"]
    run = subprocess.run(
        [sys.executable, "benchmarks/faults.py", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    assert run.stdout.splitlines()[-1].startswith("| all | 29 | 29 |"), run.stdout
