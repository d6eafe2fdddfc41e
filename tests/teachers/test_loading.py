"""What a teacher's folder lacks or has too much of is found elsewhere, or refused by name."""

import json
import logging
import os
import re
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from edgedistill import assets
from edgedistill.common.finite import check_finite
from edgedistill.networks.clip import Features
from edgedistill.planning.report import plan
from edgedistill.teachers import load_teacher
from edgedistill.teachers.families.mixture import Mixture
from edgedistill.teachers.loading import check_variants, whole_weights
from edgedistill.verbs.init import detect_family

PARTS = ["unet", "vae", "text_encoder"]


@pytest.fixture
def folder(tiny_sd, tmp_path):
    return shutil.copytree(tiny_sd, tmp_path / "teacher")


def weights(folder, part, change):
    """Change the weights of a part by a function of them and their first name; the latter."""
    file = next((folder / part).glob("*.safetensors"))
    state = load_file(file)
    first = sorted(state)[0]
    change(state, first)
    save_file(state, file, {"format": "pt"})
    return first


def config(folder, file, **values):
    """Set keys of a JSON file; `...` takes one away."""
    place = folder / file
    found = {**json.loads(place.read_text()), **values}
    place.write_text(json.dumps({k: v for k, v in found.items() if v is not ...}))


def load(folder):
    return load_teacher("stable_diffusion", folder)


def refusal(folder):
    try:
        load(folder)
    except ValueError as error:
        return str(error)
    return ""


def refused(folder, *words):
    with pytest.raises(ValueError, match=words[0]) as caught:
        load(folder)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    for word in words:
        assert word in line


# --- Weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_weights_that_would_be_made_up_are_refused(folder, part):
    refused(folder, weights(folder, part, lambda state, first: state.pop(first)), "no weights for")


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_weights_without_a_place_are_refused(folder, part):
    weights(folder, part, lambda state, _: state.update(odd=torch.zeros(2)))
    refused(folder, "odd", "no place for")


@pytest.mark.parametrize("part", PARTS)
def test_weights_of_another_shape_are_refused(folder, part):
    first = weights(folder, part, lambda state, first: state.update({first: torch.zeros(3, 7)}))
    refused(folder, first, "shape")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("part", PARTS)
def test_weights_that_are_not_finite_are_refused(folder, part, number):
    def change(state, first):
        state[first].view(-1)[-1] = number

    refused(folder, part, weights(folder, part, change), "not finite")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2]
)
def test_one_number_among_thousands_is_found(dtype, number):
    largest = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max)
    good = torch.full((1000,), largest).to(dtype)  # whose sum may be infinite
    check_finite("file", {"good": good, "ids": torch.arange(3), "none": torch.empty(0)})
    bad = good.clone()
    bad[500] = number
    with pytest.raises(ValueError, match=r"^file: bad holds .* not finite, and so do 1 others"):
        check_finite("file", {"good": good, "bad": bad, "worse": bad})
    check_finite("file", {"meta": torch.empty(3, device="meta")})


def test_the_libraries_logs_are_as_before(folder):
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    before = [(each.handlers, each.level, each.propagate) for each in loggers]
    weights(folder, "text_encoder", lambda state, first: state.pop(first))
    with pytest.raises(ValueError, match="no weights for"), whole_weights("place"):
        CLIPTextModel.from_pretrained(folder / "text_encoder")
    assert before == [(each.handlers, each.level, each.propagate) for each in loggers]


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "scheduler"])
def test_a_key_that_a_config_leaves_out_is_made_up_rightly_or_refused_in_one_line(folder, part):
    file = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    whole = file.read_text()
    for key in json.loads(whole):
        config(folder, file.relative_to(folder), **{key: ...})
        said = refusal(folder)
        assert not said or (str(folder) in said and len(said.splitlines()) == 1)
        file.write_text(whole)


def test_configs_that_do_not_fit_together_are_named(folder):
    config(folder, "vae/config.json", block_out_channels=...)
    refused(folder, "cannot load", str(folder), "configs do not fit", "IndexError")


# --- Pickles ------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_weights_in_a_pickle_alone_are_refused_by_name(folder, part):
    file = next((folder / part).glob("*.safetensors"))
    torch.save(load_file(file), file.with_suffix(".bin"))
    load(folder)  # beside safetensors it is not looked at
    file.unlink()
    refused(folder, file.with_suffix(".bin").name, "never opened", "safe_serialization")


