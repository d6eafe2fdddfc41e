"""`evaluate` on tiny teachers of the families: figures, what they compare with, what is kept."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluations import STEPS, evaluated, make_student
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model

from edgedistill.common.files import read_json
from edgedistill.common.progress import bar
from edgedistill.draw import subjects
from edgedistill.draw.subjects import Subject
from edgedistill.evaluation import classifier
from edgedistill.evaluation.captions import run_captions, shown_captions
from edgedistill.evaluation.data import find_data
from edgedistill.evaluation.evaluate import Extras, evaluate_pictures
from edgedistill.evaluation.features import MiddleBlock, PixelFeatures, VisionModel, open_features
from edgedistill.evaluation.run import evaluate_subjects
from edgedistill.recipes.loading import evaluation_recipe
from edgedistill.teachers import load_teacher
from edgedistill.tiny import make_tiny
from edgedistill.tiny.unet2d import pipeline


@pytest.fixture
def grey_classes(tmp_path) -> Path:
    torch.manual_seed(0)
    pipeline(classes=2).save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


@pytest.mark.parametrize("family", ["unet2d", "dit", "sd3", "pixart", "wan"])
def test_every_family_has_figures(family, tmp_path):
    teacher = make_tiny(family, tmp_path / "teacher")
    figures = evaluated(make_student(tmp_path / "run", family, teacher))
    mine = figures["student"]
    assert mine["samples"] == 6
    assert {"fd", "kid", "fd_ratio"} <= mine.keys()
    assert mine["to_teacher"]["samples"] == 6
    assert mine["to_teacher"]["rmse"] > 0
    assert "to_teacher" not in figures["teacher"]
    assert {f"teacher@{STEPS}", f"teacher@{STEPS} dpm++2m"} <= figures.keys()
    features = figures["about"]["features"]
    if family == "unet2d":
        assert features["name"] == "middle block of teacher"
    else:
        width, height = map(int, features["name"].removeprefix("pixels, ").split("x"))
        assert features["size"] == 3 * width * height


def test_without_data_the_teacher_is_its_own_reference(tmp_path):
    torch.manual_seed(0)
    pipeline().save_pretrained(tmp_path / "teacher")
    figures = evaluated(make_student(tmp_path / "run", "unet2d", tmp_path / "teacher"))
    assert figures["reference"] == "teacher"
    assert figures["about"]["reference"] == {"name": "the teacher's own samples", "samples": 6}
    assert figures["about"]["floor"]["samples"] == 3
    assert figures["about"]["memory"] is None
    assert "memory" not in figures["student"]
    assert not (tmp_path / "run" / "evaluation" / "examples" / "nearest.png").exists()


def test_the_teachers_samples_are_drawn_once(tmp_path, monkeypatch):
    torch.manual_seed(0)
    pipeline().save_pretrained(tmp_path / "teacher")
    student = make_student(tmp_path / "run", "unet2d", tmp_path / "teacher")
    calls = []
    solve = subjects.solve
    monkeypatch.setattr(subjects, "solve", lambda *args: calls.append(1) or solve(*args))
    first = evaluated(student)
    drawn = len(calls)
    # Batches of 4 and 2: the reference, the teacher, the teacher@2 by its own solver and a better.
    assert drawn == 2 * 4
    assert evaluated(student) == first
    assert len(calls) == drawn
    # Damage in what is kept, and a change of the teacher's weights, are seen.
    kept = sorted((tmp_path / "run" / "evaluation" / "kept").iterdir())
    data = bytearray(kept[0].read_bytes())
    data[-1] ^= 255
    kept[0].write_bytes(data)
    assert evaluated(student) == first
    assert len(calls) == drawn + 1
    weights = tmp_path / "teacher" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({name: 1.1 * tensor for name, tensor in tensors.items()}, weights, {"format": "pt"})
    assert evaluated(student) != first
    assert len(calls) == 2 * drawn + 1


def test_classes_are_recognised(grey_classes, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 3)
    student = make_student(tmp_path / "run", "unet2d", grey_classes)
    figures = evaluated(student, samples=20)
    made = figures["about"]["classifier"]
    assert made["trained_on"] == "the teacher's samples"
    assert (made["samples"], made["held_out"]) == (16, 4)
    assert "agreement" not in figures["teacher"]["classes"]
    assert 0 <= figures["student"]["classes"]["agreement"] <= 1
    assert figures["student"]["classes"]["samples"] == 20
    few = evaluated(student, samples=4)
    assert few["about"]["classifier"] is None
    assert any("No classifier: 4 samples of 2 classes" in line for line in few["about"]["notes"])


@pytest.fixture
def own_pictures(tmp_path) -> Path:
    """Twenty pictures of two classes in one folder."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(20):
        values = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(str(i % 2), encoding="utf-8")
    return folder


