"""Several students of one recipe: who learns what, and that each draws what it learned."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml

from edgedistill import recipes
from edgedistill.draw.generate import generate
from edgedistill.runs.group import Group
from edgedistill.runs.run_dir import open_run
from edgedistill.students.folder import load_student
from edgedistill.students.group import Students, open_student
from edgedistill.students.routing import divide, kmeans, ranges, route
from edgedistill.teachers import load_teacher
from edgedistill.tiny import CAPTIONS, make_tiny
from edgedistill_export.bench_subjects import find_subjects
from edgedistill_runtime.routes import Routes


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- Dividing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_separable_points_are_clustered_as_they_were_drawn(seed):
    centres = torch.tensor([[-10.0, 0.0, 1.0], [0.0, 9.0, 0.0], [8.0, -8.0, 2.0]])
    owner = torch.arange(60) % 3
    points = centres[owner] + torch.randn(60, 3, generator=seeded(seed))
    found = kmeans(points, 3, seeded(seed))
    means = torch.stack([points[owner == k].double().mean(0) for k in range(3)])
    torch.testing.assert_close(found, means)


def test_as_many_clusters_as_points_are_the_points():
    points = torch.tensor([[3.0], [1.0], [2.0], [1.0]])
    assert kmeans(points, 3, seeded()).tolist() == [[1.0], [2.0], [3.0]]
    with pytest.raises(ValueError, match=r"parts.count=4: only 3 different embeddings"):
        kmeans(points, 4, seeded())


def test_classes_are_in_consecutive_ranges_of_nearly_one_size():
    assert ranges(range(10), 3) == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
    assert ranges([4, 7], 2) == [[4], [7]]
    with pytest.raises(ValueError, match=r"parts.count=3: only 2 classes"):
        ranges([4, 7], 3)


def test_a_class_teachers_null_class_is_the_last_students(tmp_path):
    teacher = load_teacher("dit", make_tiny("dit", tmp_path / "dit"))
    routes = divide(teacher, ["red"], 4, seed=0)
    assert [len(own) for own in routes.parts] == [250, 250, 250, 251]
    assert routes.parts[1] == tuple(map(float, range(250, 500)))
    assert route(routes, teacher, ["red", "499", "999", "", "250"]) == [0, 1, 3, 3, 1]


def test_prompts_go_to_the_nearest_mean_of_the_text_encoders_states(tiny_sd):
    teacher = load_teacher("stable_diffusion", tiny_sd)
    routes = divide(teacher, CAPTIONS, 3, seed=0)
    assert routes == divide(teacher, [*CAPTIONS, *CAPTIONS], 3, seed=0)
    means = teacher.encode(CAPTIONS)["encoder_hidden_states"].double().mean(1)
    gaps = torch.cdist(means, torch.tensor(routes.parts, dtype=torch.float64))
    assert route(routes, teacher, CAPTIONS) == gaps.argmin(1).tolist()
    owner = gaps.argmin(1)
    for part, centroid in enumerate(routes.parts):  # each the mean of its own
        expected = means[owner == part].mean(0)
        torch.testing.assert_close(torch.tensor(centroid).double(), expected)


# --- Runs ---------------------------------------------------------------------------------------

SD = {
    "teacher": {"family": "stable_diffusion", "path": "x", "steps": 2, "tiny": True},
    "student": {"steps": 2},
    "objective": {"name": "lcm", "solver_steps": 4},
    "train": {"steps": 3, "batch_size": 2},
    "parts": {"count": 2},
}


@pytest.fixture
def opened(tmp_path):
    """A function (out, overrides, resume) that opens a run of the tiny teacher."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SD))

    def call(out="run", *words, resume=False):
        recipe = recipes.load(str(tmp_path / "tiny.yaml"), words)
        typed = [word.partition("=")[0] for word in words]
        folder = str(tmp_path / out)
        return open_run(recipe, folder, resume, tmp_path, typed)

    return call


def train(group, resume=False):
    """All that is left; the step at which each began."""
    began = {}
    for run in group.runs():
        began[run.part.index] = run.restore() if resume else 0
        run.train(lambda step, figures: None)
    return began


