"""Slow tests are those that are left when the cheapest have used up the budget."""

import subprocess
import sys
from pathlib import Path

import pytest
from measuring import SLOW, Measured, is_slow, read, slow

ROOT = Path(__file__).parents[1]


def test_the_cheapest_are_kept_up_to_the_budget():
    measured = Measured({"t.py::a": 5.0, "t.py::b": 0.5, "t.py::c": 1.0, "t.py::d": 3.0})
    assert slow(measured, 4.5) == ["t.py::a"]
    assert slow(measured, 4.4) == ["t.py::a", "t.py::d"]
    assert slow(measured, 100) == []


def test_the_first_test_of_a_shared_fixture_pays_for_it():
    tests = {"t.py::a": 1.0, "t.py::b": 1.5, "t.py::c": 3.0}
    uses = {"t.py::a": ["t.py::net"], "t.py::b": ["t.py::net"]}
    measured = Measured(tests, {"t.py::net": 4.0}, uses)
    assert slow(measured, 3.0) == ["t.py::a", "t.py::b"]
    assert slow(measured, 8.0) == ["t.py::b"]
    assert slow(measured, 9.5) == []


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
        "import pytest, subprocess, sys, time\n"
        "CODE = 'import time\\nwhile time.process_time() < 0.5: pass'\n"
        "def work():\n    subprocess.run([sys.executable, '-c', CODE], check=True)\n"
        "@pytest.fixture(scope='module')\n"
        "def shared():\n    work()\n"
        "def test_sleeps():\n    time.sleep(0.5)\n"
        "def test_works():\n    work()\n"
        "def test_uses(shared):\n    pass\n"
        "def test_uses_it_too(shared):\n    pass\n"
    )
    measured = tmp_path / "out" / "measured.json"
    words = ["-p", "measuring", "--rootdir", tmp_path, "-c", "/dev/null", "--measure", measured]
    command = [sys.executable, "-m", "pytest", *words, tmp_path / "test_it.py"]
    subprocess.run(command, check=True, cwd=ROOT / "tests", stdout=subprocess.DEVNULL)
    seconds = read(measured)
    assert seconds.tests["test_it.py::test_works"] > 0.4
    assert seconds.fixtures["test_it.py::shared"] > 0.4
    for name in ("test_sleeps", "test_uses", "test_uses_it_too"):
        assert seconds.tests[f"test_it.py::{name}"] < 0.3
    for name in ("test_uses", "test_uses_it_too"):
        assert seconds.uses[f"test_it.py::{name}"] == ["test_it.py::shared"]
    assert seconds.uses["test_it.py::test_works"] == []