def test_a_planar_student_and_features_in_a_pickle_are_refused(tmp_path, two_modes, quick_fit):
    from edgedistill import assets

    teacher = Mixture.load(str(two_modes))
    net = teacher.spawn(torch.Generator().manual_seed(0)).net
    net.save_pretrained(tmp_path / "net", safe_serialization=False)
    shutil.copy(two_modes, tmp_path / "mixture.json")
    (tmp_path / "student.json").write_text("{}")
    with pytest.raises(ValueError, match=r"\.bin: a pickle, which is never opened"):
        Mixture.load(str(tmp_path))
    net.save_pretrained(tmp_path / "net")
    assert Mixture.load(str(tmp_path)).net is not None
    clip = shutil.copytree(assets.ROOT / "emoji" / "clip", tmp_path / "clip")
    torch.save(load_file(clip / "model.safetensors"), clip / "pytorch_model.bin")
    (clip / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: a pickle, which is never opened"):
        Features(str(clip))


# --- Tokenizers ---------------------------------------------------------------------------------

TOKENIZER = "tokenizer/tokenizer_config.json"


@pytest.mark.parametrize("length", [..., None, 10**30, 1e30])
def test_a_length_that_is_not_given_is_the_text_encoder_s(folder, tmp_path, length):
    wanted = load(folder).tokenize(["red apple"])["input_ids"]
    config(folder, TOKENIZER, model_max_length=length)
    teacher = load(folder)
    assert torch.equal(teacher.tokenize(["red apple"])["input_ids"], wanted)
    teacher.pipeline.tokenizer.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert saved["model_max_length"] == wanted.shape[1]


def test_a_tokenizer_without_its_configuration_is_whole(folder):
    wanted = load(folder).tokenize(["red apple"])["input_ids"]
    (folder / TOKENIZER).unlink()
    assert torch.equal(load(folder).tokenize(["red apple"])["input_ids"], wanted)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_max_length": 512}, ["model_max_length=512", "max_position_embeddings=8"]),
        ({"model_max_length": 0}, ["model_max_length=0"]),
        ({"model_max_length": -1}, ["model_max_length=-1"]),
        ({"model_max_length": 3.5}, ["model_max_length=3.5"]),
        ({"model_max_length": "77"}, ["model_max_length='77'"]),
        ({"pad_token": None}, ["pad_token"]),
        ({"bos_token": None}, ["bos_token is null"]),
        ({"eos_token": None}, ["eos_token is null"]),
    ],
)
def test_a_tokenizer_that_cannot_be_used_names_the_key(folder, values, words):
    config(folder, TOKENIZER, **values)
    refused(folder, TOKENIZER, *words)


def test_a_tokenizer_without_a_vocabulary_is_refused(folder):
    (folder / "tokenizer" / "tokenizer.json").unlink()
    refused(folder, "tokenizer: no vocabulary")
    (folder / "tokenizer" / "vocab.json").write_text("{}")  # and no merges
    refused(folder, "tokenizer")


@pytest.mark.parametrize(
    "damage",
    [
        {"model": {"type": "BPE", "vocab": 0}},
        {"decoder": 0},
        {"truncation": ""},
        {"padding": {}},
        {"post_processor": {"type": "Other"}},
        {"normalizer": {"type": 1}},
        {"added_tokens": 0},
        {"version": -1},
    ],
    ids=lambda damage: next(iter(damage)),
)
def test_a_damaged_tokenizer_file_is_refused_in_one_line(folder, damage):
    config(folder, "tokenizer/tokenizer.json", **damage)
    refused(folder, "cannot load")


def every_file(folder):
    return sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())


def test_every_file_of_a_teacher_is_missed_by_name(folder):
    files = every_file(folder)
    assert len(files) > 8
    for name in files:
        if name == TOKENIZER:
            continue  # of which the text encoder knows all
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        refused(folder, name.split("/")[0])
        (folder / name).write_bytes(kept)
    load_teacher("stable_diffusion", str(folder))


PIECES = [*PARTS, "tokenizer", "scheduler"]


@pytest.mark.parametrize("part", PIECES)
def test_a_part_that_is_missing_is_named(folder, part):
    shutil.rmtree(folder / part)
    refused(folder, f"has no {part}/, which its model_index.json lists")


@pytest.mark.parametrize("listed", [..., None, [None, None]])
def test_a_pipeline_without_a_scheduler_is_named(folder, listed):
    config(folder, "model_index.json", scheduler=listed)
    refused(folder, "its model_index.json lists no scheduler")