def test_own_pictures_are_the_reference_and_the_memory(
    grey_classes, own_pictures, tmp_path, monkeypatch
):
    monkeypatch.setattr(classifier, "STEPS", 3)
    data = {"pictures": str(own_pictures)}
    student = make_student(tmp_path / "run", "unet2d", grey_classes, data=data)
    figures = evaluated(student)
    about = figures["about"]
    assert figures["reference"] == "data"
    assert about["reference"] == {"name": f"data.pictures={own_pictures}", "samples": 20}
    assert about["floor"]["samples"] == 6
    assert about["classifier"]["trained_on"] == "data"
    assert about["memory"]["training"] == 20
    for name in ("teacher", "student"):
        assert 0 <= figures[name]["memory"]["memorization"] <= 1
        assert figures[name]["memory"]["nearest_rmse"] > 0
    examples = tmp_path / "run" / "evaluation" / "examples"
    listed = read_json(examples / "examples.json")
    assert {row["caption"] for row in listed["nearest"]} == {"0", "1"}
    assert np.asarray(Image.open(examples / listed["nearest"][0]["right"])).shape == (8, 8, 3)
    assert (examples / "nearest.png").is_file()
    gaps = [row["rmse"] for row in listed["worst"]]
    assert gaps == sorted(gaps, reverse=True)
    # Without them, the teacher is what is left to compare with.
    for file in own_pictures.iterdir():
        file.unlink()
    own_pictures.rmdir()
    gone = evaluated(student)
    assert gone["reference"] == "teacher"
    assert any("no longer there" in line for line in gone["about"]["notes"])


@pytest.mark.parametrize("most", [10, 5000])
def test_pictures_sorted_by_class_are_compared_in_all_classes(
    most, grey_classes, tmp_path, monkeypatch
):
    """An image folder of pictures as small as the teacher's own, most of them of one class."""
    for i in range(40):
        place = tmp_path / "pictures" / str(int(i >= 24))
        place.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 6 * i).save(place / f"{i:02d}.png")
    monkeypatch.setattr("edgedistill.evaluation.data.MOST", most)
    sections = {
        "name": "x",
        "teacher": {"family": "unet2d", "path": str(grey_classes)},
        "data": {"pictures": str(tmp_path / "pictures")},
    }
    recipe, teacher = evaluation_recipe(sections), load_teacher("unet2d", grey_classes)
    data, missing = find_data(recipe, teacher)
    assert missing == ""
    assert data is not None
    assert (len(data.pictures), data.total) == (min(most, 40), 40)
    assert set(data.captions) == {"0", "1"}
    # A picture of its own size is what it was, and stays beside its caption.
    shades = data.pictures[:, 0, 0, 0] // 6
    assert [str(int(shade >= 24)) for shade in shades] == data.captions
    asked = run_captions(recipe, teacher, data)
    assert sorted(asked) == sorted(data.captions)
    assert set(asked[:8]) == {"0", "1"}
    assert set(shown_captions(recipe, teacher)) == {"0", "1"}


