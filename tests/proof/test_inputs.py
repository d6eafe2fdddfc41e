"""What a family's own pipeline does between latents, pictures and prompts is what is done here."""

import json
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FluxImg2ImgPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from safetensors.torch import save_file
from tokenizers import Tokenizer

from edgedistill.common.plugins import resolve
from edgedistill.data.pictures import Codec
from edgedistill.proof.inputs import input_differences, unread_weights
from edgedistill.teachers import load_teacher
from edgedistill.teachers.families.stable_diffusion import StableDiffusion
from edgedistill.tiny import TINY
from edgedistill.tiny.stable_diffusion import autoencoder

STATISTICS = {"latents_mean": [-1.7, 1.9, -1.4, 2.5], "latents_std": [8.5, 5.9, 6.5, 5.2]}

CONFIGS = {
    "statistics": STATISTICS,
    "mean alone": {"latents_mean": [-1.7, 1.9, -1.4, 2.5]},
    "shift": {"shift_factor": 0.7},
    "all": {**STATISTICS, "shift_factor": -0.4, "scaling_factor": 0.3},
}
"""Of an autoencoder; which of them counts is the pipeline's matter."""

PICTURES = sorted(TINY.keys() - {"unet2d", "wan"})

IMG2IMG = {
    "flux": FluxImg2ImgPipeline,
    "sd3": StableDiffusion3Img2ImgPipeline,
    "sdxl": StableDiffusionXLImg2ImgPipeline,
    "stable_diffusion": StableDiffusionImg2ImgPipeline,
}


def tiny(family):
    torch.manual_seed(0)
    return resolve("family", TINY, family, "")()


def saved(family, place, **vae):
    made = tiny(family)
    if vae:
        made.vae.register_to_config(**vae)
    made.save_pretrained(place)
    return place


@pytest.mark.parametrize("family", sorted(TINY))
def test_a_tiny_teacher_differs_in_nothing(family, tmp_path):
    found = input_differences(load_teacher(family, saved(family, tmp_path)))
    assert found.keys() == {"prompt", "decode"} | ({"encode"} if family != "unet2d" else set())
    assert max(found.values()) < 1e-5


