"""The student dir: what is wrong with one is named, and its hash is what it draws."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_pipeline, save
from transformers import CLIPTokenizer

from edgedistill.common.hashes import files_in, sha256
from edgedistill.diffusion.prediction import Prediction
from edgedistill.networks.planar import PlanarNet
from edgedistill.students.folder import INFO, _own_hash, load_student
from edgedistill.teachers.families.mixture import Mixture
from edgedistill.teachers.families.stable_diffusion import StableDiffusion

OLD = Path(__file__).parents[1] / "old"
"""Folders as they were written at commit a5ebfff."""


@pytest.fixture(scope="module")
def folder(two_modes, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    net = PlanarNet(width=16, depth=2)
    teacher = Mixture.load(str(two_modes))
    place = tmp_path_factory.mktemp("students") / "student"
    return save(place, teacher, net, Prediction.V, steps=3)


@pytest.fixture
def edit(folder, tmp_path):
    """A function that copies the student with its student.json changed, as if so written."""

    def change(update, signed=True) -> Path:
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        data = json.loads((copy / "student.json").read_text())
        update(data)
        if signed:
            data["sha256"][INFO] = _own_hash(data)
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
        (put("schema_version", 9), "schema_version 9, 1 or 2 or 3 or 4 or 5 or 6 expected"),
        (drop("schema_version"), "schema_version None, 1 or 2 or 3 or 4 or 5 or 6 expected"),
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


def test_the_hash_ignores_figures_and_card_but_not_a_weight(folder, edit, two_modes):
    before = load_student(folder).sha256
    same = edit(put("evaluation", {"fd": 1.0}))
    (same / "README.md").write_text("another card")
    assert load_student(same).sha256 == before
    torch.manual_seed(0)
    net = PlanarNet(width=16, depth=2)
    net.head.bias.data[0] += 1
    other = save(same.parent / "other", Mixture.load(str(two_modes)), net, Prediction.V, steps=3)
    assert load_student(other).sha256 != before


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


# --- Damage -------------------------------------------------------------------------------------


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def every_file(folder: Path) -> list[str]:
    return [name for name in files_in(folder) if name != "README.md"]


def test_a_bit_of_any_file_is_seen_and_its_file_named(edit, tmp_path):
    copy = edit(lambda data: None)
    assert len(every_file(copy)) == 4
    for name in every_file(copy):
        whole = (copy / name).read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 50)):
            flip(copy / name, place)
            with pytest.raises(ValueError, match=rf"copy/{name}"):
                load_student(copy)
            (copy / name).write_bytes(whole)
    load_student(copy)


def test_a_missing_and_a_further_file_are_named(edit):
    copy = edit(lambda data: None)
    for name in every_file(copy)[:-1]:
        whole = (copy / name).read_bytes()
        (copy / name).unlink()
        with pytest.raises(ValueError, match=rf"copy/{name}: missing"):
            load_student(copy)
        (copy / name).write_bytes(whole)
    for name in ("net/diffusion_pytorch_model.bin", "vae/config.json", "more.safetensors"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).touch()
        with pytest.raises(ValueError, match=rf"copy/{name}: student.json does not list it"):
            load_student(copy)
        (copy / name).unlink()
    for name in (".DS_Store", ".cache/a.json", "report.html", "README.md", "eval.json"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("mine")
    load_student(copy)


@pytest.mark.parametrize(
    "update",
    [
        lambda data: data["step_table"]["rows"][1].update(a=0.5),
        lambda data: data["latent"].update(scaling_factor=2.0),
        lambda data: data["sha256"].pop(INFO),
        put("sha256", {}),
        put("schema_version", 1),
    ],
)
def test_a_student_json_that_was_changed_is_refused(edit, update):
    copy = edit(update, signed=False)
    with pytest.raises(ValueError, match=r"copy/student\.json: damaged or changed"):
        load_student(copy)


def test_a_student_that_is_not_finite_is_not_written(two_modes, tmp_path):
    net = PlanarNet(width=8, depth=1)
    net.head.bias.data[1] = float("inf")
    with pytest.raises(ValueError, match=r"not written: head\.bias in net/diff.* is not finite"):
        save(tmp_path / "s", Mixture.load(str(two_modes)), net, Prediction.V, steps=1)
    assert list(tmp_path.iterdir()) == []


def test_no_path_of_the_machine_is_in_a_student(tmp_path, monkeypatch):
    home = tmp_path / "home-of-somebody"
    (home / "elsewhere").mkdir(parents=True)
    monkeypatch.chdir(home)
    torch.manual_seed(0)
    make_pipeline().save_pretrained("tiny")
    for name in (
        "unet/config.json",
        "text_encoder/config.json",
        "tokenizer/tokenizer_config.json",
    ):
        config = json.loads(Path("tiny", name).read_text())
        config["_name_or_path"] = config["name_or_path"] = str(home / "elsewhere")
        Path("tiny", name).write_text(json.dumps(config))
    teacher = StableDiffusion.load(str(home / "tiny"))
    teacher.path = "tiny"  # what the user called it is kept
    made = save(home / "s", teacher, teacher.net, teacher.denoiser.prediction, steps=2)
    for name in files_in(made):
        content = (made / name).read_bytes()
        assert str(tmp_path).encode() not in content, name
        assert b"name_or_path" not in content, name
    load_student(made)


# --- The first schema ---------------------------------------------------------------------------


def test_a_student_of_the_first_schema_reads_and_says_that_it_has_no_hashes(tmp_path, capsys):
    old = tmp_path / "student"
    shutil.copytree(OLD / "student", old)
    student = load_student(old)
    said = " ".join(capsys.readouterr().err.split())
    assert said == f"{old}/student.json: schema 1 has no hashes: damage to its files is not seen"
    # As the bundles that were made from it say.
    assert student.sha256 == "16ae1933bfa38c41874ce2f8ac7800c0887ce4b5eda5b2c20d91d31b7503b2b8"
    noise = student.table.draw((5, 2), torch.Generator().manual_seed(0))
    assert bool(student.sample({}, noise).isfinite().all())
    load_student(old)
    assert capsys.readouterr().err == ""
    weights = old / "net" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["head.bias"] = torch.full_like(tensors["head.bias"], float("nan"))
    save_file(tensors, weights)
    with pytest.raises(
        ValueError, match=r"student/net: head\.bias holds numbers that are not finite"
    ):
        load_student(old)


def test_the_same_student_has_the_same_hash_in_both_schemas(tmp_path, monkeypatch):
    monkeypatch.chdir(OLD)
    torch.manual_seed(0)
    net = PlanarNet(width=16, depth=1)
    new = save(tmp_path / "s", Mixture.load("two.json"), net, Prediction.V, steps=3)
    old = files_in(OLD / "student")
    for name in files_in(new):
        if name not in ("student.json", "net/config.json"):
            assert (new / name).read_bytes() == (OLD / "student" / name).read_bytes()
    assert old == files_in(new)
    (new / "net" / "config.json").write_bytes((OLD / "student/net/config.json").read_bytes())
    data = json.loads((new / "student.json").read_text())
    data["sha256"]["net/config.json"] = sha256(new / "net" / "config.json")
    data["sha256"][INFO] = _own_hash(data)
    (new / "student.json").write_text(json.dumps(data))
    assert load_student(new).sha256 == load_student(OLD / "student").sha256


def test_clip_is_saved_as_transformers_4_reads_it(tmp_path):
    """The two files alone give the tokens of tokenizer.json; weights keep their older names."""
    torch.manual_seed(0)
    make_pipeline().save_pretrained(tmp_path / "teacher")
    teacher = StableDiffusion.load(str(tmp_path / "teacher"))
    made = save(tmp_path / "student", teacher, teacher.net, Prediction.V, steps=2)
    assert {"tokenizer/vocab.json", "tokenizer/merges.txt"} <= set(load_student(made).info.sha256)
    vocab = json.loads((made / "tokenizer/vocab.json").read_text("utf-8"))
    merges = (made / "tokenizer/merges.txt").read_text("utf-8").splitlines()
    assert merges == ["#version: 0.2", "r e", "re d</w>"]
    older = CLIPTokenizer(vocab=vocab, merges=[tuple(m.split()) for m in merges[1:]])
    text = "A red, redder r\u00e9d."
    assert (
        older(text).input_ids == CLIPTokenizer.from_pretrained(made / "tokenizer")(text).input_ids
    )