def test_a_student_that_copies_is_told(own_pictures, grey_classes):
    sections = {
        "name": "x",
        "teacher": {"family": "unet2d", "path": str(grey_classes)},
        "data": {"pictures": str(own_pictures)},
    }
    data, missing = find_data(evaluation_recipe(sections), load_teacher("unet2d", grey_classes))
    assert missing == ""
    assert data is not None
    noise = np.random.default_rng(3).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    teacher = Subject("teacher", 3, lambda asked, seed, tell: noise)
    student = Subject("student", 1, lambda asked, seed, tell: data.pictures[:6])
    figures, examples = evaluate_pictures(
        [teacher, student], {}, PixelFeatures(), None, 6, 0, lambda *args: None, Extras(data)
    )
    assert figures["student"]["memory"]["memorization"] == 1
    assert figures["student"]["memory"]["memorization_pixels"] == 1
    assert figures["student"]["memory"]["nearest_rmse"] == pytest.approx(0, abs=1e-6)
    assert figures["teacher"]["memory"]["memorization"] < 0.5
    assert all(example.facts["counts_as_copy"] for example in examples.nearest)
    assert all(example.facts["rmse"] == 0 for example in examples.nearest)


def test_places_are_asked_for_first(tmp_path, grey_classes):
    student = make_student(tmp_path / "run", "unet2d", grey_classes)
    (grey_classes / "model_index.json").unlink()  # what opens the teacher would say so
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write there"), bar("evaluate", 1) as meter:
        evaluate_subjects([str(student)], 4, None, tmp_path / "file" / "eval.json", meter)
    (tmp_path / "run" / "eval.json").mkdir()
    with pytest.raises(ValueError, match=r"eval\.json: cannot write"), bar("e", 1) as meter:
        evaluate_subjects([str(student)], 4, None, None, meter)


def test_a_sample_of_no_numbers_is_named(tmp_path, grey_classes, monkeypatch):
    student = make_student(tmp_path / "run", "unet2d", grey_classes)
    solve = subjects.solve
    monkeypatch.setattr(subjects, "solve", lambda *args: solve(*args) * torch.nan)
    with pytest.raises(FloatingPointError, match="sample 0 of seed"), bar("e", 1) as meter:
        evaluate_subjects([str(student)], 4, None, None, meter)
    assert not (tmp_path / "run" / "eval.json").exists()


VISION = {
    "dino": Dinov2Model(
        Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    ),
    "clip": CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=32,
        )
    ),
}


@pytest.mark.parametrize("name", list(VISION))
def test_any_vision_model_judges(name, tmp_path, grey_classes):
    VISION[name].save_pretrained(tmp_path / name)
    teacher = load_teacher("unet2d", grey_classes)
    eye = open_features(teacher, str(tmp_path / name))
    assert isinstance(eye, VisionModel)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    found = eye.images(pictures)
    assert found.shape == (3, 16)
    assert not torch.allclose(found[0], found[1])
    torch.testing.assert_close(eye.images(pictures[1:]), found[1:])
    assert str(tmp_path.parent) not in eye.name


def test_features_by_name(grey_classes, tmp_path, tiny_sd):
    teacher = load_teacher("unet2d", grey_classes)
    assert isinstance(open_features(teacher, None), MiddleBlock)
    assert isinstance(open_features(teacher, "pixels"), PixelFeatures)
    with pytest.raises(ValueError, match=r"features=.*: no vision model there"):
        open_features(teacher, str(tmp_path / "nothing"))
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):  # which no Hub is asked for
        with pytest.raises(ValueError, match=f"features={path}: a folder expected"):
            open_features(teacher, str(path))
    with pytest.raises(ValueError, match="have no U-Net that sees pictures"):
        open_features(load_teacher("stable_diffusion", tiny_sd), "teacher")


def test_pixels_are_means():
    pictures = np.zeros((1, 32, 32, 3), np.uint8)
    pictures[0, :2, :2] = 255
    pictures[0, 0, 0] = 0
    found = PixelFeatures().images(pictures)
    assert found.shape == (1, 3 * 256)
    assert found[0, 0] == pytest.approx(0.75 * 2 - 1)
    assert found[0, 1] == -1
