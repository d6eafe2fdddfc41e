"""Every key of an adapter file is used, or named and refused; all of it is finite."""

import json
import re

import pytest
import torch
from adoption.published import kohya_lora, make_base, make_xl, peft_lora, unet_file
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import make_pipeline

from edgedistill.adoption import adopt
from edgedistill.students.folder import load_student
from edgedistill.teachers.adapter_files import energy, magnify
from edgedistill.teachers.adapter_weights import fuse_lora

QUERY = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
KOHYA = "lora_unet_" + QUERY.replace(".", "_")
TEXT = "encoder.layers.0.self_attn.q_proj"
ALL = [TEXT.replace("q_proj", end) for end in ("q_proj", "k_proj", "v_proj", "out_proj")]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base") / "sd")


def edit(file, change, metadata=None):
    """Change a file's tensors by a function of them."""
    with safe_open(file, "pt") as opened:
        kept = opened.metadata()
    state = {**load_file(file)}
    change(state)
    save_file({k: v.contiguous() for k, v in state.items()}, file, metadata or kept)
    return file


def lora(file, **extra):
    """One layer of rank 4 under kohya's names, and what else is in the file."""
    g = torch.Generator().manual_seed(1)
    down, up = torch.randn(4, 32, generator=g), torch.randn(32, 4, generator=g)
    state = {f"{KOHYA}.lora_down.weight": down, f"{KOHYA}.lora_up.weight": up}
    save_file({k: v.contiguous() for k, v in {**state, **extra}.items()}, file)
    return file, up @ down


def weight(base, file, tmp_path, name=f"unet.{QUERY}.weight", kind="lcm-lora"):
    place = adopt(str(file), kind, base=str(base), out=tmp_path / "student")
    return load_student(place).teacher.net.state_dict()[name]


def refused(base, file, tmp_path, *words, kind="lcm-lora"):
    with pytest.raises(ValueError, match=re.escape(file.name)) as caught:
        adopt(str(file), kind, base=str(base), out=tmp_path / "student")
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    for word in words:
        assert word in line
    assert not (tmp_path / "student").exists()


def before(name=QUERY):
    torch.manual_seed(0)
    return make_pipeline().unet.get_submodule(name).weight.detach()


# --- What is used -------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [None, 4.0, 2.0, 0.5, 7.0])
def test_an_alpha_scales_its_layer(base, tmp_path, alpha):
    extra = {} if alpha is None else {f"{KOHYA}.alpha": torch.tensor(alpha)}
    file, change = lora(tmp_path / "x.safetensors", **extra)
    wanted = before() + change * ((alpha or 4.0) / 4)
    torch.testing.assert_close(weight(base, file, tmp_path), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ends", [("lora_A", "lora_B"), ("lora.down", "lora.up")])
@pytest.mark.parametrize("head", ["unet.", "base_model.model.unet."])
def test_other_names(base, tmp_path, ends, head):
    file, change = lora(tmp_path / "x.safetensors")

    def rename(state):
        for old, new in zip(("lora_down", "lora_up"), ends, strict=True):
            state[f"{head}{QUERY}.{new}.weight"] = state.pop(f"{KOHYA}.{old}.weight")

    edit(file, rename)
    if head != "unet.":
        refused(base, file, tmp_path, "does not fit its base")
        return
    wanted = before() + change
    torch.testing.assert_close(weight(base, file, tmp_path), wanted, atol=1e-5, rtol=1e-5)


def test_ranks_and_alphas_of_layers_may_differ(base, tmp_path):
    file = kohya_lora(tmp_path / "x.safetensors")

    def change(state):
        for i, key in enumerate(key for key in [*state] if key.endswith("lora_down.weight")):
            stem, rank = key.removesuffix(".lora_down.weight"), 1 + i % 4
            state[key] = state[key][:rank]
            state[f"{stem}.lora_up.weight"] = state[f"{stem}.lora_up.weight"][:, :rank]
            state[f"{stem}.alpha"] = torch.tensor(float(1 + i % 3))

    state = load_file(edit(file, change))
    unet = make_pipeline().unet
    got = load_student(
        adopt(str(file), "lcm-lora", base=str(base), out=tmp_path / "s")
    ).teacher.net.state_dict()
    torch.manual_seed(0)
    old = make_pipeline().unet.state_dict()
    for name, _ in unet.named_modules():
        stem = "lora_unet_" + name.replace(".", "_")
        if f"{stem}.lora_down.weight" not in state:
            continue
        down, up = (state[f"{stem}.lora_{end}.weight"].flatten(1) for end in ("down", "up"))
        change = state[f"{stem}.alpha"] / len(down) * (up @ down)
        wanted = old[f"{name}.weight"] + change.view_as(old[f"{name}.weight"])
        torch.testing.assert_close(got[f"unet.{name}.weight"], wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(32, 1), (32,), (1, 32)])
