"""The fast form of `make faults`: some kills and damages of the real programs."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def faults(out, *words):
    return subprocess.run(
        [sys.executable, "benchmarks/faults.py", "--out", str(out), *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_nothing_is_lost_or_silently_different(tmp_path):
    """And what was tried is kept, and not tried again."""
    run = faults(tmp_path, "--kills", "1", "--damages", "20", "--fuzz", "0")
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    assert run.stdout.splitlines()[-1].startswith("| all | 29 | 29 |"), run.stdout
    file = tmp_path / "tries.jsonl"
    tries = [json.loads(line) for line in file.read_text().splitlines()]
    assert len({(line["class"], line["try"]) for line in tries}) == 29
    assert all(line["found"] == "survived" and line["how"] for line in tries)


def test_what_was_tried_is_counted_from_its_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from faults import Tries, row

    def work(found):
        return lambda dice: (found, f"dice {dice.random():.3f}", "")

    file = tmp_path / "tries.jsonl"
    first = Tries(file, seed=0)
    first.run("kill", 0, work("survived"))
    first.run("kill", 1, work("silent"))
    first.run("fuzz", "a x 50", work("survived"), 50)
    first.run("fuzz", "b x 50", work("memory"), 50)
    with file.open("a") as cut:
        cut.write('{"class": "kill", "try": 2, "se')
    again = Tries(file, seed=0)
    again.run("kill", 0, work("lost"))
    assert again.found == first.found
    again.run("kill", 3, work("survived"))
    assert Tries(file, seed=0).found == again.found
    assert row("kill", again.counted("kill", {"0", "1"})) == "| kill | 2 | 1 | 0 | 1 | 0 | 0 | 0 |"
    fuzzed = again.counted("fuzz", {"a x 50", "b x 50"})
    assert row("fuzz", fuzzed) == "| fuzz | 51 | 50 | 0 | 0 | 0 | 1 | 0 |"
    assert not Tries(file, seed=1).found
