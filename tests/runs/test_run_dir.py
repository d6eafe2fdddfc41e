"""Whose a run dir is, and what a run takes up when its recipe has changed since."""

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from edgedistill import recipes
from edgedistill.common.files import WriteError, write_json
from edgedistill.diffusion.perceptual import LatentFeatures
from edgedistill.runs import run_dir
from edgedistill.runs.claims import claim_new
from edgedistill.runs.run_dir import open_run

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs flock")


@pytest.fixture
def mine(tmp_path, two_modes, quick_fit, said):
    """A function that writes mine.yaml with a batch size, and one that opens a run of it."""
    file = tmp_path / "mine.yaml"

    def write(**train):
        sections = {
            "base": "mixture-lcm",
            "teacher": {"path": str(two_modes)},
            "train": {"steps": 3, "batch_size": 8, **train},
        }
        file.write_text(yaml.safe_dump(sections))

    def opened(*words, resume=True):
        said.clear()
        typed = [word.partition("=")[0] for word in words]
        recipe = recipes.load(str(file), words)
        folder = str(tmp_path / "run")
        return open_run(recipe, folder, resume, tmp_path, typed), [*said]

    return write, opened


def test_a_changed_file_leaves_the_run_as_it_was(mine):
    write, opened = mine
    write()
    first, _ = opened("train.clip=0.5", resume=False)
    write(batch_size=16, steps=7)
    again, said = opened()
    assert again.recipe == first.recipe
    assert said[0].endswith(
        ": train.batch_size=8, not 16; train.clip=0.5, not 1.0; train.steps=3, not 7"
    )
    assert said[0].startswith("resumed with the recipe in ")


def test_what_is_typed_is_obeyed_or_refused(mine):
    write, opened = mine
    write()
    opened(resume=False)
    write(lr_warmup=5)
    longer, said = opened("train.steps=9", "train.batch_size=8")
    assert (longer.recipe.train.steps, longer.recipe.train.lr_warmup_steps) == (9, 0)
    assert said[0].startswith("train.steps=9 instead of ")
    assert "train.lr_warmup=0, not 5" in said[1]
    assert opened()[0].recipe.train.steps == 9
    (longer.folder / "checkpoints/step-00000005").mkdir(parents=True)
    (longer.folder / "checkpoints/step-00000005/state.json").touch()
    with pytest.raises(ValueError, match=r"train.steps=4: .* has done 5 steps already"):
        opened("train.steps=4")
    assert opened()[0].recipe.train.steps == 9
    fewer, said = opened("train.steps=7")
    assert fewer.recipe.train.steps == 7
    assert said[0].startswith("train.steps=7 instead of 9: ")
    assert said[0].endswith("they followed 9 in the 5 steps done")
    with pytest.raises(ValueError, match=r"was trained with train.batch_size=8, not 9"):
        opened("train.batch_size=9")


def test_nothing_is_said_where_nothing_differs(mine):
    write, opened = mine
    write()
    opened(resume=False)
    assert not any(line.startswith("resumed with") for line in opened()[1])


def test_a_run_of_another_recipe_is_refused(mine):
    write, opened = mine
    write()
    opened(resume=False)
    with pytest.raises(ValueError, match=r"was trained with name='mine', not 'yours'"):
        opened("name=yours")


def test_a_stored_recipe_that_cannot_be_read_names_its_file(mine, tmp_path):
    write, opened = mine
    write()
    opened(resume=False)
    file = tmp_path / "run" / "recipe.yaml"
    file.write_text(file.read_text().replace("lr_warmup:", "lr_warm_up:"))
    with pytest.raises(ValueError, match=r"run/recipe.yaml: unknown key train.lr_warm_up"):
        opened()


@pytest.mark.parametrize(
    "method", ["boot", "emd", "free-flow", "instaflow", "slimflow", "swiftbrush"]
)
def test_students_of_one_step_take_no_more(method):
    with pytest.raises(ValueError, match=f"student.steps=4: {method}'s students take one step"):
        recipes.load(f"mixture-{method}", ["student.steps=4"])


@pytest.mark.parametrize(
    ("regression", "warmup", "turns", "steps", "first"), [(3, 2, 3, 5, 5), (0, 0, 4, 3, 3)]
)
def test_a_run_too_short_for_its_method_says_so(
    regression, warmup, turns, steps, first, tmp_path, two_modes, quick_fit, said
):
    words = [f"teacher.path={two_modes}", f"train.steps={steps}", f"objective.turns={turns}"]
    words += [f"objective.regression={regression}", f"objective.warmup={warmup}"]
    recipe = recipes.load("mixture-dmd2", words)
    open_run(recipe, str(tmp_path / "run"), False, tmp_path)
    assert [line for line in said if "turns" in line] == [
        f"the turns of student begin at step {first}, and the run ends at {steps}"
    ]


# --- Whose a run dir is -------------------------------------------------------------------------


