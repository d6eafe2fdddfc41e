"""benchmarks/methods.py and methods_runs.py: workers, failures, what is kept, one step."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from signals import interruptible

from edgedistill import recipes
from edgedistill.cli import app
from edgedistill.teachers.families.mixture import Mixture

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))
methods = importlib.import_module("methods")
runs = importlib.import_module("methods_runs")

# The benchmark with short fits and few samples, in its workers too: they import its main file.
PROGRAM = f"""
import os, sys
sys.path.append({str(BENCHMARKS)!r})
from edgedistill.teachers.families import mixture
import methods, methods_runs
mixture.FIT_STEPS, mixture.FIT_BATCH = 20, 64
methods_runs.SAMPLES, methods_runs.PATHS = 200, 50
measure = methods_runs.measure
def fragile(case):
    if case.method == "cd":
        os._exit(7)
    return measure(case)
methods_runs.measure = fragile
if __name__ == "__main__":
    methods.main()
"""
WORDS = ("train.steps=3", "train.batch_size=64", "data.samples=64")
GOOD = ("lcm", "kd", "gdd")


@pytest.fixture(scope="module")
def made(tmp_path_factory, two_modes):
    """(OUT, what the command did) of two workers: three methods, one that fails, one that dies.

    Once that has been replaced, two workers make three students: one of them shares a fit.
    """
    here = tmp_path_factory.mktemp("methods")
    (here / "program.py").write_text(PROGRAM)
    command = [sys.executable, "program.py", "cd", "lcm", "kd", "diffusion-dpo", "gdd"]
    command += ["--mixtures", str(two_modes), "--out", str(here / "out")]
    done = subprocess.run(
        [*command, *(f"--set={word}" for word in WORDS)],
        cwd=here,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert (here / "out" / "methods.json").is_file(), done.stderr[-2000:]
    return here / "out", done


@pytest.fixture
def few(monkeypatch, quick_fit):
    """The same fits and samples in this process."""
    monkeypatch.setattr(runs, "SAMPLES", 200)
    monkeypatch.setattr(runs, "PATHS", 50)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rows(out: Path) -> list[dict]:
    return json.loads((out / "methods.json").read_text())


def weights(student: Path) -> dict[str, torch.Tensor]:
    (file,) = student.rglob("*.safetensors")
    return load_file(file)


def case_of(out: Path, mixture: Path, *words: str, again: bool = False) -> runs.Case:
    return runs.Case("lcm", str(mixture), (*WORDS, *words), out / "lcm-two", again)


@pytest.mark.parametrize("method", GOOD)
def test_students_of_workers_are_those_of_plain_runs(
    method, made, few, two_modes, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = ["distill", f"recipe=mixture-{method}", f"teacher.path={two_modes}", "out=plain"]
    app([*words, *WORDS], standalone_mode=False)
    plain = weights(tmp_path / "plain" / "student")
    worker = weights(made[0] / f"{method}-two" / "student")
    assert plain.keys() == worker.keys()
    assert all(torch.equal(plain[name], worker[name]) for name in plain)


def test_a_shared_fit_is_the_fit(few, two_modes, monkeypatch):
    def spawn(seed: int) -> dict[str, torch.Tensor]:
        denoiser = Mixture.load(str(two_modes)).spawn(torch.Generator().manual_seed(seed))
        before = {name: weight.clone() for name, weight in denoiser.net.state_dict().items()}
        torch.nn.init.zeros_(next(denoiser.parameters()).data)  # which no later one sees
        return before

    plain = [spawn(3), spawn(4)]
    monkeypatch.setattr(Mixture, "spawn", Mixture.spawn)  # put back afterwards
    fits = runs.Fits()
    fits.share()
    made = [spawn(3), spawn(4)]
    assert fits.spared == 0
    made.append(spawn(3))
    assert fits.spared > 0
    for own, shared in zip([*plain, plain[0]], made, strict=True):
        assert all(torch.equal(own[name], shared[name]) for name in own)


def test_what_fails_is_a_line_and_the_others_go_on(made):
    out, done = made
    assert done.returncode == 1
    failed = {line for line in done.stdout.splitlines() if "failed" in line}
    assert failed == {
        "diffusion-dpo-two failed: no student or bundle folder at 'runs/mixture-lcm/student'",
        "cd-two failed: its process died with exit code 7",
    }
    assert [row["method"] for row in rows(out)] == list(GOOD)
    assert all(row["seconds"] > 0 for row in rows(out))
    assert " of 3 runs reach every goal\n" in done.stdout
    assert "2 of 5 runs failed" in done.stderr
    # The user's own latest run is not this one.
    assert not (out.parent / "runs").exists()


def test_a_run_that_is_there_is_read(made, two_modes):
    out = made[0]
    before = (out / "lcm-two").stat().st_ino
    row = runs.measure(case_of(out, two_modes))
    (expected,) = [row for row in rows(out) if row["method"] == "lcm"]
    assert {**expected, "missed": row.missed()} == expected
    assert row == runs.Row(**{k: v for k, v in expected.items() if k != "missed"})
    assert (out / "lcm-two").stat().st_ino == before


@pytest.mark.parametrize("change", ["recipe", "again", "unfinished"])
def test_another_recipe_is_a_new_run(change, made, few, two_modes, tmp_path):
    shutil.copytree(made[0] / "lcm-two", tmp_path / "lcm-two")
    old = tmp_path / "lcm-two" / "old"
    old.touch()
    if change == "unfinished":
        (tmp_path / "lcm-two" / runs.KEPT).unlink()
    words = ["train.steps=2"] if change == "recipe" else []
    case = case_of(tmp_path, two_modes, *words, again=change == "again")
    row = runs.measure(case)
    assert not old.exists()
    assert recipes.read(case.folder / "recipe.yaml")["train"]["steps"] == (2 if words else 3)
    # And that one is read from now on.
    old.touch()
    assert runs.measure(case_of(tmp_path, two_modes, *words)) == row
    assert old.exists()


def test_what_a_run_depends_on(two_modes, tmp_path, monkeypatch):
    file = tmp_path / "two.json"
    shutil.copy(two_modes, file)
    recipe = case_of(tmp_path, file).recipe()
    keys = [
        runs.key_of(recipe),
        runs.key_of(case_of(tmp_path, file, "train.seed=1").recipe()),
    ]
    file.write_text(file.read_text().replace("0.5", "0.6"))
    keys.append(runs.key_of(recipe))
    monkeypatch.setattr(runs, "CODE", "another")
    keys.append(runs.key_of(recipe))
    assert len({*keys}) == len(keys)


def test_a_run_whose_code_changed_meanwhile_is_not_kept(few, two_modes, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "CODE", "as it was")
    case = case_of(tmp_path, two_modes)
    runs.measure(case)
    assert (case.folder / "student").is_dir()
    assert not (case.folder / runs.KEPT).exists()


def test_one_step_where_it_is_claimed_and_once(tmp_path):
    words = ["tract", "boot", "sds", "--mixtures", "ring", "--out", str(tmp_path)]
    names = [case.folder.name for case in methods.cases_of(methods.arguments(words))]
    assert names == ["tract-ring", "boot-ring", "sds-ring"]
    cases = methods.cases_of(methods.arguments([*words, "--one-step"]))
    assert [case.folder.name for case in cases] == ["tract-ring", "tract-ring-1", *names[1:]]
    assert [case.recipe().student.steps for case in cases] == [4, 1, 1, 4]
    assert [case.recipe().objective["segments"] for case in cases[:2]] == [[32, 4], [32, 1]]


@pytest.mark.parametrize("method", methods.ONE_STEP)
def test_a_claim_is_of_a_recipe_of_several_steps(method):
    assert recipes.load(runs.PREFIX + method).student.steps > 1


def test_the_summary_names_what_misses():
    good = runs.Row("kd", "ring", 4, 0.1, 1.0, 0.95, 0.9, 0.05, 60.0, 80)
    bad = runs.Row("sds", "grid", 1, 0.5, 5.0, 0.75, 0.9, None, 99.0, 80)
    assert list(methods.summary([good, bad])) == [
        "1 of 2 runs reach every goal",
        "floors   1 of 2; not sds grid 1",
        "within   2 of 2",
        "smallest 2 of 2",
        "seconds  1 of 2; not sds grid 1",
    ]


def test_a_mixture_that_cannot_be_read_is_told_before_anything_runs(tmp_path, capsys):
    file = tmp_path / "mine.json"
    file.write_text('{"weights": [1]}')
    with pytest.raises(SystemExit) as stopped:
        methods.arguments(["lcm", "--mixtures", f"ring,{file}"])
    assert stopped.value.code == 2
    assert "mine.json" in capsys.readouterr().err


def test_an_interrupted_benchmark_ends_in_a_line(two_modes, tmp_path):
    command = [sys.executable, str(BENCHMARKS / "methods.py"), "lcm", "--mixtures", str(two_modes)]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "out")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=interruptible,
    )
    assert process.stdout.readline().startswith("method")  # its worker is loading by then
    os.killpg(process.pid, signal.SIGINT)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "interrupted; the same command goes on from here"
    assert "Traceback" not in stderr


def test_alone_a_method_has_no_regression_and_a_row_of_its_own(tmp_path):
    words = ["dmd2", "lcm", "dp-dmd", "--mixtures", "ring", "--out", str(tmp_path), "--alone"]
    cases = methods.cases_of(methods.arguments(words))
    alone = [case for case in cases if case.alone]
    assert [case.method for case in alone] == ["dmd2", "dp-dmd"]  # lcm has none
    assert len({case.folder for case in cases}) == len(cases) == 5
    for case in alone:
        config = case.recipe().method_config()
        assert config.pretraining_steps == config.regression_weight == 0
        assert case.recipe().student.steps == 4
    words[-1] = "--only-alone"
    assert methods.cases_of(methods.arguments(words)) == alone


def test_a_method_has_in_one_step_what_it_needs_there():
    words = methods.arguments(["gdd", "meanflow", "ufogen", "--mixtures", "ring", "--one-step"])
    recipe = {case.folder.name: case.recipe() for case in methods.cases_of(words)}
    assert recipe["gdd-ring"].student.steps == 1
    assert recipe["meanflow-ring"].train.steps == 3000
    assert recipe["meanflow-ring-1"].train.steps == 6000
    games = [recipe[name].objective.get("loss") for name in ("ufogen-ring", "ufogen-ring-1")]
    assert games == ["non-saturating", "relativistic"]


def test_what_the_user_sets_goes_before_what_one_step_needs():
    words = ["lightning", "--mixtures", "ring", "--one-step", "--set", "train.steps=20"]
    cases = methods.cases_of(methods.arguments([*words, "--set", "student.steps=2"]))
    assert [case.recipe().student.steps for case in cases] == [2, 1]
    assert [case.recipe().train.steps for case in cases] == [20, 20]
    assert [case.recipe().objective["regressed"] for case in cases] == [1, 3]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--mixtures", "ring,"], "an empty name"),
        (["--set", "nosuch=1"], "mixture-gdd: unknown key nosuch"),
        (["--set", "train.steps=abc"], "train.steps"),
        (["--out", __file__], "not a folder"),
        (["gdd"], "there twice"),
        (["nosuch"], "no recipe mixture-nosuch"),
    ],
)
def test_what_cannot_be_run_is_told_before_anything_runs(words, line, capsys):
    assert methods.arguments(["mixture-gdd"]).methods == ["gdd"]
    with pytest.raises(SystemExit) as stopped:
        methods.arguments(["gdd", *words])
    assert stopped.value.code == 2
    assert line in capsys.readouterr().err


def test_what_needs_a_student_waits_until_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not {"pso", "diffusion-dpo", "k-dmd", "reward"} & set(methods.arguments([]).methods)
    recipe = recipes.load("mixture-k-dmd")
    before = runs.key_of(recipe)
    (folder,) = runs.students_of(recipe)
    folder.mkdir(parents=True)
    (folder / "student.json").write_text("{}")
    assert runs.key_of(recipe) != before
