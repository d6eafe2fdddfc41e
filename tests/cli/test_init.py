"""`edgedistill init`: the file that it writes loads, is planned, and is what was asked for."""

import json
import os
import shutil
import sys

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from tiny import make_pipeline

from edgedistill import cli, recipes
from edgedistill.adoption.detect import look
from edgedistill.planning.architectures import shipped
from edgedistill.planning.networks import planned_networks
from edgedistill.teachers import load_teacher
from edgedistill.teachers.schedulers import SIBLINGS
from edgedistill.tiny.unet2d import pipeline as make_pixels
from edgedistill.verbs.init import BASES, FAMILIES_HERE, Wishes, detect_family, init


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("red\nblue\n")
    (tmp_path / "pictures").mkdir()
    return tmp_path


@pytest.fixture
def run(here, monkeypatch, capsys):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["edgedistill", "init", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return stopped.value.code or 0, out, err

    return call


TEACHERS = {detect_family(name): name for name in sorted(shipped())}


def test_every_family_has_a_recipe_to_start_from():
    assert set(FAMILIES_HERE) == set(TEACHERS)
    assert set(BASES.values()) <= set(recipes.shipped())


@pytest.mark.parametrize("family", TEACHERS)
def test_a_recipe_for_a_family_loads(here, family):
    wishes = Wishes(prompts=None if family == "unet2d" else "prompts.txt", steps=3, train_steps=7)
    made = init(TEACHERS[family], here / "mine.yaml", wishes)
    again = recipes.load("mine.yaml")
    assert again == made
    assert (again.teacher.family, again.teacher.path) == (family, TEACHERS[family])
    assert (again.student.steps, again.train.steps) == (3, 7)
    assert again.data.prompts == wishes.prompts
    assert recipes.header("mine.yaml").startswith("# A student of ")


def test_a_folder_of_one_s_own_is_planned(run, here, tiny_sd):
    code, out, err = run(
        tiny_sd, "--prompts", "prompts.txt", "--out", "own.yaml", "--batch-size", 2
    )
    assert (code, out) == (0, "own.yaml\n"), err
    assert "edgedistill plan recipe=own.yaml" in err
    recipe = recipes.load("own.yaml")
    assert recipe.teacher.path == str(tiny_sd)
    assert planned_networks(recipe).core == "unet"


@pytest.mark.parametrize(
    ("teacher", "words", "made"),
    [
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", ["--prompts", "prompts.txt"], 256),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", ["--pictures", "pictures"], None),
        ("google/ddpm-cifar10-32", [], 256),
        ("google/ddpm-cifar10-32", ["--pictures", "pictures"], None),
        ("emoji", [], None),
        ("emoji", ["--prompts", "prompts.txt"], 256),
    ],
)
def test_samples_that_the_teacher_makes_are_told_and_in_the_recipe(run, teacher, words, made):
    code, _, err = run(teacher, *words, "--out", "own.yaml")
    assert code == 0, err
    data = recipes.load("own.yaml").data
    said = f"It trains on {made} samples that the teacher makes (data.samples)."
    assert ("samples" in data.model_fields_set) == (made is not None)
    assert (said in " ".join(err.split())) == (made is not None)


@pytest.mark.parametrize("words", [[], ["--family", "sdxl"]])
def test_a_teacher_that_is_not_there_is_named(run, here, words):
    code, out, err = run("./mine", *words, "--prompts", "prompts.txt", "--out", "own.yaml")
    assert (code, out) == (2, "")
    assert err.strip().endswith("no teacher at './mine': no such file or folder")
    assert not (here / "own.yaml").exists()


@pytest.mark.parametrize("method", ["dmd2", "tdm", "ladd"])
def test_another_method_takes_the_settings_of_its_family(here, method):
    wishes = Wishes(prompts="prompts.txt", method=method)
    made = init("stable-diffusion-v1-5/stable-diffusion-v1-5", here / "mine.yaml", wishes)
    assert made.objective["name"] == method
    assert recipes.load("mine.yaml") == made


