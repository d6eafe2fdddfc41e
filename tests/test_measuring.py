"""Slow tests are those that are left when the cheapest have used up the budget."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from measuring import SLOW, is_slow, slow

ROOT = Path(__file__).parents[1]


def test_the_cheapest_are_kept_up_to_the_budget():
    seconds = {"t.py::a": 5.0, "t.py::b": 0.5, "t.py::c": 1.0, "t.py::d": 3.0}
    assert slow(seconds, 4.5) == ["t.py::a"]
    assert slow(seconds, 4.4) == ["t.py::a", "t.py::d"]
    assert slow(seconds, 100) == []


@pytest.mark.parametrize("line", ["tests/a/test_b.py", "tests/a/test_b.py::test_c"])
def test_a_line_names_a_function_or_a_file(line):
    for nodeid in ("tests/a/test_b.py::test_c", "tests/a/test_b.py::test_c[x::y-1]"):
        assert is_slow(nodeid, [line])
    assert not is_slow("tests/a/test_bb.py::test_c", [line])
    assert not is_slow("tests/a/test_b.py::test_cc", ["tests/a/test_b.py::test_c"])


def test_every_line_names_a_test_that_is_there():
    lines = SLOW.read_text("utf-8").splitlines()
    assert lines == sorted(set(lines))
    for line in lines:
        file, _, name = line.partition("::")
        text = (ROOT / file).read_text("utf-8")
        assert not name or f"def {name}(" in text, line


def test_processor_time_is_measured_with_that_of_processes(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import subprocess, sys, time\n"
        "def test_sleeps():\n    time.sleep(0.5)\n"
        "def test_works():\n"
        "    code = 'import time\\nwhile time.process_time() < 0.5: pass'\n"
        "    subprocess.run([sys.executable, '-c', code], check=True)\n"
    )
    measured = tmp_path / "out" / "measured.json"
    words = ["-p", "measuring", "--rootdir", tmp_path, "-c", "/dev/null", "--measure", measured]
    command = [sys.executable, "-m", "pytest", *words, tmp_path / "test_it.py"]
    subprocess.run(command, check=True, cwd=ROOT / "tests", stdout=subprocess.DEVNULL)
    seconds = json.loads(measured.read_text())
    assert seconds["test_it.py::test_works"] > 0.4
    assert seconds["test_it.py::test_sleeps"] < 0.3
