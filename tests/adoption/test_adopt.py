"""Adopting checkpoints in their published layouts, end to end, against diffusers."""

import json
import shutil

import pytest
import torch
from adoption.published import (
    guided_unet,
    kohya_lora,
    make_base,
    make_folder,
    make_xl,
    peft_lora,
    unet_file,
)
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
    TCDScheduler,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from tiny import make_pipeline

from edgedistill import assets
from edgedistill.adoption import adopt
from edgedistill.common.progress import bar
from edgedistill.evaluation.run import evaluate_subjects
from edgedistill.reporting.page import write_report
from edgedistill.students.folder import load_student
from edgedistill.teachers.adapter_weights import (
    fold_guidance,
    guidance_embedding,
    plain_unet,
    put_weights,
)

PROMPTS = ["red", "blue"]
SHAPE = (2, 4, 4, 4)
TRAILING = {"timestep_spacing": "trailing"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base") / "sd")


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def drawn(pipeline, steps, **call) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    call = {"guidance_scale": 1.0, **call}
    return pipeline(
        PROMPTS, num_inference_steps=steps, generator=seeded(), output_type="latent", **call
    ).images


def ours(folder) -> torch.Tensor:
    student = load_student(folder)
    noise = student.table.draw(SHAPE, seeded())
    return student.sample(student.teacher.encode(PROMPTS), noise)


def near(x, y) -> None:
    assert (x - y).abs().max() <= 1e-4 * y.abs().max()


LORAS = [
    ("lcm-lora", 4, LCMScheduler, {}, {}),
    ("lcm-lora", 2, LCMScheduler, {}, {}),
    ("hyper-sd", 4, DDIMScheduler, TRAILING, {}),
    ("hyper-sd", 8, DDIMScheduler, TRAILING, {}),
    ("hyper-sd-unified", 1, TCDScheduler, {}, {"eta": 1.0}),
    ("hyper-sd-unified", 4, TCDScheduler, {}, {"eta": 1.0}),
    ("pcm", 4, TCDScheduler, {}, {"eta": 0.0}),
    ("tcd", 4, TCDScheduler, {}, {"eta": 0.3}),
]


@pytest.mark.parametrize("layout", [kohya_lora, peft_lora])
@pytest.mark.parametrize(("kind", "steps", "scheduler", "settings", "call"), LORAS)
def test_a_lora_draws_what_diffusers_draws(
    base, tmp_path, layout, kind, steps, scheduler, settings, call
):
    file = layout(tmp_path / "pytorch_lora_weights.safetensors")
    student = adopt(str(file), kind, base=str(base), steps=steps, out=tmp_path / "student")
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    plain = drawn(pipeline, steps)
    pipeline.load_lora_weights(tmp_path, weight_name=file.name)
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **settings)
    expected = drawn(pipeline, steps, **call)
    assert (plain - expected).abs().max() > 0.01
    near(ours(student), expected)
    near(drawn(DiffusionPipeline.from_pretrained(student), steps, **call), expected)
    assert load_student(student).info.lora_scale == 1.0


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize(
    ("kind", "scheduler"),
    [("turbo", EulerAncestralDiscreteScheduler), ("sd-turbo", EulerDiscreteScheduler)],
)
def test_a_turbo_folder_draws_what_it_draws_in_diffusers(tmp_path, kind, scheduler, steps):
    folder = make_folder(tmp_path / "sd-turbo", scheduler, **TRAILING)
    student = adopt(str(folder), kind, steps=steps, out=tmp_path / "student")
    expected = drawn(DiffusionPipeline.from_pretrained(folder), steps, guidance_scale=0.0)
    near(ours(student), expected)
    near(drawn(DiffusionPipeline.from_pretrained(student), steps), expected)