def test_pictures_and_a_shipped_teacher(run):
    assert run("emoji", "--out", "e.yaml")[0] == 0  # which ships its prompts and data
    assert run("emoji", "--out", "p.yaml", "--pictures", "pictures")[0] == 0
    assert recipes.load("p.yaml").data.pictures == "pictures"


WRONG = [
    ("", "name a teacher"),
    ("nowhere", "no teacher at 'nowhere': no such file, folder, asset or Hub id"),
    ("nowhere/at-all", "nowhere/at-all: name its --family, one of dit, flux"),
    ("{sd}", "needs --prompts FILE or --pictures DIR"),
    ("{sd} --prompts no.txt", "--prompts no.txt: no such file"),
    ("{sd} --prompts prompts.txt --pictures pictures", "give one"),
    ("{sd} --prompts prompts.txt --family sdx", "unknown family 'sdx' (did you mean 'sdxl'?)"),
    ("{sd} --prompts prompts.txt --method lmc", "'lmc' (did you mean 'lcm'?)"),
    ("{sd} --prompts prompts.txt --out a.txt", "--out a.txt: a name that ends in .yaml"),
    ("{sd} --prompts prompts.txt --out there.yaml", "--out there.yaml: exists"),
    ("pictures", "no model_index.json"),
    ("google/ddpm-cifar10-32 --prompts prompts.txt", "takes no prompts"),
]


@pytest.mark.parametrize(("words", "named"), WRONG, ids=[words for words, _ in WRONG])
def test_a_wrong_request_is_one_line_and_writes_nothing(run, here, tiny_sd, words, named):
    (here / "there.yaml").write_text("mine")
    before = sorted(here.iterdir())
    code, out, err = run(*words.format(sd=tiny_sd).split())
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert named in err
    assert sorted(here.iterdir()) == before
    assert (here / "there.yaml").read_text() == "mine"


TRAINED = [
    SIBLINGS[name]
    for name in ("DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler")
]

UNREAD = [
    ("sd", "EDMEulerScheduler", "EDMEulerScheduler is a scheduler over EDM's noise levels"),
    ("sd", "FlowMatchEulerDiscreteScheduler", "is a scheduler of flow matching"),
    ("sd", "IPNDMScheduler", "is a scheduler of a kind that no family reads"),
    ("pixels", "FlowMatchEulerDiscreteScheduler", "is a scheduler of flow matching"),
]


@pytest.mark.parametrize(("folder", "scheduler", "said"), UNREAD)
def test_a_teacher_that_distill_would_refuse_has_no_recipe(
    run, here, capsys, folder, scheduler, said
):
    """The line is that of the loader, which reads the same configs."""
    made = {"sd": make_pipeline, "pixels": make_pixels}[folder]()
    made.scheduler = getattr(diffusers, scheduler)()
    made.register_modules(scheduler=made.scheduler)
    made.save_pretrained(here / "mine")
    capsys.readouterr()
    given = [] if folder == "pixels" else ["--prompts", "prompts.txt"]
    code, _, err = run("./mine", *given, "--out", "own.yaml")
    assert (code, len(err.splitlines())) == (2, 1), err
    assert said in err
    assert not (here / "own.yaml").exists()
    family = {"sd": "stable_diffusion", "pixels": "unet2d"}[folder]
    with pytest.raises(ValueError, match=scheduler) as refused:
        load_teacher(family, "./mine")
    assert err == f"edgedistill: {refused.value}\n"