@pytest.fixture
def begin(two_modes, quick_fit, tmp_path, monkeypatch):
    """A function that opens a run of mixture-lcm in the working directory."""
    monkeypatch.chdir(tmp_path)

    def opened(*words, out=None, resume=False):
        recipe = recipes.load("mixture-lcm", [f"teacher.path={two_modes}", *words])
        typed = [word.partition("=")[0] for word in words]
        return open_run(recipe, out, resume, typed=typed)

    return opened


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


REFUSED = ["teacher.path=no/such.json"]


@pytest.mark.parametrize("out", [None, "deep/er/run", "there"])
def test_a_refused_run_takes_only_its_own_folder_away(begin, tmp_path, monkeypatch, out):
    """Others come while it is being refused."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").touch()
    before, others = run_dir._opened, []

    def late(recipe, folder):
        for place in ("runs/other", "deep/other", "deep/er/other", "there2/other"):
            others.append(claim_new(Path(place), numbered=False).folder / "recipe.yaml")
            others[-1].touch()
        return before(recipe, folder)

    monkeypatch.setattr(run_dir, "_opened", late)
    with pytest.raises(ValueError, match=r"no/such\.json"):
        begin(*REFUSED, out=out)
    assert all(file.is_file() for file in others)
    place = Path(out or "runs/mixture-lcm")
    assert names(place) == ["mine.txt"] if out == "there" else not place.exists()


def test_a_refused_run_leaves_no_folder_on_the_way(begin, tmp_path):
    for out in (None, "deep/er/run"):
        with pytest.raises(ValueError, match=r"no/such\.json"):
            begin(*REFUSED, out=out)
    assert names(tmp_path) == []


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_after_a_stop_before_training_the_same_command_runs(begin, monkeypatch, end):
    opened = run_dir._opened

    def stopped(*arguments):
        raise end

    monkeypatch.setattr(run_dir, "_opened", stopped)
    with pytest.raises(end):
        begin("train.steps=3", out="run")
    assert not Path("run").exists()
    monkeypatch.setattr(run_dir, "_opened", opened)
    assert begin("train.steps=3", out="run").folder == Path("run")


def test_a_run_that_could_not_be_taken_up_is_as_it_was(begin, monkeypatch):
    begin("train.steps=3", out="run")
    before = Path("run/recipe.yaml").read_text()
    monkeypatch.setattr(run_dir, "_opened", lambda *arguments: recipes.load("no-such-recipe"))
    with pytest.raises(ValueError, match="no-such-recipe"):
        begin("train.steps=9", out="run", resume=True)
    assert Path("run/recipe.yaml").read_text() == before


def test_data_that_took_time_outlive_a_full_disk(begin, monkeypatch):
    def full(recipe, folder):
        (folder / "data").mkdir()
        raise WriteError("data/1: cannot write there: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run_dir, "_opened", full)
        with pytest.raises(WriteError):
            begin(out="run")
    assert names(Path("run")) == ["data", "recipe.yaml"]
    begin(out="run", resume=True)


@linux
def test_runs_of_several_processes_have_folders_of_their_own(tmp_path):
    """Half of them are refused at once, and take their folders away."""
    program = """
import sys
from pathlib import Path
from edgedistill.runs.claims import claim_new
kept = []
for turn in range(14):
    claim = claim_new(Path(sys.argv[1]) / "runs" / "a", numbered=True)
    (claim.folder / "recipe.yaml").write_text(f"{sys.argv[2]}-{turn}")
    if turn % 2:
        claim.give_up(all_of_it=True)
    else:
        kept.append((claim, f"{sys.argv[2]}-{turn}"))
for claim, text in kept:
    assert (claim.folder / "recipe.yaml").read_text() == text, claim.folder
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    several = [subprocess.Popen([*command, str(number)]) for number in range(3)]
    assert [process.wait() for process in several] == [0, 0, 0]
    kept = list(tmp_path.glob("runs/*/recipe.yaml"))
    assert len(kept) == len({file.read_text() for file in kept}) == 21


