"""Class-conditional teachers: classes need no prompt file, and names come from the folder."""

import shutil

import pytest
import torch
from PIL import Image

from edgedistill.data import find_captions
from edgedistill.data.latents import find_pictures
from edgedistill.data.paths import captions_of
from edgedistill.recipes.loading import load
from edgedistill.runs.run_dir import open_run
from edgedistill.students.folder import load_student
from edgedistill.teachers import load_teacher
from edgedistill.tiny import make_tiny
from edgedistill.tiny.unet2d import pipeline

NAMES = ["zero", "one", "two, or deux", "caf\u00e9"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("classes") / "teacher"
    pipeline(classes=4).save_pretrained(folder)
    return folder


@pytest.fixture
def named(plain, tmp_path):
    folder = shutil.copytree(plain, tmp_path / "teacher")
    (folder / "classes.txt").write_bytes(("\ufeff" + "\r\n".join(NAMES) + "\r\n").encode())
    return folder


def numbers(folder, prompts):
    return load_teacher("unet2d", folder).encode(prompts)["class_labels"].tolist()


def test_names_and_numbers_are_prompts(named):
    assert numbers(named, [*NAMES, "0", "3"]) == [0, 1, 2, 3, 0, 3]
    assert load_teacher("unet2d", named).prompts == tuple(NAMES)


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        (["a", "b", "c", "d", "e"], "5 names, and the network has 4 classes"),
        (["a", "b", "a", "d"], "line 3 'a' is there twice"),
        (["a", "", "c", "d"], "line 2 is empty"),
        (["1", "2", "3", "4"], "line 1 calls class 0 '1', the number of another"),
        (["caf\u00e9".encode("latin-1").decode("latin-1"), "\0"], "NUL"),
    ],
)
def test_names_that_cannot_be_are_refused(named, lines, what):
    (named / "classes.txt").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"classes\.txt: .*{what}"):
        load_teacher("unet2d", named)


def test_fewer_names_leave_numbers(named):
    (named / "classes.txt").write_text("a\nb\n")
    assert numbers(named, ["a", "b", "2", "3", "0"]) == [0, 1, 2, 3, 0]
    assert load_teacher("unet2d", named).each == ["a", "b", "2", "3"]


def test_numbers_as_names_change_nothing(named):
    (named / "classes.txt").write_text("0\n1\n2\n3\n")
    teacher = load_teacher("unet2d", named)
    assert [*teacher.classes] == teacher.each == ["0", "1", "2", "3"]


def test_without_a_file_the_classes_are_the_captions(plain, named):
    teacher = load_teacher("unet2d", plain)
    assert find_captions(teacher, None, 6) == ["0", "1", "2", "3", "0", "1"]
    assert captions_of(load_teacher("unet2d", named), None) == NAMES


def test_every_family_of_classes(tmp_path):
    folder = make_tiny("dit", tmp_path / "dit")
    teacher = load_teacher("dit", folder)
    assert len(teacher.each) == len(set(teacher.each)) == 1000
    assert teacher.tokenize(teacher.each)["class_ids"].shape == (1000, 1)
    assert teacher.text_encoder(teacher.tokenize(teacher.each)["class_ids"]).tolist() == [
        *range(1000)
    ]


def test_a_folder_of_pictures_a_class(named, tmp_path, said):
    root = tmp_path / "pictures"
    for i, name in enumerate(["zero", "3", "two, or deux"]):
        (root / name).mkdir(parents=True)
        Image.new("RGB", (20, 20), (40 * i, 0, 0)).save(root / name / "x.png")
    teacher = load_teacher("unet2d", named)
    given = {"cache": tmp_path / "cache", "key": "caption", "run": tmp_path / "run"}
    source = find_pictures(teacher, str(root), **given).open()
    assert source.captions == ["3", "two, or deux", "zero"]
    assert said == ["pictures read 3"]
    (root / "three").mkdir()
    (root / "3" / "x.png").rename(root / "three" / "x.png")
    given["run"] = tmp_path / "other"
    with pytest.raises(ValueError, match=r"unknown class 'three'.*classes\.txt in the teacher's"):
        find_pictures(teacher, str(root), **given).open()


def test_a_student_keeps_the_names(named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["teacher.family=unet2d", f"teacher.path={named}", "teacher.guidance=1"]
    words = [*given, "train.steps=1", "train.batch_size=2", "data.samples=4", "teacher.steps=2"]
    recipe = load("emoji-lcm", [*words, "objective.solver_steps=4", "student.steps=2"])
    place = open_run(recipe, "own", False).train(lambda step, figures: None)
    teacher = load_student(place).teacher
    assert teacher.encode(["two, or deux", "1"])["class_labels"].tolist() == [2, 1]
