"""The percent-scripts of examples/ run to their end, and their cells are cells."""

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
SAYS = {
    "first_hour": r"difference of student and bundle: [01] of 255\nbundle:ort-fp32: \d+ ms",
    "compare_methods": r"(lcm|ctm|dmd2) +[\d.]+ +[\d.]+ +[\d.]+\nteacher +[01]\.\d\d\n$",
    "your_own_teacher": r"student: FD [\d.]+ in 4 calls\nBundle\(.*: it draws the student's pict",
}


@pytest.mark.usefixtures("quick_fit")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_runs_to_its_end(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(script), "--quick"])
    runpy.run_path(str(script), run_name="__main__")
    assert re.search(SAYS[script.stem], capsys.readouterr().out)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_made_of_cells(script):
    text = script.read_text(encoding="utf-8")
    heads = re.findall(r"^# %%(?: \[markdown\])?$", text, re.M)
    assert heads.count("# %%") >= 3
    assert heads.count("# %% [markdown]") >= 3
    assert text.startswith("# %% [markdown]\n# # ")
    assert "--quick" in text
