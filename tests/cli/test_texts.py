"""Names and paths with brackets, colons and control characters, in every verb that takes one."""

import pytest
from typer.testing import CliRunner

from edgedistill.cli import app, main
from edgedistill.common import complaints, progress

NAMES = ["a[/x]b", "[bold]", "run [v2]", "a:smile:b", "a\x1b[31mb", "a\u202eb", "[link=x]"]

VERBS = {
    "export": ["export", "{}"],
    "export --prompts": ["export", "s", "--prompts", "{}.txt"],
    "adopt": ["adopt", "{}.safetensors", "--as", "lcm-lora"],
    "adopt --as": ["adopt", "x", "--as", "{}"],
    "bench": ["bench", "{}"],
    "generate": ["generate", "{}"],
    "generate --out": ["generate", "s", "--out", "{}.gif"],
    "evaluate": ["evaluate", "{}"],
    "report": ["report", "{}"],
    "distill": ["distill", "recipe={}"],
    "distill file": ["distill", "recipe={}.yaml"],
    "distill key": ["distill", "recipe=mixture-lcm", "{}=1"],
    "distill value": ["distill", "recipe=mixture-lcm", "train.steps={}"],
    "distill name": ["distill", "recipe=mixture-lcm", "name={}/x"],
    "distill teacher": ["distill", "recipe=mixture-lcm", "teacher.path={}"],
    "synth": ["synth", "recipe={}"],
    "plan": ["plan", "recipe={}"],
    "plan --memory": ["plan", "recipe=mixture-lcm", "--memory", "{}"],
    "recipes show": ["recipes", "show", "{}"],
    "a verb": ["{}"],
    "an option": ["export", "--{}"],
}

PARSED = {"distill key", "distill value", "distill teacher", "distill name", "an option"}
"""Where brackets and = have a meaning of their own: only the form of the refusal is checked."""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verb", VERBS)
def test_a_refusal_shows_the_name_as_it_is_in_one_line(verb, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [word.replace("{}", name) for word in VERBS[verb]]
    monkeypatch.setattr("sys.argv", ["edgedistill", *words])
    monkeypatch.setattr(progress.console, "_width", 80)
    monkeypatch.setattr("edgedistill.cli.settle", lambda: None)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.endswith("\n")
    said = err.rstrip("\n").split("\n")[-1]  # libraries may have warned before
    assert said.startswith("edgedistill: ")
    assert "\x1b" not in said
    shown = progress.visible(name)
    assert verb in PARSED or shown in said or repr(name)[1:-1] in said


@pytest.mark.parametrize("name", ["out [v2]", "[/x]"])
def test_a_run_into_such_a_folder_is_told_by_its_name(name, tmp_path, monkeypatch, quick_fit):
    monkeypatch.chdir(tmp_path)
    words = ["distill", "recipe=mixture-lcm", "train.steps=2", "train.batch_size=8", f"out={name}"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert f"student {name}/student" in done.output
    assert (tmp_path / name / "student" / "student.json").is_file()


def test_a_very_long_complaint_loses_its_middle(capsys):
    complaints.complain("x" * 10**6)
    assert len(capsys.readouterr().err) < complaints.MAX_LINE + 50
