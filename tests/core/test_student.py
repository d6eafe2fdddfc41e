"""The student dir: what is wrong with one is named, and its hash is what it draws."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import save

from edgedistill.networks.planar import PlanarNet
from edgedistill.prediction import Prediction
from edgedistill.student import load_student
from edgedistill.teachers.mixture import Mixture


@pytest.fixture(scope="module")
def folder(two_modes, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    net = PlanarNet(width=16, depth=2)
    teacher = Mixture.load(str(two_modes))
    place = tmp_path_factory.mktemp("students") / "student"
    return save(place, teacher, net, Prediction.V, steps=3)


@pytest.fixture
def edit(folder, tmp_path):
    """A function that copies the student with its student.json changed."""

    def change(update) -> Path:
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        data = json.loads((copy / "student.json").read_text())
        update(data)
        (copy / "student.json").write_text(json.dumps(data))
        return copy

    return change


def drop(key):
    return lambda data: data.pop(key)


def put(key, value):
    return lambda data: data.update({key: value})


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (drop("step_table"), "step_table: "),
        (drop("method"), "method: "),
        (put("methd", "lcm"), "methd: "),
        (put("prediction", "epsilon"), "prediction: "),
        (put("schema_version", 2), "schema_version 2, 1 expected"),
        (drop("schema_version"), "schema_version None, 1 expected"),
        (put("family", "mixtre"), "family: .*'mixtre'.*did you mean 'mixture'"),
        (put("guidance", {"mode": "some"}), r"guidance\.mode: "),
        (put("schedule", {"name": "trigg"}), "unknown schedule 'trigg'; choose from"),
        (put("schedule", {"name": "trig", "offset": 1}), "schedule 'trig': "),
        (put("step_table", {"init_scale": 1.0, "rows": []}), "step_table: .*at least one row"),
        (put("step_table", {"init_scale": 1.0, "rows": [{"t": 1}]}), "step_table: .*'scale'"),
        (put("step_table", {"rows": []}), "step_table: "),
    ],
)
def test_what_is_wrong_in_student_json_is_named_with_the_file(edit, update, message):
    copy = edit(update)
    with pytest.raises(ValueError, match=rf"copy/student\.json: {message}") as caught:
        load_student(copy)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe"])
def test_a_student_json_that_is_no_json_is_named(edit, content):
    copy = edit(lambda data: None)
    (copy / "student.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"copy/student\.json: "):
        load_student(copy)


def test_a_folder_without_student_json_is_no_student(edit, tmp_path):
    copy = edit(lambda data: None)
    (copy / "student.json").unlink()
    with pytest.raises(ValueError, match=r"copy: no student\.json"):
        load_student(copy)
    with pytest.raises(ValueError, match=r"no student or bundle folder at .*nowhere"):
        load_student(tmp_path / "nowhere")


def test_the_hash_ignores_figures_and_card_but_not_a_weight(folder, edit):
    before = load_student(folder).sha256
    same = edit(put("evaluation", {"fd": 1.0}))
    (same / "README.md").write_text("another card")
    assert load_student(same).sha256 == before
    weights = same / "net" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert load_student(same).sha256 != before


@pytest.mark.parametrize("update", [put("method", "dmd2"), put("lora_scale", 0.5)])
def test_the_hash_changes_with_student_json(folder, edit, update):
    assert load_student(edit(update)).sha256 != load_student(folder).sha256


def test_the_hash_does_not_depend_on_the_place(folder, edit):
    assert load_student(edit(lambda data: None)).sha256 == load_student(folder).sha256


def test_saving_over_a_student_replaces_it_whole(folder, edit, two_modes):
    copy = edit(lambda data: None)
    (copy / "stale.txt").write_text("from before")
    net = PlanarNet(width=8, depth=1)
    save(copy, Mixture.load(str(two_modes)), net, Prediction.V, steps=2)
    assert not (copy / "stale.txt").exists()
    assert len(load_student(copy).table.rows) == 2
    assert [p.name for p in copy.parent.iterdir()] == ["copy"]


def test_the_card_names_steps_method_and_licences(folder):
    card = (folder / "README.md").read_text()
    assert "license:\n- mit\n" in card
    assert "3-step student of tiny, distilled with lcm" in card


def test_sampling_takes_the_tables_noise_and_keeps_no_graph(folder):
    student = load_student(folder)
    noise = student.table.draw((5, 2), torch.Generator().manual_seed(0))
    assert len(noise) == 3
    drawn = student.sample({}, noise)
    assert drawn.shape == (5, 2)
    assert not drawn.requires_grad
    with pytest.raises(ValueError, match="takes 3 noise tensors, got 1"):
        student.sample({}, noise[:1])