def test_guidance_of_a_teacher_without_a_null_condition_is_refused_by_all(run, here, capsys):
    make_pixels().save_pretrained(here / "mine")
    capsys.readouterr()
    code, _, err = run("./mine", "--guidance", 7.5, "--out", "own.yaml")
    assert (code, len(err.splitlines())) == (2, 1), err
    assert not (here / "own.yaml").exists()
    with pytest.raises(ValueError, match=r"teacher.guidance=7.5: 'mine' has no null") as refused:
        load_teacher("unet2d", "./mine").guided(7.5)
    assert err == f"edgedistill: {refused.value}\n"
    assert run("./mine", "--out", "own.yaml")[0] == 0
    with pytest.raises(ValueError, match="no null condition") as planned:
        planned_networks(recipes.load("own.yaml", ["teacher.guidance=7.5"]))
    assert str(planned.value) == str(refused.value)


ANSWERS = {"prompts.txt\n\n\n": (4, "lcm"), "prompts.txt\n2\nscm\n": (2, "scm")}


@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal is needed")
@pytest.mark.parametrize("typed", ANSWERS)
def test_on_a_terminal_it_asks_for_what_is_missing(run, monkeypatch, tiny_sd, typed):
    ours, theirs = os.openpty()
    os.write(ours, f"{tiny_sd}\n{typed}".encode())
    with os.fdopen(theirs) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        code, out, err = run()
    os.close(ours)
    assert (code, out) == (0, "tiny.yaml\n"), err
    assert "Steps of the student" in err
    recipe = recipes.load("tiny.yaml")
    assert recipe.data.prompts == "prompts.txt"
    assert (recipe.student.steps, recipe.objective["name"]) == ANSWERS[typed]


@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal is needed")
@pytest.mark.parametrize(
    ("typed", "code", "said"),
    [("prompts.txt\nmany\n", 2, "steps 'many': a whole number"), ("\n\x04", 130, "interrupted")],
)
def test_a_wrong_answer_or_none_writes_nothing(run, here, monkeypatch, tiny_sd, typed, code, said):
    ours, theirs = os.openpty()
    os.write(ours, f"{tiny_sd}\n{typed}".encode())
    with os.fdopen(theirs) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        found = run()
    os.close(ours)
    assert found[:2] == (code, "")
    assert said in found[2]
    assert not (here / "tiny.yaml").exists()


def test_a_folder_with_any_scheduler_that_is_read_gets_a_recipe_and_is_told(run, here, tiny_sd):
    """diffusers writes -Infinity into the settings of DPM-Solver's schedulers."""
    shutil.copytree(tiny_sd, here / "mine")
    index = json.loads((here / "mine/model_index.json").read_text())
    for name, sibling in SIBLINGS.items():
        kind = getattr(diffusers, name)
        if sibling not in (
            SIBLINGS["DDIMScheduler"],
            SIBLINGS["EulerDiscreteScheduler"],
            SIBLINGS["UniPCMultistepScheduler"],
        ):
            continue
        if not issubclass(kind, diffusers.SchedulerMixin):  # a package of its own is missing
            continue
        kind().save_pretrained(here / "mine/scheduler")
        index["scheduler"] = ["diffusers", name]
        (here / "mine/model_index.json").write_text(json.dumps(index))
        words = ("--prompts", "prompts.txt", "--out", f"{name}.yaml")
        assert run("./mine", *words)[0] == 0, name
        assert look(here / "mine").scheduler == name


def test_a_file_is_known_by_its_weights_and_says_what_planning_needs(run, here, tiny_sd):
    names = ("model.diffusion_model.input_blocks.0.0.weight",)
    save_file({name: torch.zeros(1) for name in names}, here / "mine.safetensors")
    code, _, err = run("mine.safetensors", "--prompts", "prompts.txt")
    assert code == 0, err
    assert "name a folder of its configurations in teacher.config" in err
    assert "edgedistill plan" not in err
    assert recipes.load("mine.yaml").teacher.family in ("stable_diffusion", "sdxl")
    words = ("--prompts", "prompts.txt", "--config", tiny_sd, "--out", "two.yaml")
    assert "edgedistill plan recipe=two.yaml" in run("mine.safetensors", *words)[2]
