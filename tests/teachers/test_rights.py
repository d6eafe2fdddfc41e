"""A teacher's terms, and what its pipeline does beside drawing, travel or are named as lost."""

import json

import pytest
from safetensors.torch import load_file, save_file
from tiny import make_pipeline

from edgedistill import recipes
from edgedistill.runs.run_dir import open_run
from edgedistill.students.folder import load_student
from edgedistill.teachers.licences import lacks_of, rights_of
from edgedistill.tiny import make_tiny
from edgedistill_export.terms import notes_of, write_terms

OTHER = "---\nlicense: other\nlicense_name: flux-1-dev\nlicense_link: LICENSE.md\n---\nA model.\n"

CARDS = [
    ("---\nlicense: mit\n---\n", ["mit"], {}),
    ("\ufeff---\r\nlicense: mit\r\n---\r\n", ["mit"], {}),
    ("---\nlicense: [mit, cc-by-4.0]\n---\n", ["mit", "cc-by-4.0"], {}),
    (OTHER, ["other"], {"license_name": "flux-1-dev", "license_link": "LICENSE.md"}),
    ("no front matter", [], {}),
    ("---\nlicense: {a: b}\n---\n", [], {}),
    ("---\nlicense: [\n---\n", [], {}),
    ("---\n- a\n---\n", [], {}),
]


@pytest.mark.parametrize(("text", "licences", "details"), CARDS)
def test_a_model_card_states_the_licence(tmp_path, text, licences, details):
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    found = rights_of(str(tmp_path))
    assert (list(found.licences), dict(found.details)) == (licences, details)


@pytest.mark.parametrize(
    ("name", "text", "licence"),
    [
        ("LICENSE", "MIT License\n\nCopyright", "mit"),
        ("LICENSE.md", "                 Apache License\n        Version 2.0", "apache-2.0"),
        ("LICENSE.txt", "CreativeML Open RAIL-M\ndated", "creativeml-openrail-m"),
        ("LICENSE.md", "CreativeML Open RAIL++-M License", "openrail++"),
        ("LICENCE", "Terms of my own", "other"),
    ],
)
def test_without_a_card_the_text_beside_the_weights_does(tmp_path, name, text, licence):
    (tmp_path / name).write_text(text)
    assert rights_of(str(tmp_path)).licences == (licence,)
    file = tmp_path / "model.safetensors"
    file.touch()
    assert rights_of(str(file)).licences == (licence,)
    assert rights_of(str(file), "openrail").licences == ("openrail",)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}, "safety"),
        ({"safety_checker": [None, None]}, None),
        ({}, None),
        ({"_class_name": "StableDiffusionXLPipeline"}, "watermark"),
        ({"_class_name": "StableDiffusionXLPipeline", "add_watermarker": True}, "watermark"),
        ({"_class_name": "StableDiffusionXLPipeline", "add_watermarker": False}, None),
    ],
)
def test_what_no_student_does_is_named(index, words):
    found = lacks_of(index)
    assert len(found) == (words is not None)
    assert words is None or words in found[0]


RUN = (
    *("teacher.family=stable_diffusion", "train.steps=1", "data.prompts=null", "teacher.steps=2"),
    *("train.batch_size=2", "objective.solver_steps=4"),
)


@pytest.fixture
def base(tmp_path):
    """A teacher with data, a licence without a name, its text, and a safety checker."""
    folder = make_tiny("stable_diffusion", tmp_path / "base")
    (folder / "README.md").write_text(OTHER)
    (folder / "LICENSE.md").write_text("Terms")
    index = folder / "model_index.json"
    checker = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    index.write_text(json.dumps({**json.loads(index.read_text()), **checker}))
    return folder


def lora(place, licence=""):
    """An adapter of one layer, in kohya's names."""
    unet = make_pipeline().unet
    weight = unet.get_parameter("mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight")
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    down = weight.detach().new_full((2, weight.shape[1]), 0.1)
    up = weight.detach().new_full((weight.shape[0], 2), 0.2)
    told = {"modelspec.license": licence} if licence else None
    save_file({f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}, place, told)
    return (
        place,
        "unet." + "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight",
        up @ down,
    )


def test_a_run_says_what_is_lost_and_its_student_carries_the_terms(base, tmp_path, said):
    adapter, name, change = lora(tmp_path / "style.safetensors", "cc-by-4.0")
    words = (f"teacher.path={base}", f"teacher.lora={{path: {adapter}, scale: 0.5}}")
    recipe = recipes.load("emoji-4step", [*RUN, *words])
    run = next(iter(open_run(recipe, str(tmp_path / "run"), False).runs()))
    assert sum("safety checker" in line for line in said) == 1
    before = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    found = run.teacher.net.state_dict()[name] - before[name.removeprefix("unet.")]
    assert found.sub(0.5 * change).abs().max() < 1e-6
    student = load_student(run.train(lambda *_: None))
    told = student.info.teacher
    assert told["licences"] == ["other", "cc-by-4.0"]
    assert told["license_name"] == "flux-1-dev"
    assert told["lora"] == [[str(adapter), 0.5]]
    assert (student.path / "LICENSE.md").read_text() == "Terms"
    card = (student.path / "README.md").read_text()
    assert 'license_link: "LICENSE.md"' in card
    assert "safety checker" in card
    assert "base with style.safetensors" in card


def test_a_bundle_has_the_texts_and_a_card(tmp_path):
    student, bundle = tmp_path / "student", tmp_path / "bundle"
    for folder in (student, bundle):
        folder.mkdir()
    write_terms(student, {"name": "own", "licences": []}, bundle)
    assert list(bundle.iterdir()) == []
    write_terms(student, {"name": "own", "licences": ["mit"]}, bundle)
    assert "license:\n- mit\n" in (bundle / "README.md").read_text()
    teacher = {"name": "own", "licences": ["other"], "license_name": "x", "notes": ["no checker"]}
    (student / "LICENSE.md").write_text("Terms")
    (student / "student.json").write_text(json.dumps({"teacher": teacher}))
    write_terms(student, teacher, bundle)
    assert (bundle / "LICENSE.md").read_text() == "Terms"
    card = (bundle / "README.md").read_text()
    assert 'license_name: "x"' in card
    assert "- no checker" in card
    assert notes_of(student) == notes_of(tmp_path) == ["no checker"]
    assert notes_of(bundle) == []
