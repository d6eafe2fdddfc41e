"""The command line: what was wrong is one line and exit 2, and what works works end to end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import save

from edgedistill import cli
from edgedistill.diffusion.prediction import Prediction
from edgedistill.networks.planar import PlanarNet
from edgedistill.teachers.families.mixture import Mixture


@pytest.fixture
def here(tmp_path, monkeypatch, quick_fit) -> Path:
    """An empty working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(monkeypatch, capfd):
    """A function (arguments) -> (exit code, stdout, stderr) that runs the real command."""

    def call(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["edgedistill", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capfd.readouterr()
        return stopped.value.code or 0, out, err

    return call


@pytest.fixture(scope="module")
def places(tmp_path_factory, two_modes, tiny_sd) -> dict[str, str]:
    """Folders and files, good and bad, for arguments to name."""
    root = tmp_path_factory.mktemp("places")
    torch.manual_seed(0)
    teacher = Mixture.load(str(two_modes))
    student = save(root / "run" / "student", teacher, PlanarNet(width=8), Prediction.V, steps=2)
    (root / "folder").mkdir()
    (root / "empty.txt").write_text("\n  \n")
    (root / "latin.txt").write_bytes(b"caf\xe9\n")
    (root / "prompts.txt").write_text("red\n")
    (root / "sd.yaml").write_text(
        f"teacher: {{family: stable_diffusion, path: {tiny_sd}}}\n"
        "objective: {name: lcm}\ntrain: {steps: 2, batch_size: 2}\n"
    )
    names = ("folder", "empty.txt", "latin.txt", "prompts.txt", "sd.yaml", "nowhere")
    return {
        "student": str(student),
        "two": str(two_modes),
        **{name.partition(".")[0]: str(root / name) for name in names},
    }


LCM = "recipe=mixture-lcm"
WRONG = [
    ("distill recipe=mixture-lmc", "'mixture-lmc' (did you mean 'mixture-lcm', "),
    ("distill recipe=no/such.yaml", "'no/such.yaml'"),
    ("distill train.steps=3", "name a recipe"),
    (f"distill {LCM} train.step=3", "train.step (did you mean train.steps?)"),
    (f"distill {LCM} train.steps=0", "train.steps=0"),
    (f"distill {LCM} train.steps", "'train.steps'"),
    (f"distill {LCM} objective.name=lmc", "'lmc' (did you mean 'lcm'?)"),
    (f"distill {LCM} teacher.family=mixtre", "'mixtre' (did you mean 'mixture'?)"),
    (f"distill {LCM} teacher.path=rign", "'rign' (did you mean 'ring'?)"),
    (f"distill {LCM} teacher.path=no/such.json", "'no/such.json'"),
    (f"distill {LCM} teacher.path=no/such.json out=mine/run", "'no/such.json'"),
    (f"distill {LCM} data.prompts={{prompts}}", "takes no prompts"),
    (f"distill {LCM} student.init={{nowhere}} teacher.path={{two}}", "{nowhere}"),
    (f"distill {LCM} --resume", "no run to resume"),
    ("distill recipe={sd} teacher.path=emojy", "'emojy'"),
    ("distill recipe={sd} teacher.path={folder}", "{folder}"),
    ("distill recipe={sd} teacher.path={nowhere}", "{nowhere}"),
    ("distill recipe={sd}", "data.prompts"),
    ("distill recipe={sd} data.prompts={empty}", "{empty}: no prompts"),
    ("distill recipe={sd} data.prompts={latin}", "{latin}: not UTF-8"),
    ("distill recipe={sd} data.prompts={nowhere}", "{nowhere}: No such file"),
    (
        "distill recipe={sd} data.prompts={prompts} student.spacing=linspace "
        "data.samples=1 teacher.steps=1",
        "student.spacing=trailing",
    ),
    ("export {student} --target orb", "'orb' (did you mean 'ort'?)"),
    ("export {student} --precision int4", "'int4'"),
    ("export {student} --prompts {empty}", "{empty}: no prompts"),
    ("export {student} --prompts {latin}", "{latin}: not UTF-8"),
    ("export {folder}", "{folder}: no student.json"),
    ("export {nowhere}", "{nowhere}"),
    ("export", "runs/latest/student"),
    ("generate {folder}", "{folder}: no student.json"),
    ("generate {nowhere}", "{nowhere}"),
    ("generate {student} prompt", "takes no prompt"),
    ("generate {student} --guidance 7.5", "teacher.guidance in its recipe"),
    ("generate {student} --out x.txt", "x.txt"),
    ("generate {student} --out {student}/student.json/x.npy", "cannot write there"),
    ("evaluate {folder}", "{folder}: no student.json"),
    ("evaluate", "runs/latest/student"),
    ("bench {folder}", "{folder}: neither a bundle"),
    ("bench", "runs/latest"),
    ("report {folder}", "{folder}: no run, student or folder of runs"),
    ("report", "runs/latest: no such file or folder"),
    ("recipes show mixture-lmc", "'mixture-lmc'"),
    ("distil recipe=x", "no such command 'distil'"),
    ("export {student} --targt ort", "no such option: --targt"),
    ("export {student} --option static", "--option 'static' is not KEY=VALUE"),
    ("export {student} --option static=1", "target 'ort' takes no options, got 'static'"),
    ("export {student} --min-psnr 30 --max-size 2 --precision int8", "not both"),
    ("export {student} --min-psnr 30", "need a quantized precision, not fp32"),
    ("export {student} --precision fp32 --precision fp16 --out x", "--out names one bundle"),
    (f"distill {LCM} out={{student}}/student.json", "cannot write there"),
    (f"distill {LCM} recipe=mixture-dmd2", "name one"),
    (f"distill {LCM} out=", "out= names nothing"),
    (f"distill {LCM} train=3", "train is a section"),
    (f"distill {LCM} compress.width=0.5", "no blocks to remove"),
    (f"distill {LCM} parts.count=2", "parts.count=2: teacher 'ring' takes no conditions"),
    (f"distill {LCM} parts.count=2 out=mine/run", "takes no conditions"),
    (f"distill {LCM} parts.only=1", "parts.only=1: there is one student"),
    (f"distill {LCM} parts.cuont=2", "parts.cuont (did you mean parts.count?)"),
    ("export {student} --out {student}/student.json", "is a file"),
    ("export {student} --out {student}/student.json/x", "cannot write there"),
    ("export {student} --precision int8 --max-size -1", "--max-size -1: a number above 0"),
    ("export {student} --depth small", "--depth small: this student has one depth only"),
    ("export {student} --decoder {nowhere}", "no decoder to replace"),
    ("bench {student} --json {student}/student.json/x.json", "cannot write there"),
    ("evaluate {student} --json {student}/student.json/x.json", "cannot write there"),
    ("generate {student} --count none", "invalid value for '--count'"),
]


@pytest.mark.parametrize(("command", "named"), WRONG, ids=[command for command, _ in WRONG])
def test_a_wrong_request_is_one_line_and_leaves_nothing(here, run, places, command, named):
    code, out, err = run(*command.format(**places).split())
    lines = err.splitlines()
    assert code == 2, err
    assert out == ""
    assert len(lines) == 1, err
    assert lines[0].startswith("edgedistill: ")
    assert named.format(**places) in lines[0]
    assert "Traceback" not in err
    assert list(here.rglob("*")) == []


def test_a_wrong_request_keeps_an_out_folder_that_was_there(here, run, places):
    (here / "mine").mkdir()
    (here / "mine" / "notes.txt").write_text("mine")
    code, _, _ = run("distill", LCM, "teacher.path=no/such.json", "out=mine")
    assert code == 2
    assert [p.name for p in (here / "mine").iterdir()] == ["notes.txt"]


def test_debug_shows_the_traceback(here, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["edgedistill", "--debug", "distill", "recipe=mixture-lmc"])
    with pytest.raises(ValueError, match="mixture-lmc"):
        cli.main()


def test_help_names_every_verb(run):
    code, out, _ = run("--help")
    assert code == 0
    for verb in (
        "distill",
        "synth",
        "export",
        "bench",
        "generate",
        "evaluate",
        "report",
        "recipes",
        "doctor",
    ):
        assert verb in out
        assert run(verb, "--help")[0] == 0


def test_recipes_are_listed_and_shown_ready_to_be_saved(here, run):
    code, out, err = run("recipes")
    assert (code, err) == (0, "")
    assert "mixture-lcm" in out
    code, out, _ = run("recipes", "show", "mixture-lcm", "train.steps=7")
    assert code == 0
    (here / "mine.yaml").write_text(out)
    again = run("recipes", "show", "mine.yaml")
    assert again[1] == out
    assert "steps: 7" in out


def test_doctor_names_versions_teachers_methods_and_targets(run):
    code, out, err = run("doctor", "--all")
    assert (code, err) == (0, "")
    for word in ("torch", "mixture", "stable_diffusion", "lcm", "dmd2", "ort: yes", "mixture-lcm"):
        assert word in out


SMALL = ["train.steps=4", "train.batch_size=8", "train.log_every=2"]


@pytest.fixture
def trained(here, run, two_modes) -> Path:
    """A run dir of four steps."""
    code, _, err = run("distill", LCM, *SMALL, f"teacher.path={two_modes}")
    assert code == 0, err
    return here / "runs" / "mixture-lcm"


def test_from_recipe_to_report(here, run, trained, two_modes):
    assert (here / "runs" / "latest").resolve() == trained
    for name in ("recipe.yaml", "metrics.jsonl", "student/student.json", "checkpoints", "samples"):
        assert (trained / name).exists(), name
    # Samples: any number, decided by the seed.
    draws = []
    for name, seed in (("a.npy", 3), ("b.npy", 3), ("c.npy", 4)):
        code, _, err = run(
            "generate", "runs/latest/student", "--count", 7, "--seed", seed, "--out", name
        )
        assert code == 0, err
        draws.append(np.load(name))
    assert draws[0].shape == (7, 2)
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    run("generate", "runs/latest/student", "--count", 3, "--seed", 3, "--out", "few.npy")
    np.testing.assert_allclose(np.load("few.npy"), draws[0][:3], atol=1e-6)
    assert run("generate", "runs/latest/student", "--count", 50, "--out", "deep/a.png")[0] == 0
    assert (here / "deep" / "a.png").read_bytes().startswith(b"\x89PNG")
    # A bundle that draws the same.
    code, _, err = run("export", "--target", "ort")
    assert code == 0, err
    bundle = trained / "bundles" / "ort-fp32"
    assert run("generate", bundle, "--count", 7, "--seed", 3, "--out", "d.npy")[0] == 0
    np.testing.assert_allclose(np.load("d.npy"), draws[0], atol=1e-4)
    # Figures and the page.
    code, _, err = run("evaluate", "--samples", 100)
    assert code == 0, err
    figures = json.loads((trained / "eval.json").read_text())
    assert figures["student"]["w2_ratio"] > figures["teacher"]["w2_ratio"] > 0
    info = json.loads((trained / "student" / "student.json").read_text())
    assert info["evaluation"] == figures["student"]
    code, _, err = run("report")
    assert code == 0, err
    page = (trained / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "http" not in "".join(part.split('"')[0] for part in page.split('src="')[1:])
    # A file that is not what the manifest says.
    graph = bundle / "denoiser.onnx"
    data = bytearray(graph.read_bytes())
    data[-1] ^= 1
    graph.write_bytes(data)
    for verb in ("generate", "evaluate"):
        code, _, err = run(verb, bundle)
        assert code == 2
        assert len(err.splitlines()) == 1
        assert "denoiser.onnx" in err


def test_a_second_run_never_writes_into_the_first(here, run, trained, two_modes):
    before = (trained / "student" / "student.json").read_bytes()
    code, _, err = run("distill", LCM, *SMALL, f"teacher.path={two_modes}", "train.seed=5")
    assert code == 0, err
    assert (trained / "student" / "student.json").read_bytes() == before
    assert (here / "runs" / "latest").resolve() == here / "runs" / "mixture-lcm-2"
    code, _, err = run("distill", LCM, *SMALL, f"teacher.path={two_modes}", f"out={trained}")
    assert code == 2
    assert "holds a run already" in err


def test_a_run_is_taken_up_again_only_with_its_own_recipe(run, trained, two_modes):
    code, _, err = run(
        "distill", LCM, *SMALL, f"teacher.path={two_modes}", "train.batch_size=9", "--resume"
    )
    assert code == 2
    assert "train.batch_size=8, not 9" in err
    longer = [word.replace("train.steps=4", "train.steps=6") for word in SMALL]
    code, _, err = run("distill", LCM, *longer, f"teacher.path={two_modes}", "--resume")
    assert code == 0, err
    assert "resuming at step 4" in err
    assert (trained / "checkpoints" / "step-00000006").is_dir()
    code, out, err = run("distill", LCM, *longer, f"teacher.path={two_modes}", "--resume")
    assert code == 0, err
    assert "all 6 steps are done" in err
    assert "resuming" not in err
    assert out.strip() == "student runs/mixture-lcm/student"


def test_the_installed_command_says_one_line_and_nothing_of_its_libraries(here):
    command = Path(sys.executable).parent / "edgedistill"
    if not command.exists():
        pytest.skip("edgedistill is not installed as a command")
    done = subprocess.run(
        [command, "distill", LCM, "teacher.path=rign"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert "'rign'" in lines[0]


def test_ctrl_c_is_answered(run, monkeypatch):
    from edgedistill import doctor

    def interrupt(everything: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupt)
    assert run("doctor")[::2] == (130, "interrupted\n")


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [("SIGTERM", 143, "stopped by SIGTERM"), ("SIGINT", 130, "interrupted")],
)
def test_a_signal_before_training_ends_in_two_lines(run, monkeypatch, name, code, said):
    number = getattr(signal, name)

    def stopped(*arguments, **keywords):
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr("edgedistill.verbs.training.open_run", stopped)
    kept = {
        each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    }
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        ended = run("distill", "recipe=mixture-lcm")
    finally:
        for each, handler in kept.items():
            signal.signal(each, handler)
    before = "stopped before training began; run the same command again"
    assert ended == (code, "", f"{before}\n{said}\n")