@pytest.mark.parametrize("key", [".dora_scale", ".lora_magnitude_vector", "peft"])
def test_dora_is_magnitudes_times_directions(base, tmp_path, key, shape):
    old = before()
    m = torch.rand(32, generator=torch.Generator().manual_seed(2)).reshape(shape) + 0.5
    end = ".lora_magnitude_vector.weight" if key == "peft" else key
    file, change = lora(tmp_path / "x.safetensors", **{KOHYA + end: m})
    v = old + change
    dim = 0 if shape == (1, 32) else 1
    given = m if m.ndim == 2 else m[:, None]
    wanted = given * v / v.norm(dim=dim, keepdim=True)
    assert (wanted - v).abs().max() > 0.1
    torch.testing.assert_close(weight(base, file, tmp_path), wanted, atol=1e-5, rtol=1e-5)


def test_some_layers_may_have_magnitudes_and_others_none(base, tmp_path):
    file = kohya_lora(tmp_path / "x.safetensors")
    plain = load_student(
        adopt(str(file), "lcm-lora", base=str(base), out=tmp_path / "plain")
    ).teacher.net.state_dict()
    edit(file, lambda state: state.update({f"{KOHYA}.dora_scale": torch.full((32, 1), 2.0)}))
    place = adopt(str(file), "lcm-lora", base=str(base), out=tmp_path / "dora")
    for name, value in load_student(place).teacher.net.state_dict().items():
        wanted = plain[name]
        if name == f"unet.{QUERY}.weight":
            wanted = 2 * wanted / wanted.norm(dim=1, keepdim=True)
        torch.testing.assert_close(value, wanted, atol=1e-6, rtol=1e-5)


def test_magnitudes_of_a_convolution():
    weight = torch.randn(6, 5, 3, 3)
    rows = torch.rand(6, 1, 1, 1)
    norm = weight.flatten(1).norm(dim=1)
    wanted = rows * weight / norm[:, None, None, None]
    torch.testing.assert_close(magnify(weight, rows), wanted)
    columns = torch.rand(1, 5, 1, 1)
    norm = weight.transpose(0, 1).flatten(1).norm(dim=1)
    wanted = columns * weight / norm[None, :, None, None]
    torch.testing.assert_close(magnify(weight, columns), wanted)


def text_layers(part, down, up):
    stems = [f"lora_{part}_text_model_" + name.replace(".", "_") for name in ALL]
    found = {}
    for stem in stems:
        found[f"{stem}.lora_down.weight"], found[f"{stem}.lora_up.weight"] = down, up
        found[f"{stem}.alpha"] = torch.tensor(2.0)
    return {key: value.clone() for key, value in found.items()}


def test_text_encoders_learn_too(base, tmp_path):
    file, _ = lora(tmp_path / "x.safetensors")
    down, up = torch.randn(4, 16), torch.randn(16, 4)
    edit(file, lambda state: state.update(text_layers("te", down, up)))
    place = adopt(str(file), "lcm-lora", base=str(base), out=tmp_path / "student")
    got = load_student(place).teacher.pipeline.text_encoder.state_dict()
    torch.manual_seed(0)
    old = make_pipeline().text_encoder.state_dict()
    name = next(name for name in old if name.endswith(f"{TEXT}.weight"))
    torch.testing.assert_close(got[name], old[name] + up @ down / 2, atol=1e-5, rtol=1e-5)