@pytest.mark.parametrize("guidance", [1.0, 8.0, 12.5])
@pytest.mark.parametrize("width", [16, 15])
def test_a_folded_guidance_scale_is_the_embedded_one(guidance, width):
    unet = guided_unet(width)
    x, states = torch.randn(2, 4, 4, 4), torch.randn(2, 8, 16)
    t = torch.tensor([999, 259])
    embedding = StableDiffusionPipeline.get_guidance_scale_embedding(
        None, torch.tensor([guidance - 1]), embedding_dim=width
    )
    torch.testing.assert_close(guidance_embedding(guidance, width).float(), embedding[0])
    with torch.no_grad():
        expected = unet(x, t, states, timestep_cond=embedding.expand(2, -1)).sample
        without = unet(x, t, states).sample
        folded = plain_unet(unet, guidance)(x, t, states).sample
    torch.testing.assert_close(folded, expected, atol=1e-5, rtol=1e-4)
    assert (folded - without).abs().max() > 1e-4


def test_folding_touches_one_bias():
    state = guided_unet().state_dict()
    folded = fold_guidance(state, 8.0)
    changed = [name for name in folded if not torch.equal(folded[name], state[name])]
    assert changed == ["time_embedding.linear_1.bias"]
    assert state.keys() - folded.keys() == {"time_embedding.cond_proj.weight"}


def lcm_pipeline(folder):
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    pipeline.register_modules(unet=guided_unet(), scheduler=scheduler)
    return pipeline


@pytest.mark.parametrize("layout", ["folder", "U-Net folder", "file"])
def test_an_lcm_is_fixed_at_its_guidance_scale(base, tmp_path, layout):
    pipeline = lcm_pipeline(base)
    places = {"folder": "lcm", "U-Net folder": "lcm/unet", "file": "unet.safetensors"}
    pipeline.save_pretrained(tmp_path / "lcm")
    unet_file(tmp_path / "unet.safetensors", pipeline.unet)
    student = adopt(
        str(tmp_path / places[layout]),
        "lcm",
        base=None if layout == "folder" else str(base),
        guidance=6.0,
        out=tmp_path / "student",
    )
    expected = drawn(pipeline, 4, guidance_scale=6.0)
    near(ours(student), expected)
    near(drawn(DiffusionPipeline.from_pretrained(student), 4), expected)
    info = load_student(student).info
    assert (info.guidance.mode, info.guidance.scale) == ("baked", 6.0)
    unet = UNet2DConditionModel.from_pretrained(student, subfolder="unet")
    assert unet.config.time_cond_proj_dim is None


def test_an_lcm_of_the_latent_consistency_class_is_read(base, tmp_path):
    folder = tmp_path / "LCM_Dreamshaper_v7"
    lcm_pipeline(base).save_pretrained(folder)
    index = folder / "model_index.json"
    text = index.read_text().replace("StableDiffusionPipeline", "LatentConsistencyModelPipeline")
    index.write_text(text)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    expected = drawn(pipeline, 4, guidance_scale=8.0, height=8, width=8)
    near(ours(adopt(str(folder), "lcm", out=tmp_path / "student")), expected)


def test_the_steps_of_the_name_are_the_default(base, tmp_path):
    file = kohya_lora(tmp_path / "Hyper-SD15-8steps-lora.safetensors")
    student = load_student(adopt(str(file), "hyper-sd", base=str(base), out=tmp_path / "s"))
    assert len(student.table.rows) == 8
    assert student.info.method == "hyper-sd"
    assert student.info.teacher["path"] == str(base)
    assert student.info.recipe["adopt"]["scheduler"] == "DDIMScheduler"


def test_a_student_is_replaced_and_another_folder_is_not(base, tmp_path):
    file = kohya_lora(tmp_path / "lora.safetensors")
    out = tmp_path / "student"
    for steps in (2, 4):
        adopt(str(file), "hyper-sd", base=str(base), steps=steps, out=out)
    assert len(load_student(out).table.rows) == 4
    with pytest.raises(ValueError, match="a folder that is no student is there"):
        adopt(str(file), "hyper-sd", base=str(base), out=tmp_path)
    with pytest.raises(ValueError, match="a file is there"):
        adopt(str(file), "hyper-sd", base=str(base), out=file)