def weights(folder):
    return (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


def test_each_student_sees_its_own_conditions_alone(opened):
    group, seen = opened(), []
    for run in group.runs():
        own = run.part.own(run.teacher, CAPTIONS)
        drawn = run.source.prompts(200, seeded())
        assert set(drawn) == set(own)
        x0, cond = run.source.draw(200, seeded())
        row = [CAPTIONS.index(prompt) for prompt in drawn]
        assert torch.equal(x0, run.teacher.source().latents[row])
        assert torch.equal(
            cond["encoder_hidden_states"][5],
            run.teacher.encode(drawn[5:6])["encoder_hidden_states"][0],
        )
        seen += own
        run.train(lambda step, figures: None)
    assert sorted(seen) == sorted(CAPTIONS)


def test_samples_are_made_for_the_students_own_captions(opened, tmp_path):
    (tmp_path / "p.txt").write_text("red\nblue\na red one\nred red\n")
    words = (f"data.prompts={tmp_path / 'p.txt'}", "data.samples=8", "train.steps=1")
    made = 0
    for run in opened("run", *words).runs():
        captions = run.source.captions
        assert captions == run.part.own(run.teacher, captions)
        made += len(captions)
        run.train(lambda step, figures: None)
    assert made == 8


def test_a_method_on_paths_makes_them_for_its_own_captions(opened):
    words = ("objective.name=kd", "student.sampler=ddim", "data.samples=6", "train.steps=1")
    for run in opened("run", *words).runs():
        assert len(run.paths.caption) == 3
        assert run.paths.captions == run.part.own(run.teacher, CAPTIONS)
        run.train(lambda step, figures: None)


def test_the_group_draws_as_each_student_does(opened, tmp_path):
    group = opened()
    train(group)
    assert (tmp_path / "run" / "samples" / "students.png").is_file()
    students = open_student(tmp_path / "run")
    assert isinstance(students, Students)
    owners = route(students.routes, students.teacher, CAPTIONS)
    assert set(owners) == {0, 1}
    noise = students.noise(len(CAPTIONS), 3)
    x0 = students.sample(students.teacher.encode(CAPTIONS), noise)
    for part in (0, 1):
        student = load_student(tmp_path / "run" / "students" / str(part))
        cond = student.teacher.encode(CAPTIONS)
        rows = torch.tensor(owners) == part
        torch.testing.assert_close(x0[rows], student.sample(cond, noise)[rows])
        prompt = CAPTIONS[owners.index(part)]
        for name, source in (("all", "run"), ("one", f"run/students/{part}")):
            out = tmp_path / f"{name}.npy"
            generate(str(tmp_path / source), prompt, seed=1, count=2, out=out)
        drawn = [np.load(tmp_path / f"{name}.npy") for name in ("all", "one")]
        assert np.array_equal(*drawn)
    assert students.students[0].info.recipe["parts"] == {"count": 2, "only": 0}


def test_parts_trained_apart_are_those_trained_together(opened, tmp_path):
    train(opened("both"))
    assert train(opened("apart", "parts.only=1")) == {1: 0}
    with pytest.raises(
        ValueError, match=r"students/0: no student yet; train it with parts.only=0"
    ):
        open_student(tmp_path / "apart")
    assert train(opened("apart", "parts.only=0", resume=True), resume=True) == {0: 0}
    both, apart = (tmp_path / name / "students" for name in ("both", "apart"))
    assert (both / "students.json").read_bytes() == (apart / "students.json").read_bytes()
    for part in "01":
        assert weights(both / part) == weights(apart / part)
    assert weights(both / "0") != weights(both / "1")


def test_a_run_that_stopped_goes_on_where_it_stood(opened, tmp_path):
    train(opened("whole"))
    group = opened("run", "train.checkpoint_every=1")
    for run in group.runs():
        if run.part.index == 0:
            run.train(lambda step, figures: None)
            continue
        run.trainer._one_step(None)  # and no further
        run.trainer.step = 1
        run.trainer.save()
        break
    assert train(opened("run", resume=True), resume=True) == {1: 1}
    for part in "01":
        whole = tmp_path / "whole" / "students" / part
        assert weights(whole) == weights(tmp_path / "run" / "students" / part)
    assert train(opened("run", resume=True), resume=True) == {}
    assert train(opened("run", "train.steps=4", resume=True), resume=True) == {0: 3, 1: 3}


@pytest.fixture
def divided(opened, tmp_path):
    """The division of a run, in two folders without any."""
    train(opened("a", "parts.only=0", "train.steps=1"))
    kept = tmp_path / "a" / "students" / "students.json"
    for name in ("b", "c"):
        (tmp_path / name / "students").mkdir(parents=True)
        shutil.copy(kept, tmp_path / name / "students")
    return Routes.read(kept.parent)


def test_a_division_that_is_there_is_kept(opened, divided):
    group = opened("b", "train.seed=7", "parts.only=1")
    assert isinstance(group, Group)
    assert group.routes == divided
    with pytest.raises(ValueError, match=r"parts.count=3: .*students is of 2 students"):
        opened("c", "parts.count=3")


def test_pictures_are_encoded_once_for_all(opened, tmp_path):
    from PIL import Image

    (tmp_path / "mine").mkdir()
    for i, caption in enumerate(CAPTIONS[:6]):
        Image.new("RGB", (32, 32), (40 * i, 0, 0)).save(tmp_path / "mine" / f"{i}.png")
        (tmp_path / "mine" / f"{i}.txt").write_text(caption)
    seen = []
    for run in opened("run", f"data.pictures={tmp_path / 'mine'}", "train.steps=1").runs():
        seen += sorted(set(run.source.prompts(200, seeded())))
        run.train(lambda step, figures: None)
    assert sorted(seen) == sorted(CAPTIONS[:6])
    assert len(list((tmp_path / "run").rglob("00000.safetensors"))) == 1


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["parts.count=9"], "parts.count=9: only 8 different captions to divide"),
        (["parts.count=0"], "parts.count=0"),
        (["parts.only=2"], "parts.only=2: a student from 0 to 1 expected"),
        (["parts.count=1", "parts.only=0"], "parts.only=0: there is one student"),
        (["compress.elastic.small=0.8"], "parts.count=2: compress.elastic"),
        (["objective.name=kd", "data.paths=p"], "parts.count=2: data.paths=p"),
        (["objective.name=decoder"], "method 'decoder' makes a decoder"),
        (["student.steps=2000"], "student.steps=2000"),
        (["teacher.family=unet2d"], "takes no conditions"),
    ],
)
def test_a_wrong_request_is_one_line_and_leaves_nothing(opened, tmp_path, words, named):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=re.escape(named)) as error:
        opened("run", *words)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_reads_one_student_says_that_there_are_several(opened, tmp_path):
    train(opened("run", "train.steps=1"))
    with pytest.raises(ValueError, match=r"several students; name one, as .*students/0"):
        load_student(tmp_path / "run")
    with pytest.raises(ValueError, match=r"several students; name one, as .*students/0"):
        find_subjects([tmp_path / "run"])
    assert json.loads((tmp_path / "run/students/students.json").read_text())["schema_version"] == 2
