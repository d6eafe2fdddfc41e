"""Results on standard output, everything else on standard error, in every verb."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import edgedistill as ed
from edgedistill import cli
from edgedistill.common import progress
from edgedistill.teachers.families import mixture
from edgedistill_export import many

SMALL = ["train.steps=2", "train.batch_size=8"]


@pytest.fixture(scope="module")
def made(tmp_path_factory, two_modes) -> Path:
    """A working directory with a run and its bundle."""
    folder = tmp_path_factory.mktemp("streams")
    recipe = ed.load_recipe("mixture-lcm", [*SMALL, f"teacher.path={two_modes}"])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(mixture, "FIT_STEPS", 20)
        patch.setattr(mixture, "FIT_BATCH", 64)
        ed.distill(recipe, "runs/one").student.export()
    return folder


@pytest.fixture(autouse=True)
def _latest(made):
    """Tests may begin runs, but runs/latest is the first one."""
    yield
    (made / "runs" / "latest").unlink()
    (made / "runs" / "latest").symlink_to("one")


@pytest.fixture
def run(made, monkeypatch, capfd, quick_fit):
    """A function (words) -> (exit code, stdout, stderr) of the command, in `made`."""
    monkeypatch.chdir(made)

    def call(*words) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["edgedistill", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capfd.readouterr()
        return stopped.value.code or 0, out, err

    return call


BUNDLE = "runs/one/bundles/ort-fp32"
ANSWERS = {
    "recipes": "emoji-4step",
    "recipes show mixture-lcm": "objective:",
    "doctor": "ort: yes",
    "plan recipe=mixture-lcm train.steps=2": None,
    "export --target ort": f"bundle {BUNDLE}",
    "generate runs/latest/student --out a.npy": "a.npy",
    "bench --runs 1": "runs/one/bench.json",
    "evaluate --samples 50": "runs/one/eval.json",
    f"evaluate {BUNDLE} --samples 50": "runs/one/eval.json",
    "report": "runs/one/report.html",
    "--version": ed.__version__,
}


@pytest.mark.parametrize("words", ANSWERS)
def test_the_answer_is_on_standard_output(run, words):
    code, out, err = run(*words.split())
    named = ANSWERS[words]
    if named is None:  # closed-form teachers cannot be planned
        assert (code, out) == (2, "")
        return
    assert code == 0, err
    assert named in out
    assert named not in err
    assert str(Path.cwd()) not in out


def test_distil_prints_its_student_and_logs_the_rest(run, two_modes):
    words = ["distill", "recipe=mixture-lcm", *SMALL, f"teacher.path={two_modes}", "out=two"]
    code, out, err = run(*words)
    assert (code, out) == (0, "student two/student\n"), err
    assert "run two  method lcm" in err
    assert "student two/student" not in err


def test_long_work_before_training_has_a_bar(run, two_modes, monkeypatch, tmp_path):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    words = ["distill", "recipe=mixture-kd", *SMALL, f"teacher.path={two_modes}"]
    code, _, err = run(*words, "data.samples=8", f"out={tmp_path / 'kd'}")
    assert code == 0, err
    assert "teacher samples 0/8" in err
    assert "teacher samples 8/8" in err
    assert "planar fit 20/20" in err


MEASURED = {
    "bench runs/one --runs 1": ["bench 0/2  student", f"bundle:{Path(BUNDLE).name}"],
    f"evaluate {BUNDLE} --samples 50": ["evaluate 0/250  teacher", "student", "bundle:ort-fp32"],
    "report": ["report: teacher draws", "student draws", "ort-fp32 draws"],
}


@pytest.mark.parametrize("words", MEASURED)
def test_every_subject_is_told_when_its_measurement_begins(run, words):
    """Where there is no terminal, and however long it takes."""
    code, _, err = run(*words.split())
    assert code == 0, err
    places = [err.find(word) for word in MEASURED[words]]
    assert -1 not in places, err
    assert places == sorted(places)


@pytest.mark.parametrize("before", [True, False])
def test_quiet_and_verbose_stand_before_the_verb_or_after_it(run, two_modes, before, tmp_path):
    words = ["recipe=mixture-lcm", *SMALL, f"teacher.path={two_modes}"]
    for flag, out in (("-q", "quiet"), ("--verbose", "verbose")):
        debugs = flag == "--verbose"
        place = ["distill", f"out={tmp_path / out}", *words]
        code, said, err = run(*([flag, *place] if before else [*place, flag]))
        assert code == 0, err
        assert said.startswith("student ")
        assert (err == "") == (flag == "-q")
        assert ("edgedistill.recipes.loading: recipe " in err) == debugs
    assert run("-q", "recipes", "show", "no")[2].startswith("edgedistill: unknown recipe")
    code, _, err = run("-q", "-v", "recipes")
    assert (code, len(err.splitlines())) == (2, 1)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("bench --runs 1 --json -", "student"),
        ("evaluate --samples 50 --json -", "student"),
        ("plan recipe=emoji-4step train.batch_size=1 --json -", "memory_gb"),
        ("plan --json recipe=emoji-4step train.batch_size=1", "memory_gb"),
        ("plan recipe=emoji-4step train.batch_size=1 --json", "memory_gb"),
    ],
)
def test_json_to_standard_output_is_json_alone(run, words, key):
    code, out, err = run(*words.split())
    assert code == 0, err
    assert key in json.loads(out)


def test_json_to_a_file_and_to_standard_output_say_the_same(run, made):
    code, out, err = run("export", "--json", "rows.json")
    assert code == 0, err
    assert f"bundle {BUNDLE}" in out
    (row,) = json.loads((made / "rows.json").read_text())
    assert (row["bundle"], row["error"]) == (BUNDLE, None)
    again = json.loads(run("export", "--json", "-")[1])
    assert again[0] | {"seconds": 0} == row | {"seconds": 0}


@pytest.mark.parametrize("words", ["recipes", "recipes show emoji-4step", "doctor", "--help"])
def test_a_reader_that_leaves_ends_it_without_a_word(words):
    command = [sys.executable, "-m", "edgedistill.cli", *words.split()]
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(write)
    assert done.stderr == b""
    assert done.returncode in (progress.BROKEN_PIPE, 1)  # 1 of typer's help


MARKUP = ["[red]", "a [bold]heart[/bold]", "[/x]"]


@pytest.mark.parametrize("text", MARKUP)
def test_brackets_in_recipe_names_are_printed_as_they_are(run, text, made):
    name = text.replace("/", "-")
    place = made / f"{name}.yaml"
    place.write_text(f"base: mixture-lcm\ndescription: '{text}'\n")
    code, out, err = run("recipes", "show", f"{name}.yaml")
    assert code == 0, err
    assert f"name: '{name}'" in out or f"name: {name}" in out
    assert text in out
    code, out, err = run("distill", f"recipe={name}.yaml", "train.step=2")
    assert code == 2
    code, out, err = run("generate", "runs/one/student", text, "--out", "x.npy")
    assert (code, out) == (2, "")
    code, out, err = run("export", f"runs/{text}")
    assert text in err


def test_a_run_that_starts_during_an_export_gets_nothing(made, monkeypatch):
    from edgedistill.verbs.places import newest

    monkeypatch.chdir(made)
    link = Path("runs/latest")
    student = newest()
    other = Path("runs/other")
    other.mkdir(exist_ok=True)
    link.unlink()
    link.symlink_to("other")
    assert student == Path("runs/one/student")
    assert newest() == Path("runs/other/student")
    rows = many.export_many(student, [("ort", "fp32")], None, many.ExportSettings())
    assert rows[0].place == Path(BUNDLE)
    assert list(other.iterdir()) == []


@pytest.mark.parametrize("linked", [True, False])
def test_only_the_link_to_the_newest_run_is_followed(tmp_path, monkeypatch, linked):
    from edgedistill.verbs.places import settled

    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a" / "student").mkdir(parents=True)
    if linked:
        (tmp_path / "runs" / "latest").symlink_to("a")
    else:  # as it is where links are refused
        (tmp_path / "runs" / "latest").write_text("a\n")
    (tmp_path / "mine").symlink_to("runs/a")
    assert settled("runs/latest/student") == Path("runs/a/student")
    assert settled(tmp_path / "runs" / "latest") == tmp_path / "runs" / "a"
    assert settled("mine/student") == Path("mine/student")
    assert settled("runs/latest/../b") == Path("runs/a/../b")
    assert settled("nothing/latest") == Path("nothing/latest")
    (tmp_path / "runs" / "latest").unlink()
    (tmp_path / "out" / "b").mkdir(parents=True)
    (tmp_path / "runs" / "latest").symlink_to("../out/b")
    assert settled("runs/latest/student") == Path("out/b/student")


def test_leftovers_of_killed_exports_are_collected(run, made):
    left = made / "runs" / "one" / "bundles" / ".ort-fp16-abcd1234.part"
    left.mkdir()
    (left / "denoiser.onnx").write_bytes(b"half")
    code, _, err = run("bench", "--runs", "1")
    assert code == 0, err
    assert not left.exists()