def test_a_student_that_was_trained_is_not_replaced(base, tmp_path):
    file = kohya_lora(tmp_path / "lora.safetensors")
    out = adopt(str(file), "hyper-sd", base=str(base), out=tmp_path / "student")
    info = json.loads((out / "student.json").read_text())
    del info["recipe"]["adopt"]
    (out / "student.json").write_text(json.dumps(info))
    for ask in (
        lambda: adopt(str(file), "hyper-sd", base=str(base), out=out),
        lambda: adopt(str(base), "ddim", steps=2, out=out),
    ):
        with pytest.raises(ValueError, match="a student that was trained is there; name another"):
            ask()
    assert json.loads((out / "student.json").read_text()) == info


def test_a_lora_for_other_widths_is_refused(base, tmp_path):
    file = tmp_path / "lora.safetensors"
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file(
        {f"{name}.lora_A.weight": torch.ones(4, 48), f"{name}.lora_B.weight": torch.ones(48, 4)},
        file,
    )
    with pytest.raises(
        ValueError, match=r"lora\.safetensors does not fit its base: .*size mismatch"
    ):
        adopt(str(file), "hyper-sd", base=str(base), out=tmp_path / "student")
    assert not (tmp_path / "student").exists()


XL = [
    ("lightning", 4, EulerDiscreteScheduler, TRAILING, {}),
    ("lightning", 1, EulerDiscreteScheduler, {**TRAILING, "prediction_type": "sample"}, {}),
    ("lightning-lora", 2, EulerDiscreteScheduler, TRAILING, {}),
    ("hyper-sd-1step", 1, LCMScheduler, {}, {"timesteps": [800]}),
    ("dmd2", 4, LCMScheduler, {}, {"timesteps": [999, 749, 499, 249]}),
    ("dmd2", 1, LCMScheduler, {}, {"timesteps": [399]}),
    ("dmd2-lora", 4, LCMScheduler, {}, {"timesteps": [999, 749, 499, 249]}),
    ("turbo", 4, EulerAncestralDiscreteScheduler, TRAILING, {}),
]


@pytest.fixture(scope="module")
def base_xl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "sdxl"
    make_xl().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("kind", "steps", "scheduler", "settings", "call"), XL)
def test_sdxl_students_draw_what_diffusers_draws(
    base_xl, tmp_path, kind, steps, scheduler, settings, call
):
    pipeline = DiffusionPipeline.from_pretrained(base_xl)
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **settings)
    if kind.endswith("lora"):
        file = peft_lora(tmp_path / "lora.safetensors", pipeline.unet)
        pipeline.load_lora_weights(tmp_path, weight_name=file.name)
    else:
        torch.manual_seed(4)
        pipeline.unet = UNet2DConditionModel.from_config(pipeline.unet.config)
        file = unet_file(tmp_path / "unet.safetensors", pipeline.unet)
    student = adopt(str(file), kind, base=str(base_xl), steps=steps, out=tmp_path / "student")
    expected = drawn(pipeline, None if call else steps, guidance_scale=0.0, **call)
    near(ours(student), expected)
    near(drawn(DiffusionPipeline.from_pretrained(student), steps), expected)
    assert load_student(student).info.family == "sdxl"


def test_the_card_names_what_the_scheduler_cannot_hold(base, tmp_path):
    file = kohya_lora(tmp_path / "lora.safetensors")
    for kind, call in [("tcd", "guidance_scale=1.0, eta=0.3)"), ("pcm", "guidance_scale=1.0)")]:
        out = adopt(str(file), kind, base=str(base), out=tmp_path / kind)
        assert call in (out / "README.md").read_text()