def test_alphas_in_the_metadata(base, tmp_path):
    file = peft_lora(tmp_path / "x.safetensors")
    config = {"unet.r": 4, "unet.lora_alpha": 2, "unet.target_modules": ["to_q", "to_k"]}
    config["unet.target_modules"] = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out"]
    plain = weight(base, file, tmp_path)
    edit(file, lambda state: None, {"format": "pt", "lora_adapter_metadata": json.dumps(config)})
    half = weight(base, file, tmp_path)
    torch.testing.assert_close(half - before(), (plain - before()) / 2, atol=1e-5, rtol=1e-4)


def test_the_energy_of_a_split_layer_is_its_parts():
    down, up = torch.randn(4, 7), torch.randn(9, 4)
    parts = sum(energy(down, piece, 0.5) for piece in up.split(3))
    assert parts == pytest.approx(energy(down, up, 0.5))
    assert energy(down, up, 0.5) == pytest.approx(
        float((0.5 * up @ down).square().sum()), rel=1e-5
    )


# --- What is refused ----------------------------------------------------------------------------

OTHERS = {
    ".hada_w1_a": "LoHa",
    ".lokr_w1": "LoKr",
    ".lokr_w2_b": "LoKr",
    ".oft_blocks": "OFT",
    ".oft_diag": "OFT",
    ".boft_R": "BOFT",
    ".ia3_l": "IA3",
    ".on_input": "IA3",
    ".lora_mid.weight": "Tucker",
    ".diff": "whole weights",
    ".diff_b": "whole weights",
    ".lora_B.bias": "a bias",
    ".bias": "a bias",
    ".lora_up.bias": "a bias",
    ".w_norm": "unknown",
    ".scalar": "unknown",
    ".lora_C.weight": "unknown",
    ".lora_down.weight.extra": "unknown",
}


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("end", OTHERS)
def test_other_keys_are_named(base, tmp_path, end, alone):
    file, _ = lora(tmp_path / "x.safetensors")

    def change(state):
        if alone:
            state.clear()
        state[KOHYA + end] = torch.ones(4, 4)

    edit(file, change)
    words = [] if alone and OTHERS[end] in ("unknown", "a bias") else [KOHYA + end, OTHERS[end]]
    refused(base, file, tmp_path, *words)


@pytest.mark.parametrize("key", ["bundle_emb.x.string_to_param.*", "clip_l", "emb_params", "step"])
def test_what_is_no_layer_is_named(base, tmp_path, key):
    file, _ = lora(tmp_path / "x.safetensors", **{key: torch.ones(2, 16)})
    refused(base, file, tmp_path, key, "1 of its 3 keys")