@linux
def test_a_run_is_one_process_s_until_it_ends_or_is_killed(begin, tmp_path, two_modes):
    program = """
import sys
from edgedistill import recipes
from edgedistill.runs.run_dir import open_run
from edgedistill.teachers.families import mixture
mixture.FIT_STEPS, mixture.FIT_BATCH = 20, 64
recipe = recipes.load("mixture-lcm", [f"teacher.path={sys.argv[1]}"])
run = open_run(recipe, "run", False)
print("open", flush=True)
input()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(two_modes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "open\n"
    for resume in (True, False):
        with pytest.raises(ValueError, match="run: another process is at work there; wait until"):
            begin(out="run", resume=resume)
    other.send_signal(signal.SIGKILL)
    other.communicate()
    first = begin(out="run", resume=True)
    again = begin(out="run", resume=True)  # the same process may
    assert first.recipe == again.recipe
    assert names(Path("run")) == ["recipe.yaml"]


@linux
def test_a_run_lets_go_when_nobody_needs_it(begin):
    run = begin(out="run")
    ask = [sys.executable, "-c", "import sys, pathlib; from edgedistill.common.disk import lock;"]
    ask[-1] += "lock(pathlib.Path('run'))"
    assert subprocess.run(ask, capture_output=True).returncode == 1
    del run
    gc.collect()
    assert subprocess.run(ask, capture_output=True).returncode == 0


# --- Odd working directories --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("odd", "line"),
    [
        ("file", "runs/latest: cannot write there: a file is where a folder would be"),
        ("folder", "runs/latest: cannot write there: Is a directory"),
        ("closed", "runs/latest: cannot write there: "),
        ("dangling", ""),
    ],
)
def test_a_run_elsewhere_needs_no_link_in_the_working_directory(
    begin, tmp_path, monkeypatch, said, odd, line
):
    if odd == "file":
        Path("runs").touch()
    elif odd == "folder":
        Path("runs/latest/mine").mkdir(parents=True)
    elif odd == "dangling":
        Path("runs").mkdir()
        Path("runs/latest").symlink_to("nowhere")
    elif not Path("/proc/self").exists():
        pytest.skip("no folder that is closed to everybody")
    else:
        monkeypatch.chdir("/proc")
    out = str(tmp_path / "elsewhere" / "run")
    for resume in (False, True):
        run = begin(out=out, resume=resume)
        assert run.folder == Path(out)
    found = [text for text in said if text.startswith("runs/latest")]
    if line:
        assert [text.startswith(line) for text in found] == [True, True]
        assert all(text.endswith(f"; name the run, as {out}") for text in found)
    else:
        assert not found
        assert os.readlink("runs/latest") == os.path.relpath(out, "runs")  # noqa: PTH115
    if odd != "closed":
        assert [name for name in names(tmp_path) if name.startswith(".")] == []
    if odd == "folder":
        assert names(Path("runs")) == ["latest"]
        with pytest.raises(ValueError, match="runs: "):
            begin(out="runs/latest/mine/../../../runs", resume=True)


def test_a_run_that_cannot_be_here_says_so_and_leaves_nothing(begin, tmp_path):
    Path("runs").write_text("mine")
    with pytest.raises(ValueError, match=r"^out=runs/mixture-lcm: cannot write there: a file is"):
        begin()
    assert Path("runs").read_text() == "mine"
    assert names(tmp_path) == ["runs"]


def latents_of(path, channels):
    """A file of features of latents with so many channels."""
    LatentFeatures(channels, [4], [1]).save(path, {"about": "a test"})
    return path


@pytest.mark.parametrize(
    ("network", "line"),
    [
        (
            "emojy",
            r"^objective\.distance\.network: unknown feature 'emojy' \(did you",
        ),
        ("no/such.safetensors", r"^objective\.distance\.network: no file at 'no/such\.safetensor"),
        ("damaged.safetensors", r"^objective\.distance\.network: .*no features of latents"),
        (
            "three.safetensors",
            r"features of distance\.network are of latents of 3 channels, not",
        ),
    ],
)
@pytest.mark.parametrize("parts", [1, 2])
def test_features_that_a_distance_lacks_are_told_before_anything_is_made(
    tmp_path, monkeypatch, network, line, parts
):
    monkeypatch.chdir(tmp_path)
    Path("damaged.safetensors").write_bytes(b"x")
    latents_of(Path("three.safetensors"), 3)
    words = ["teacher.tiny=true", "teacher.steps=2", "data.samples=4", f"parts.count={parts}"]
    words += ["objective.distance.kind=latent-lpips", f"objective.distance.network={network}"]
    before = names(tmp_path)
    with pytest.raises(ValueError, match=line):
        open_run(recipes.load("emoji-diffusion2gan", words), "run", False)
    assert names(tmp_path) == before


@pytest.mark.parametrize("features", ["inception:no/such.safetensors", "./no/such"])
def test_features_that_evaluate_will_lack_are_told_in_a_line(mine, features):
    write, opened = mine
    write()
    _, said = opened(f"evaluate.features={features}", resume=False)
    file = features.removeprefix("inception:").removeprefix("./")
    line = f"evaluate.features={features}: {file} is not there, and evaluate will need it"
    assert said.count(line) == 1
    _, said = opened()
    assert said.count(line) == 1  # and the run can still be resumed


def test_a_student_of_another_shape_cannot_be_the_start(tmp_path):
    """It is told before anything trains, and leaves no run."""
    two, other = tmp_path / "two.json", tmp_path / "three.json"
    write_json(two, {"weights": [1.0], "means": [[0.0, 0.0]], "scales": [1.0]})
    write_json(other, {"weights": [1.0], "means": [[0.0, 0.0, 0.0]], "scales": [1.0]})
    words = ["train.steps=1", "evaluate.samples=2"]
    recipe = recipes.load("mixture-lcm", [f"teacher.path={two}", *words])
    first = open_run(recipe, str(tmp_path / "a"), False)
    first.train(lambda *_: None)
    start = [f"teacher.path={other}", f"student.init={tmp_path / 'a' / 'student'}"]
    with pytest.raises(ValueError, match=r"its x has the shape \(2,\) and the teacher's \(3,\)"):
        open_run(recipes.load("mixture-lcm", [*start, *words]), str(tmp_path / "b"), False)
    assert not (tmp_path / "b").exists()