def test_a_base_whose_scheduler_has_other_sigmas_is_refused(base_xl, tmp_path):
    pipeline = DiffusionPipeline.from_pretrained(base_xl)
    file = peft_lora(tmp_path / "lora.safetensors", pipeline.unet)
    config = pipeline.scheduler.config
    pipeline.scheduler = EulerDiscreteScheduler.from_config(config, use_karras_sigmas=True)
    pipeline.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="EulerDiscreteScheduler does not do what lightning-lora"):
        adopt(str(file), "lightning-lora", base=str(tmp_path / "base"), out=tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_a_base_that_cannot_be_loaded_is_named(base, tmp_path):
    file = kohya_lora(tmp_path / "lora.safetensors")
    shutil.copytree(base, tmp_path / "base")
    (tmp_path / "base" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"cannot load .*base"):
        adopt(str(file), "tcd", base=str(tmp_path / "base"), out=tmp_path / "student")


@pytest.mark.parametrize(
    "stem", ["unet.nowhere.to_q", "lora_unet_nowhere_to_q", "text_encoder.nowhere.q_proj"]
)
def test_a_lora_for_other_layers_is_refused(base, tmp_path, stem):
    down, up = ("lora_down", "lora_up") if "lora_unet" in stem else ("lora_A", "lora_B")
    weights = {
        f"{stem}.{down}.weight": torch.ones(4, 16),
        f"{stem}.{up}.weight": torch.ones(16, 4),
    }
    file = tmp_path / "lora.safetensors"
    save_file(weights, file)
    with pytest.raises(ValueError, match="does not fit its base") as caught:
        adopt(str(file), "tcd", base=str(base), out=tmp_path / "student")
    assert len(str(caught.value).splitlines()) == 1


def test_weights_in_half_precision_become_float(base, tmp_path):
    unet = guided_unet().half()
    file = unet_file(tmp_path / "unet.safetensors", unet)
    core = make_pipeline().unet
    put_weights(core, file, 8.0)
    expected = fold_guidance(unet.float().state_dict(), 8.0)
    for name, tensor in core.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[name])


def test_a_lora_that_fits_in_part_is_refused(base, tmp_path):
    file = peft_lora(tmp_path / "lora.safetensors")
    stray = "unet.down_blocks.9.attentions.0.proj_in"
    weights = load_file(file)
    more = {f"{stray}.lora_A.weight": (4, 16), f"{stray}.lora_B.weight": (16, 4)}
    save_file({**weights, **{key: torch.ones(shape) for key, shape in more.items()}}, file)
    with pytest.raises(ValueError, match=r"does not fit its base: .*down_blocks\.9"):
        adopt(str(file), "tcd", base=str(base), out=tmp_path / "student")


def test_an_adopted_student_is_evaluated_and_reported(base, tmp_path):
    file = kohya_lora(tmp_path / "pytorch_lora_weights.safetensors")
    student = adopt(str(file), "lcm-lora", base=str(base), steps=2, out=tmp_path / "student")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("red\nblue\n")
    with bar("evaluate", 1) as meter:
        figures, _ = evaluate_subjects([str(student)], 4, prompts, tmp_path / "e.json", meter)
    assert figures["about"]["features"]["name"] == "pixels, 8x8"
    assert "text_image_score" not in figures["student"]
    clip = str(assets.ROOT / "emoji" / "clip")
    with bar("evaluate", 1) as meter:
        figures, _ = evaluate_subjects(
            [str(student)], 4, prompts, tmp_path / "eval.json", meter, clip
        )
    assert figures["student"]["calls"] == 2
    assert figures["teacher@2"]["text_image_score"] == pytest.approx(
        figures["student"]["text_image_score"]
        / figures["student"]["text_image_ratio"]
        * figures["teacher@2"]["text_image_ratio"]
    )
    page = write_report(student, tmp_path / "report.html")
    assert "A 2-step student of" in page.read_text()