@pytest.mark.parametrize("config", sorted(CONFIGS))
@pytest.mark.parametrize("family", PICTURES)
def test_an_autoencoders_numbers_are_read_as_its_pipeline_reads_them(family, config, tmp_path):
    teacher = load_teacher(family, saved(family, tmp_path, **CONFIGS[config]))
    assert max(input_differences(teacher).values()) < 1e-4
    x0 = torch.randn(2, *teacher.sample_shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(teacher.scaling.inverse(teacher.scaling(x0)), x0)


@pytest.mark.parametrize("config", sorted(CONFIGS))
@pytest.mark.parametrize("family", sorted(IMG2IMG))
def test_pictures_become_the_latents_that_its_pipeline_makes_of_them(family, config, tmp_path):
    teacher = load_teacher(family, saved(family, tmp_path, **CONFIGS[config]))
    codec = Codec(teacher)
    pictures = torch.randint(256, (2, *codec.shape), generator=torch.Generator().manual_seed(3))
    pipeline = IMG2IMG[family](**DiffusionPipeline.from_pretrained(tmp_path).components)
    own, values = pipeline.vae.encode, pictures.float() / 127.5 - 1
    # Its posterior's mode, and no noise on what becomes of it.
    pipeline.vae.encode = lambda x: SimpleNamespace(latents=own(x).latent_dist.mode())
    pipeline.register_modules(scheduler=Noiseless())
    with torch.no_grad():
        if family == "flux":
            expected = pipeline._encode_vae_image(values, None)
        else:
            expected = pipeline.prepare_latents(values, 1, 2, 1, torch.float32, "cpu")
    torch.testing.assert_close(codec.encode(pictures.byte()), expected, atol=1e-4, rtol=1e-4)


class Noiseless:
    def add_noise(self, x0, noise, t):
        return x0

    def scale_noise(self, x0, t, noise):
        return x0


def rebuilt(core, **changes):
    """The network's class with other configuration, and random weights."""
    plain = {name: value for name, value in core.config.items() if not name.startswith("_")}
    return type(core).from_config({**plain, **changes})


FED = [
    ("stable_diffusion", {"time_cond_proj_dim": 16}, "time_cond_proj_dim=16.*adopt .* --as lcm"),
    ("sdxl", {"time_cond_proj_dim": 16}, "time_cond_proj_dim=16.*adopt .* --as lcm"),
    ("stable_diffusion", {"num_class_embeds": 10}, "num_class_embeds=10.*without"),
    ("stable_diffusion", {"class_embed_type": "timestep"}, "class_embed_type=timestep"),
    ("sdxl", {"class_embed_type": "identity"}, "class_embed_type=identity"),
    (
        "stable_diffusion",
        {"encoder_hid_dim_type": "ip_image_proj", "encoder_hid_dim": 16},
        "ip_image_proj.*unload_ip_adapter",
    ),
    (
        "sdxl",
        {"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 16},
        "encoder_hid_dim_type=image_proj",
    ),
    (
        "stable_diffusion",
        {"addition_embed_type": "text", "addition_embed_type_num_heads": 4},
        "addition_embed_type=text.*SDXL",
    ),
    ("sdxl", {"addition_embed_type": None}, "addition_embed_type=None"),
    ("stable_diffusion", {"in_channels": 9, "out_channels": 4}, "9 channels"),
    ("sdxl", {"in_channels": 8, "out_channels": 4}, "8 channels"),
    ("stable_diffusion", {"out_channels": 8}, "returns 8"),
    ("sdxl", {"sample_size": None}, "no sample_size"),
    ("flux", {"in_channels": 96 * 4, "out_channels": 16}, "384 channels"),
    ("sana", {"guidance_embeds": True}, "guidance_embeds=True.*Sprint"),
    ("wan", {"image_dim": 16}, "image_dim=16.*text alone"),
    ("wan", {"in_channels": 36, "out_channels": 4}, "36 channels"),
]
"""Family, a change of its network's configuration, and what the refusal says."""


@pytest.mark.parametrize(("family", "changes", "message"), FED)
def test_a_network_that_reads_more_is_refused(family, changes, message, tmp_path):
    made = tiny(family)
    name = "unet" if hasattr(made, "unet") else "transformer"
    core = getattr(made, name)
    try:
        core = rebuilt(core, **changes)
    except (NotImplementedError, TypeError, ValueError):
        core.register_to_config(**changes)
    made.register_modules(**{name: core})
    made.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        load_teacher(family, tmp_path)
    assert "\n" not in str(caught.value)


def test_an_input_that_no_table_knows_is_found_by_asking_the_pipeline(tmp_path, monkeypatch):
    made = tiny("sdxl")
    made.register_modules(unet=rebuilt(made.unet, time_cond_proj_dim=16))
    made.save_pretrained(tmp_path)
    monkeypatch.setattr("edgedistill.teachers.pipeline.check_network", lambda *_: None)
    teacher = load_teacher("sdxl", tmp_path)
    assert unread_weights(teacher) == ["time_embedding.cond_proj"]
    with pytest.raises(ValueError, match="take no part as it is called here: time_embedding"):
        input_differences(teacher)
    monkeypatch.setattr("edgedistill.proof.inputs.unread_weights", lambda _: [])
    with pytest.raises(ValueError, match="feeds its network timestep_cond, which is not fed"):
        input_differences(teacher)


@pytest.mark.parametrize("name", ["VQModel", "ConsistencyDecoderVAE"])
def test_an_autoencoder_of_another_kind_is_refused(name, tmp_path):
    made = tiny("stable_diffusion")
    kind = getattr(diffusers, name)
    with torch.device("meta"):
        made.register_modules(vae=kind())
    with pytest.raises(ValueError, match=f"unknown autoencoder '{name}'"):
        StableDiffusion("tiny", "tiny", made)


def test_an_autoencoder_of_other_latents_is_refused(tmp_path):
    made = tiny("sd3")
    made.register_modules(vae=autoencoder(latent_channels=8, shift_factor=0.0))
    made.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="reads 4 channels and its vae makes 8"):
        load_teacher("sd3", tmp_path)


def with_words(made, vectors, place):
    save_file({"<sks>": torch.randn(vectors, 16)}, place / "ti.safetensors")
    made.load_textual_inversion(place / "ti.safetensors", token="<sks>")
    made.save_pretrained(place / "teacher")
    return place / "teacher"


def test_words_that_were_added_are_read_as_the_pipeline_reads_them(tmp_path):
    place = with_words(tiny("stable_diffusion"), 1, tmp_path)
    teacher, pipeline = load_teacher("stable_diffusion", place), opened(place)
    ours = teacher.encode(["<sks> red"])["encoder_hidden_states"]
    theirs = pipeline.encode_prompt(["<sks> red"], "cpu", 1, False)[0]
    torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(ours, teacher.encode(["red"])["encoder_hidden_states"])
    ids = Tokenizer.from_str(teacher.tokenizer("tokenizer").backend_tokenizer.to_str())
    assert ids.encode("<sks> red").ids == teacher.tokenize(["<sks> red"])["input_ids"][0].tolist()


def test_words_of_several_vectors_are_refused(tmp_path):
    place = with_words(tiny("stable_diffusion"), 3, tmp_path)
    with pytest.raises(ValueError, match="tokenizer: <sks>: textual inversions of several"):
        load_teacher("stable_diffusion", place)


def test_a_word_without_its_embedding_is_refused(tmp_path):
    made = tiny("sdxl")
    made.tokenizer_2.add_tokens("<sks>")
    made.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"tokenizer_2: 517 tokens, and text_encoder_2.*textual inv"
    ):
        load_teacher("sdxl", tmp_path)


@pytest.mark.parametrize("family", ["stable_diffusion", "sdxl", "sd3", "flux"])
def test_a_length_that_a_tokenizer_leaves_out_is_its_encoders(family, tmp_path):
    place = saved(family, tmp_path / "a")
    whole = load_teacher(family, saved(family, tmp_path / "b"))
    for file in place.glob("tokenizer*/tokenizer_config.json"):
        config = json.loads(file.read_text())
        del config["model_max_length"]
        file.write_text(json.dumps(config))
    teacher = load_teacher(family, place)
    clip = [name for name in teacher.tokenizers if name != LAST.get(family)]
    assert all(teacher.length(name) == whole.length(name) for name in clip)
    assert max(input_differences(teacher).values()) < 1e-5


LAST = {"sd3": "tokenizer_3", "flux": "tokenizer_2"}
"""T5's, whose positions have no end: as long as the pipeline has it."""


def test_an_encoder_that_wants_a_mask_is_given_one(tmp_path):
    made = tiny("stable_diffusion")
    made.text_encoder.config.use_attention_mask = True
    made.save_pretrained(tmp_path)
    teacher, pipeline = load_teacher("stable_diffusion", tmp_path), opened(tmp_path)
    ours = teacher.encode(["red", ""])["encoder_hidden_states"]
    theirs = pipeline.encode_prompt(["red", ""], "cpu", 1, False)[0]
    torch.testing.assert_close(ours, theirs)
    plain = load_teacher("stable_diffusion", saved("stable_diffusion", tmp_path / "plain"))
    assert plain.masks == {}


def opened(place):
    pipeline = DiffusionPipeline.from_pretrained(place)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