@pytest.mark.parametrize("part", PARTS)
def test_weights_in_a_variant_alone_are_named(folder, part):
    file = next((folder / part).glob("*.safetensors"))
    variant = file.with_name(f"{file.stem}.fp16.safetensors")
    shutil.copy(file, variant)
    load(folder)  # beside plain weights it is not looked at
    file.unlink()
    refused(folder, f"{part} has its weights in the variant fp16 alone")
    shard = file.with_name(f"{file.stem}-00001-of-00001.safetensors")
    shutil.copy(variant, shard)
    check_variants(folder)  # plain weights in shards are plain


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([1], "scheduler_config.json: a JSON object expected"),
        ({"beta_schedule": "weird"}, "no .*Scheduler can be made of it: weird is not implemented"),
        ({"num_train_timesteps": 0}, "no noise levels follow from the betas in its"),
        ({"beta_start": 0.0, "beta_end": 0.0}, "no noise levels follow from the betas in its"),
    ],
)
def test_settings_of_a_scheduler_that_cannot_be_are_told_with_their_file(folder, settings, said):
    place = folder / "scheduler" / "scheduler_config.json"
    found = json.loads(place.read_text())
    place.write_text(json.dumps({**found, **settings} if isinstance(settings, dict) else settings))
    with pytest.raises(ValueError, match=said) as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def spoilt_pickle(folder):
    file = next((folder / "unet").glob("*.safetensors"))
    file.rename(file.with_suffix(".bin"))


def spoilt_variant(folder):
    file = next((folder / "unet").glob("*.safetensors"))
    file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))


def spoilt_cut(folder):
    file = next((folder / "vae").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:5000])


SPOILT = (
    *(spoilt_pickle, spoilt_variant, spoilt_cut),
    lambda folder: shutil.rmtree(folder / "scheduler"),
    lambda folder: config(folder, "model_index.json", scheduler=...),
)


@pytest.mark.parametrize("spoil", SPOILT)
def test_plan_and_init_refuse_a_folder_that_distill_cannot_open(folder, spoil):
    words = ["recipe=emoji-4step", f"teacher.path={folder}", "data.prompts=x"]
    plan(words)
    assert detect_family(str(folder)) == "stable_diffusion"
    spoil(folder)
    said = refusal(folder).partition("': ")[2] or refusal(folder)
    assert said
    for ask in (lambda: plan(words), lambda: detect_family(str(folder))):
        with pytest.raises(ValueError, match=re.escape(said)):
            ask()


def test_a_folder_of_configurations_alone_is_planned(folder):
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    shutil.rmtree(folder / "scheduler")
    plan(["recipe=emoji-4step", f"teacher.path={folder}", "data.prompts=x"])


@pytest.mark.parametrize("size", [0, 5, 100, 5000, None])
@pytest.mark.parametrize("part", PARTS)
def test_a_file_of_weights_that_is_cut_or_damaged_is_named_once(folder, part, size):
    file = next((folder / part).glob("*.safetensors"))
    if size is None:
        file.write_bytes(b"<html>not found</html>" * 100)
    else:
        os.truncate(file, size)
    line = refusal(folder)
    assert f"{file} is cut or damaged ({file.stat().st_size:,} bytes)" in line
    assert line.count(file.name) == 1


def test_a_tokenizer_of_another_model_is_refused(folder):
    file = folder / "tokenizer" / "tokenizer.json"
    data = json.loads(file.read_text())
    data["model"]["vocab"] |= {f"word{i}": len(data["model"]["vocab"]) + i for i in range(9)}
    file.write_text(json.dumps(data))
    refused(folder, "vocab_size=516", "not of one model")


@pytest.mark.parametrize(
    "key", ["max_position_embeddings", "vocab_size", "hidden_size", "num_hidden_layers"]
)
def test_a_text_encoder_s_sizes_may_not_be_left_out(folder, key):
    config(folder, "text_encoder/config.json", **{key: ...})
    refused(folder, "CLIPTextModel")


def test_the_parts_that_ship_open_with_one_dtype():
    kinds = {"dtype", "torch_dtype"}
    for file in (assets.ROOT / "emoji").rglob("config.json"):
        if file.parent.name != "clip":  # which is no part of the pipeline
            named = {str(v) for k, v in json.loads(file.read_text()).items() if k in kinds}
            assert named <= {"float32"}, file
    pipe = DiffusionPipeline.from_pretrained(assets.ROOT / "emoji")
    parts = {n: c.dtype for n, c in pipe.components.items() if isinstance(c, torch.nn.Module)}
    assert parts == dict.fromkeys(("unet", "vae", "text_encoder"), torch.float32)
