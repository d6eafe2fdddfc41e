"""What a checkpoint is told to be, and every wrong kind refused in one line."""

import json

import pytest
import torch
from adoption.published import (
    guided_unet,
    kohya_lora,
    make_base,
    make_folder,
    peft_lora,
    unet_file,
)
from diffusers import (
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
)
from safetensors.torch import save_file
from tiny import make_pipeline
from typer.testing import CliRunner

from edgedistill.adoption import KINDS, adopt
from edgedistill.adoption.detect import look, named_steps
from edgedistill.adoption.kinds import FOLDER, LORA, WEIGHTS
from edgedistill.cli import app


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Checkpoints by what they are."""
    root = tmp_path_factory.mktemp("published")
    make_base(root / "base")
    make_base(root / "v", prediction_type="v_prediction")
    make_folder(root / "fast", EulerAncestralDiscreteScheduler, timestep_spacing="trailing")
    make_folder(root / "leading", EulerDiscreteScheduler, timestep_spacing="leading")
    make_folder(root / "consistent", LCMScheduler)
    kohya_lora(root / "lora.safetensors")
    peft_lora(root / "peft.safetensors")
    kohya_lora(root / "sdxl_lightning_4step_lora.safetensors")
    kohya_lora(root / "Hyper-SD15-8steps-CFG-lora.safetensors")
    kohya_lora(root / "Hyper-SD15-1step-lora.safetensors")
    kohya_lora(root / "Hyper-SD15-2steps-lora.safetensors")
    kohya_lora(root / "pcm_sd15_lcmlike_lora_converted.safetensors")
    kohya_lora(root / "pcm_sd15_normalcfg_4step_converted.safetensors")
    unet_file(root / "unet.safetensors", make_pipeline().unet)
    unet_file(root / "guided.safetensors", guided_unet())
    save_file({"model.diffusion_model.x": torch.ones(1)}, root / "original.safetensors")
    save_file({"encoder.weight": torch.ones(1)}, root / "other.safetensors")
    save_file({"unet.add_embedding.lora_A.weight": torch.ones(2, 3)}, root / "xl.safetensors")
    (root / "dmd2_sdxl_4step_unet_fp16.bin").write_bytes(b"PK")
    (root / "broken.safetensors").write_bytes(b"not weights")
    (root / "empty").mkdir()
    return root


@pytest.mark.parametrize(
    ("name", "form", "embedded", "rank"),
    [
        ("base", FOLDER, False, 0),
        ("lora.safetensors", LORA, False, 4),
        ("peft.safetensors", LORA, False, 4),
        ("unet.safetensors", WEIGHTS, False, 0),
        ("guided.safetensors", WEIGHTS, True, 0),
        ("base/unet", WEIGHTS, False, 0),
    ],
)
def test_a_checkpoint_is_told_by_its_keys(places, name, form, embedded, rank):
    info = look(str(places / name))
    assert (info.form, info.embedded, info.rank) == (
        form,
        embedded,
        rank,
    )


@pytest.mark.parametrize(
    ("keys", "family"),
    [
        ({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (4, 8)}, "flux"),
        ({"transformer.context_embedder.lora_A.weight": (4, 8)}, "sd3"),
        ({"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 8)}, "sdxl"),
        ({"unet.down_blocks.0.attn2.to_k.lora_A.weight": (4, 2048)}, "sdxl"),
        ({"unet.down_blocks.0.attn2.to_k.lora_A.weight": (4, 768)}, "stable_diffusion"),
        ({"lora_unet_down_blocks_1_attn2_to_k.lora_down.weight": (4, 2048)}, "sdxl"),
        ({"unet.down_blocks.0.attn2.to_k.lora_A.weight": (4, 17)}, ""),
        ({"down_blocks.0.w": (4, 4), "conv_in.weight": (4, 4)}, "stable_diffusion"),
        ({"down_blocks.0.w": (4, 4), "add_embedding.linear_1.weight": (4, 4)}, "sdxl"),
    ],
)
def test_a_family_is_told_by_its_keys(tmp_path, keys, family):
    save_file({key: torch.ones(shape) for key, shape in keys.items()}, tmp_path / "x.safetensors")
    assert look(str(tmp_path / "x.safetensors")).family == family


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("lora.safetensors", "lightning", r"that is a U-Net.*choose from.*LoRA.*of rank 4"),
        ("unet.safetensors", "lcm-lora", r"that is a LoRA.*looks like a U-Net or transformer"),
        ("base", "hyper-sd", r"that is a LoRA.*looks like a diffusers pipeline folder"),
        ("unet.safetensors", "lcm", r"no embedded guidance scale"),
        ("guided.safetensors", "turbo", r"choose lcm .*as LCMs have"),
        ("base", "turbo", r"folders of that kind have a EulerAncestral.*with a DDIMScheduler"),
        (
            "fast",
            "sd-turbo",
            r"folders of that kind have a EulerDiscreteScheduler .*EulerAncestral",
        ),
        ("leading", "sd-turbo", r"timestep_spacing trailing, this one leading"),
        ("consistent", "turbo", r"folders of that kind have a EulerAncestral.*LCMScheduler"),
        ("xl.safetensors", "flux-turbo-lora", r"published for flux .*family sdxl"),
        ("fast", "schnell", r"folders of that kind have a FlowMatchEuler"),
        ("sdxl_lightning_4step_lora.safetensors", "hyper-sd", r"its name says lightning"),
        ("Hyper-SD15-8steps-CFG-lora.safetensors", "hyper-sd", r"two network calls a step"),
        ("pcm_sd15_normalcfg_4step_converted.safetensors", "pcm", r"two network calls"),
        ("pcm_sd15_lcmlike_lora_converted.safetensors", "pcm", r"its name says lcm"),
        ("Hyper-SD15-1step-lora.safetensors", "hyper-sd", r"made for 1 steps, hyper-sd for 2, 4"),
        ("original.safetensors", "turbo", r"original layout"),
        ("other.safetensors", "turbo", r"neither a LoRA nor a U-Net"),
        ("dmd2_sdxl_4step_unet_fp16.bin", "dmd2", r"a pickle, which is never opened"),
        ("broken.safetensors", "turbo", r"not readable as safetensors"),
        ("empty", "turbo", r"no pipeline folder, and 0 safetensors"),
        ("nowhere", "turbo", r"no checkpoint at"),
        ("lora.safetensors", "lora", r"unknown kind 'lora'"),
    ],
)
def test_a_wrong_kind_is_refused_in_one_line(places, tmp_path, name, kind, message):
    with pytest.raises(ValueError, match=message) as caught:
        adopt(str(places / name), kind, base=str(places / "base"), out=tmp_path / "student")
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "kind", "options", "message"),
    [
        ("lora.safetensors", "tcd", {}, "name its teacher with --base"),
        ("lora.safetensors", "tcd", {"base": "./nowhere"}, "no pipeline folder"),
        ("lora.safetensors", "tcd", {"base": "base/unet"}, "no pipeline folder"),
        ("lora.safetensors", "tcd", {"base": "v"}, "predicts v_prediction"),
        ("lora.safetensors", "tcd", {"base": "base", "steps": 7}, "--steps 7: tcd students take"),
        ("lora.safetensors", "tcd", {"base": "base", "guidance": 2.0}, "read no guidance"),
        ("lora.safetensors", "dmd2-lora", {"base": "base"}, "published for sdxl"),
        ("fast", "turbo", {"base": "base"}, "is a whole pipeline and needs none"),
        ("guided.safetensors", "lcm", {"base": "base", "guidance": 0.5}, "at least 1"),
        ("xl.safetensors", "tcd", {"base": "base"}, "looks like sdxl; --base .* stable_diffusion"),
        (
            "Hyper-SD15-2steps-lora.safetensors",
            "hyper-sd",
            {"base": "base", "steps": 4},
            "made for 2 steps by its name",
        ),
    ],
)
def test_wrong_options_are_refused(places, tmp_path, name, kind, options, message):
    if (places / options.get("base", "-")).is_dir():
        options = {**options, "base": str(places / options["base"])}
    with pytest.raises(ValueError, match=message):
        adopt(str(places / name), kind, out=tmp_path / "student", **options)


def test_a_family_that_is_not_installed_is_named(places, tmp_path, monkeypatch):
    monkeypatch.setattr("edgedistill.adoption.adopting.TEACHERS", {"mixture": "none:none"})
    with pytest.raises(ValueError, match="unknown teacher family 'stable_diffusion'"):
        adopt(str(places / "fast"), "turbo", out=tmp_path / "student")


def test_weights_that_do_not_fit_name_the_first(places, tmp_path):
    base = str(places / "base")
    state = make_pipeline().unet.state_dict()
    cases = {
        "conv_in.weight is .* there": {**state, "conv_in.weight": torch.ones(1)},
        "lacks conv_in.weight": {k: v for k, v in state.items() if k != "conv_in.weight"},
        "its base has not, more.weight": {**state, "more.weight": torch.ones(1)},
    }
    for number, (message, weights) in enumerate(cases.items()):
        file = tmp_path / f"{number}.safetensors"
        save_file(weights, file)
        with pytest.raises(ValueError, match=message):
            adopt(str(file), "turbo", base=base, out=tmp_path / "student")


def test_a_pipeline_of_no_family_is_named(places, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyPipeline"}))
    with pytest.raises(ValueError, match="a KandinskyPipeline, which no family reads"):
        adopt(str(tmp_path), "turbo")


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("sdxl_lightning_4step_unet", 4),
        ("Hyper-SDXL-8steps-lora", 8),
        ("lcm-lora-sdv1-5", None),
        ("pcm_sd15_smallcfg_16step_converted", 16),
    ],
)
def test_steps_are_read_from_names(tmp_path, name, steps):
    assert named_steps(tmp_path / f"{name}.safetensors") == steps


def test_the_verb_passes_everything_on(places, tmp_path, monkeypatch):
    monkeypatch.setattr("edgedistill.adoption.adopt", lambda *args, **kwargs: repr((args, kwargs)))
    words = ["adopt", "x", "--as", "tcd", "--base", "b", "--steps", "2", "--out", "o"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    for part in ("'x', 'tcd'", "'base': 'b'", "'steps': 2", "PosixPath('o')"):
        assert part in result.output.replace("\n", "")


def test_every_kind_says_where_it_is_published():
    for kind in KINDS.values():
        assert kind.source
        assert set(kind.forms) <= {FOLDER, WEIGHTS, LORA}
        assert bool(kind.owns) == (FOLDER in kind.forms)