@pytest.mark.parametrize(
    "stem",
    [
        "lora_unet_nowhere_to_q",
        "lora_te2_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te_text_model_encoder_layers_7_self_attn_q_proj",
        "lora_prior_unet_x",
        "lora_controlnet_x",
        "lycoris_mid_block_x",
        "foo.bar",
        "unet.mid_block.attentions.0.nothing",
        "text_encoder.nothing",
        "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj",
        "transformer.blocks.0.to_q",
        QUERY,
    ],
)
def test_a_layer_without_a_place_is_refused(base, tmp_path, stem):
    down, up = ("lora_A", "lora_B") if "." in stem else ("lora_down", "lora_up")
    more = {f"{stem}.{down}.weight": torch.ones(4, 16), f"{stem}.{up}.weight": torch.ones(16, 4)}
    for layers in (peft_lora, kohya_lora):
        file = layers(tmp_path / "x.safetensors")
        edit(file, lambda state: state.update(more))
        refused(base, file, tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({".lora_up.weight": None}, ["has no up factor beside it"]),
        ({".lora_down.weight": None}, ["has no down factor beside it"]),
        ({".lora_down.weight": torch.ones(3, 32)}, ["do not fit each other"]),
        ({".lora_up.weight": torch.ones(32, 8)}, ["do not fit each other"]),
        ({".lora_up.weight": torch.ones(32)}, ["do not fit each other"]),
        ({".lora_up.weight": torch.ones(48, 4)}, ["does not fit its base"]),
        ({".lora_down.weight": torch.ones(4, 31)}, ["does not fit its base"]),
        ({".lora_down.weight": torch.ones(4, 32, 3, 3)}, ["does not fit its base"]),
        ({".alpha": torch.ones(2)}, ["alpha holds 2 numbers"]),
        ({".alpha": torch.tensor(float("nan"))}, ["alpha", "not finite"]),
        ({".alpha": torch.tensor(float("inf"))}, ["alpha", "not finite"]),
        ({".lora_up.weight": torch.full((32, 4), float("nan"))}, ["lora_up", "not finite"]),
        ({".lora_down.weight": torch.full((4, 32), float("-inf"))}, ["lora_down", "not finite"]),
        ({".dora_scale": torch.full((32, 1), float("nan"))}, ["dora_scale", "not finite"]),
        ({".dora_scale": torch.ones(7, 1)}, ["magnitudes of shape [7, 1]"]),
        ({".dora_scale": torch.ones(1)}, ["magnitudes of shape [1]"]),
        ({"_2.alpha": torch.ones(1)}, ["has no down factor"]),
        ({"_2.dora_scale": torch.ones(32, 1)}, ["has no down factor"]),
    ],
)
def test_a_layer_that_is_not_whole_is_refused(base, tmp_path, changes, words):
    file, _ = lora(tmp_path / "x.safetensors")

    def change(state):
        for end, value in changes.items():
            state.pop(KOHYA + end, None)
            state.update({} if value is None else {KOHYA + end: value})

    refused(base, edit(file, change), tmp_path, *words)


def test_magnitudes_are_for_a_scale_of_one(tmp_path):
    file, _ = lora(tmp_path / "x.safetensors", **{f"{KOHYA}.dora_scale": torch.ones(32, 1)})
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"DoRA magnitudes .* are for a scale of 1; .* at 0\.5"):
        fuse_lora(make_pipeline(), file, 0.5)


def test_a_layer_without_an_alpha_has_its_rank(base, tmp_path):
    """As for kohya; diffusers gives it the alpha of the others."""
    file = kohya_lora(tmp_path / "x.safetensors")
    half = weight(base, file, tmp_path)
    edit(file, lambda state: state.pop(f"{KOHYA}.alpha"))
    whole = weight(base, file, tmp_path)
    torch.testing.assert_close(whole - before(), 2 * (half - before()), atol=1e-5, rtol=1e-4)


def test_a_network_that_is_not_finite_is_refused(base, tmp_path):
    unet = make_pipeline().unet
    unet.conv_in.weight.data[0, 0, 0, 0] = float("nan")
    file = unet_file(tmp_path / "x.safetensors", unet)
    refused(base, file, tmp_path, "conv_in.weight holds numbers that are not finite", kind="turbo")


def test_sdxl_text_encoders(tmp_path):
    torch.manual_seed(0)
    make_xl().save_pretrained(tmp_path / "xl")
    file = kohya_lora(tmp_path / "x.safetensors", make_xl().unet)
    state = {}
    for part in ("te1", "te2"):
        state |= text_layers(part, torch.randn(4, 16), torch.randn(16, 4))
    edit(file, lambda found: found.update(state))
    place = adopt(str(file), "lcm-lora", base=str(tmp_path / "xl"), out=tmp_path / "student")
    pipeline = load_student(place).teacher.pipeline
    old = make_xl()
    for part in ("text_encoder", "text_encoder_2"):
        now, was = (getattr(p, part).state_dict() for p in (pipeline, old))
        name = next(name for name in was if name.endswith(f"{TEXT}.weight"))
        assert not torch.allclose(now[name], was[name])
