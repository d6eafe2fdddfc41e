"""Base and LoRA in one teacher: what diffusers draws with the LoRA loaded, or a refusal."""

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from tiny import make_pipeline, save

from edgedistill import recipes
from edgedistill.draw.generate import teacher_of
from edgedistill.proof.drawing import differences, prove
from edgedistill.students.folder import load_student
from edgedistill.teachers import load_teacher

NAME = "mid_block.attentions.0.transformer_blocks.0.attn1"


def adapter(place, rank=2, value=0.5, layers=("to_q", "to_v")):
    unet, state, draw = make_pipeline().unet, {}, torch.Generator().manual_seed(rank)
    for layer in layers:
        weight = unet.get_parameter(f"{NAME}.{layer}.weight")
        key = f"lora_unet_{NAME}_{layer}".replace(".", "_")
        state[f"{key}.lora_down.weight"] = value * torch.randn(
            rank, weight.shape[1], generator=draw
        )
        state[f"{key}.lora_up.weight"] = value * torch.randn(len(weight), rank, generator=draw)
        state[f"{key}.alpha"] = torch.tensor(float(rank))
    save_file(state, place)
    return str(place)


@pytest.fixture
def base(tmp_path):
    torch.manual_seed(0)
    make_pipeline().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_it_draws_what_diffusers_draws_with_the_loras_loaded(base, tmp_path):
    one = adapter(tmp_path / "one.safetensors")
    two = adapter(tmp_path / "two.safetensors", rank=4, value=0.3, layers=("to_k",))
    teacher = load_teacher("stable_diffusion", base, None, [(one, 0.5), (two, -1.0)])
    pipeline = DiffusionPipeline.from_pretrained(base)
    for name in ("one", "two"):
        file = f"{name}.safetensors"
        pipeline.load_lora_weights(str(tmp_path), weight_name=file, adapter_name=name)
    pipeline.set_adapters(["one", "two"], [0.5, -1.0])
    x, t = torch.ones(1, 4, 4, 4), torch.tensor([500.0])
    cond = teacher.encode(["red"])
    with torch.no_grad():
        theirs = pipeline.unet(x, t, *cond.values(), return_dict=False)[0]
        ours, plain = teacher.net(x, t, **cond), load_teacher("stable_diffusion", base).net
        assert not torch.allclose(plain(x, t, **cond), theirs, atol=1e-3)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert max(differences(teacher).values()) < 1e-3


def test_attention_and_convolutions_as_diffusers_own_scripts_write_them(base, tmp_path):
    """Whose converter gives attention other names than convolutions."""
    pipeline = DiffusionPipeline.from_pretrained(base)
    torch.manual_seed(1)
    layers = ["to_q", "conv1"]
    config = LoraConfig(r=2, lora_alpha=2, target_modules=layers, init_lora_weights=False)
    pipeline.unet.add_adapter(config)
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipeline.unet))
    assert len({key.partition(".lora")[2] for key in state}) == 4
    pipeline.save_lora_weights(tmp_path / "lora", unet_lora_layers=state)
    teacher = load_teacher("stable_diffusion", base, None, [(str(tmp_path / "lora"), 1.0)])
    x, t = torch.ones(1, 4, 4, 4), torch.tensor([500.0])
    cond = teacher.encode(["red"])
    with torch.no_grad():
        trained = pipeline.unet(x, t, *cond.values(), return_dict=False)[0]
        ours = teacher.net(x, t, **cond)
    torch.testing.assert_close(ours, trained, atol=1e-5, rtol=1e-5)


def test_a_proof_is_of_the_loras_too(base, tmp_path):
    file = adapter(tmp_path / "one.safetensors")
    for loras in ((), [(file, 1.0)], [(file, 0.5)]):
        prove(load_teacher("stable_diffusion", base, None, loras), tmp_path / "proofs")
    assert len(list((tmp_path / "proofs").iterdir())) == 3


@pytest.mark.parametrize(
    ("lora", "expected"),
    [
        ("a.safetensors", [("a.safetensors", 1.0)]),
        ({"path": "a.safetensors", "scale": 0.7}, [("a.safetensors", 0.7)]),
        (["a", {"path": "b", "scale": 2}], [("a", 1.0), ("b", 2.0)]),
        ([], []),
    ],
)
def test_a_recipe_names_one_or_several(lora, expected):
    section = recipes.load("emoji-4step").teacher
    found = type(section).model_validate({**section.model_dump(), "lora": lora})
    assert found.loras == expected
    assert type(section).model_validate({**found.model_dump(), "tiny": True}).loras == []


@pytest.mark.parametrize("words", ["5", "{scale: 1}", "{path: a, scale: .inf}", "[[a]]"])
def test_a_recipe_says_what_is_wrong(words):
    with pytest.raises(ValueError, match=r"teacher\.lora") as caught:
        recipes.load("emoji-4step", [f"teacher.lora={words}"])
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_one_line(base, tmp_path):
    odd, nan = tmp_path / "odd.safetensors", tmp_path / "nan.safetensors"
    state = load_file(adapter(tmp_path / "one.safetensors"))
    save_file({key.replace("mid_block", "mid_blocks"): value for key, value in state.items()}, odd)
    save_file({key: value * float("nan") for key, value in state.items()}, nan)
    (tmp_path / "two").mkdir()
    for name in ("a", "b"):
        adapter(tmp_path / "two" / f"{name}.safetensors")
    for file, message in (
        (odd, "does not fit"),
        (nan, "not finite"),
        (tmp_path / "none.safetensors", "no such file"),
        (tmp_path / "two", r"2 \.safetensors files in it; name one"),
        (base / "model_index.json", r"a \.safetensors file expected"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            load_teacher("stable_diffusion", base, None, [(str(file), 1.0)])
        assert "\n" not in str(caught.value)
        assert str(file) in str(caught.value)
        assert str(caught.value).count("teacher.lora=") == 1
    with pytest.raises(ValueError, match="mixture teachers take no LoRA"):
        load_teacher("mixture", "rings", None, [("a", 1.0)])


def test_the_teacher_of_a_student_has_them(base, tmp_path):
    file = adapter(tmp_path / "one.safetensors")
    teacher = load_teacher("stable_diffusion", base, None, [(file, 1.0)])
    place = save(tmp_path / "student", teacher, teacher.net, teacher.denoiser.prediction, 4)
    student = load_student(place)
    student.info.teacher.update(family="stable_diffusion", lora=[[file, 1.0]])
    name = f"unet.{NAME}.to_q.weight"
    found = teacher_of(student).net.state_dict()[name]
    torch.testing.assert_close(found, teacher.net.state_dict()[name])
