"""Teachers from one file in the original layout draw what the same teachers draw from a folder."""

import shutil

import pytest
import single_files
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from edgedistill import recipes
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.solvers import solve, time_grid
from edgedistill.planning.architectures import place
from edgedistill.teachers import load_teacher
from edgedistill.teachers.single_file import family_of
from edgedistill.tiny import sdxl
from edgedistill.tiny.stable_diffusion import pipeline as sd1_pipeline
from edgedistill.tiny.stable_diffusion import text_config


def sdxl_pipeline():
    """With encoders of unlike widths, by which diffusers tells them apart."""
    made = sdxl.pipeline()
    first = text_config(made.tokenizer, hidden_size=8, num_hidden_layers=2)
    second = text_config(made.tokenizer_2, hidden_size=24, num_hidden_layers=2, projection_dim=16)
    made.register_modules(
        text_encoder=CLIPTextModel(first), text_encoder_2=CLIPTextModelWithProjection(second)
    )
    return made


FAMILIES = {
    "stable_diffusion": (sd1_pipeline, single_files.sd1),
    "sdxl": (sdxl_pipeline, single_files.sdxl),
}


def made(family, root):
    """The folder of a teacher, its file, and the folder without weights."""
    build, layout = FAMILIES[family]
    torch.manual_seed(0)
    pipeline = build()
    folder, file, config = root / "whole", root / "model.safetensors", root / "config"
    pipeline.save_pretrained(folder)
    save_file(layout(pipeline), file)
    shutil.copytree(folder, config, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder, file, config


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def teacher(request, tmp_path_factory):
    return request.param, *made(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def sd1(tmp_path_factory):
    return made("stable_diffusion", tmp_path_factory.mktemp("sd1"))


def test_latents_and_pictures_are_those_of_the_folder(teacher):
    family, folder, file, config = teacher
    drawn = []
    for loaded in (load_teacher(family, folder), load_teacher(family, file, str(config))):
        times = time_grid(loaded.denoiser.schedule, 3)
        start = torch.randn(2, *loaded.sample_shape, generator=torch.Generator().manual_seed(5))
        x0 = solve(loaded.guided(3.0), start, times, loaded.encode(["red", "blue"]))
        drawn.append((x0, loaded.decode(x0)))
    (x0, pictures), (x0_file, pictures_file) = drawn
    torch.testing.assert_close(x0_file, x0)
    torch.testing.assert_close(pictures_file, pictures)


def test_half_precision_is_read_as_float32(sd1, tmp_path):
    _, file, config = sd1
    half = tmp_path / "half.safetensors"
    save_file({name: value.half() for name, value in load_file(file).items()}, half)
    whole, read = (load_teacher("stable_diffusion", f, str(config)) for f in (file, half))
    for name, value in read.net.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, whole.net.state_dict()[name], atol=1e-3, rtol=1e-3)


def test_networks_that_the_file_lacks_come_from_the_folder(sd1, tmp_path):
    folder, file, config = sd1
    bare = tmp_path / "unet.safetensors"
    weights = load_file(file)
    save_file({n: v for n, v in weights.items() if n.startswith("model.")}, bare)
    whole = load_teacher("stable_diffusion", folder)
    read = load_teacher("stable_diffusion", bare, str(folder))
    x0 = torch.ones(1, *whole.sample_shape)
    assert torch.equal(read.decode(x0), whole.decode(x0))
    for name, value in whole.encode(["red"]).items():
        assert torch.equal(read.encode(["red"])[name], value)
    with pytest.raises(ValueError, match=r"holds no vae, text_encoder, nor does .*teacher.config"):
        load_teacher("stable_diffusion", bare, str(config))


def test_a_student_of_a_file_is_a_folder(sd1, tmp_path):
    _, file, config = sd1
    loaded = load_teacher("stable_diffusion", file, str(config))
    loaded.pipeline.save_pretrained(tmp_path / "out")
    again = DiffusionPipeline.from_pretrained(tmp_path / "out")
    for name, value in again.unet.state_dict().items():
        assert torch.equal(value, loaded.pipeline.unet.state_dict()[name])


@pytest.mark.parametrize(
    ("names", "family"),
    [
        (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "flux"),
        (["double_blocks.0.img_attn.qkv.weight"], "flux"),
        (["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"], "sd3"),
        (["model.diffusion_model.input_blocks.0.0.bias"], "stable_diffusion"),
        (["unet.conv_in.weight"], None),
    ],
)
def test_families_are_known_by_names_of_weights(names, family):
    assert family_of(names) == family


def test_a_file_of_another_family_is_named(sd1):
    _, file, config = sd1
    with pytest.raises(ValueError, match=r"looks like stable_diffusion: choose teacher.family="):
        load_teacher("sdxl", file, str(config))
    with pytest.raises(ValueError, match="single files are of flux, sd3, sdxl, stable_diffusion"):
        load_teacher("pixart", file, str(config))


def test_what_is_missing_or_wrong_is_one_line(sd1, tmp_path, tiny_sd):
    _, file, config = sd1
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(file.read_bytes()[:1000])
    lacking = tmp_path / "lacking.safetensors"
    weights = load_file(file)
    del weights["model.diffusion_model.out.2.weight"]
    save_file(weights, lacking)
    pickled = tmp_path / "model.ckpt"
    pickled.write_bytes(b"\x80\x04.")
    where = str(config)
    for path, folder, message in (
        (file, None, r"could not be had from the Hub; name a local folder .* in teacher.config"),
        (file, "nobody/nothing", r"teacher.config=nobody/nothing: .* the Hub is switched off"),
        (file, str(tmp_path), r"no model_index.json; not a diffusers pipeline folder"),
        (torn, where, r"torn.safetensors is cut or damaged"),
        (lacking, where, r"lacks weights that the configurations of .*config ask for"),
        (pickled, where, r"model.ckpt: a pickle runs code when it is opened and is refused"),
        (tmp_path / "none.safetensors", where, r"no such file"),
        (tiny_sd, where, r"teacher.config=.* is for a single .safetensors file"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            load_teacher("stable_diffusion", path, folder)
        assert "\n" not in str(caught.value)


def test_plan_reads_the_configurations(sd1):
    _, file, config = sd1
    words = ["teacher.family=stable_diffusion", f"teacher.path={file}"]
    section = recipes.load("emoji-4step", [*words, f"teacher.config={config}"]).teacher
    assert place(section) == str(config)
    with pytest.raises(ValueError, match=r"name their folder or Hub id in teacher.config"):
        place(recipes.load("emoji-4step", words).teacher)


def marked(sd1, place, keys=(), dtype=None, **header):
    """The file with further keys of no numbers, or of so many, and a header."""
    _, file, _ = sd1
    weights = load_file(file)
    if dtype:
        name = "model.diffusion_model.out.2.weight"
        weights[name] = weights[name].to(dtype)
    counts = {key: torch.zeros(count) for key, count in dict(keys).items()}
    told = {f"modelspec.{key}": value for key, value in header.items()}
    save_file({**weights, **counts}, place, {"format": "pt", **told})
    return place


@pytest.mark.parametrize(
    ("keys", "header", "prediction", "ends"),
    [
        ({"v_pred": 0}, {}, Prediction.V, False),
        ({"v_pred": 1, "ztsnr": 1}, {}, Prediction.V, True),
        ({"ztsnr": 0}, {}, Prediction.EPS, True),
        ({}, {"prediction_type": "v"}, Prediction.V, False),
        ({}, {"prediction_type": "epsilon"}, Prediction.EPS, False),
        ({}, {"architecture": "stable-diffusion-v2-768-v"}, Prediction.V, False),
        ({}, {"architecture": "stable-diffusion-v1"}, Prediction.EPS, False),
    ],
)
def test_what_a_file_says_of_its_prediction_is_followed(
    eps, tmp_path, keys, header, prediction, ends
):
    file = marked(eps, tmp_path / "m.safetensors", keys, **header)
    teacher = load_teacher("stable_diffusion", file, str(eps[2]))
    assert teacher.denoiser.prediction is prediction
    scheduler = teacher.pipeline.scheduler
    assert bool(scheduler.config.rescale_betas_zero_snr) is ends
    assert (float(scheduler.alphas_cumprod[-1]) < 1e-6) is ends

    alpha = teacher.denoiser.schedule.alpha(torch.tensor([1.0]).double())
    assert (float(alpha) < 1e-3) is ends


@pytest.fixture(scope="module")
def eps(tmp_path_factory):
    root = tmp_path_factory.mktemp("eps")
    torch.manual_seed(0)
    pipeline = sd1_pipeline(prediction_type="epsilon")
    pipeline.save_pretrained(root / "whole")
    save_file(single_files.sd1(pipeline), root / "model.safetensors")
    ignored = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(root / "whole", root / "config", ignore=ignored)
    return root / "whole", root / "model.safetensors", root / "config"


@pytest.mark.parametrize(
    ("keys", "header", "message"),
    [
        ({"edm_vpred.sigma_max": 1, "edm_vpred.sigma_min": 1}, {}, "edm_vpred.*EDM's"),
        ({"edm_mean": 4, "edm_std": 4}, {}, "edm_mean.*EDM's"),
        ({"cosxl": 0}, {}, "'cosxl' of 0 numbers.*not known"),
        ({"v_pred": 0}, {"prediction_type": "epsilon"}, "holds v_pred, and modelspec.pred"),
        ({}, {"prediction_type": "sample"}, "prediction_type is 'sample'; epsilon or v"),
        ({}, {"architecture": "stable-diffusion-v1/lora"}, "says stable-diffusion-v1/lora"),
        ({}, {"architecture": "stable-diffusion-xl-v1-refiner"}, "text-to-image model by itself"),
        ({}, {"resolution": "large"}, "modelspec.resolution is 'large'; WIDTHxHEIGHT"),
        ({}, {"resolution": "8x16"}, "says 8x16 pixels"),
        ({"model.diffusion_model.out.2.scale_weight": 1}, {}, "quantized .*scale_weight"),
        ({"scaled_fp8": 2}, {}, "quantized .*scaled_fp8"),
        ({"model.x.absmax": 2}, {}, "quantized .*absmax"),
    ],
)
def test_what_a_file_says_and_is_not_known_is_refused(eps, tmp_path, keys, header, message):
    file = marked(eps, tmp_path / "m.safetensors", keys, **header)
    with pytest.raises(ValueError, match=message) as caught:
        load_teacher("stable_diffusion", file, str(eps[2]))
    assert "\n" not in str(caught.value)
    assert "m.safetensors" in str(caught.value)


def test_the_header_contradicts_its_configurations(sd1, tmp_path):
    file = marked(sd1, tmp_path / "m.safetensors", prediction_type="epsilon")
    with pytest.raises(ValueError, match=r"says epsilon, .*scheduler v_prediction"):
        load_teacher("stable_diffusion", file, str(sd1[2]))


def test_the_size_in_a_header_is_drawn(eps, tmp_path):
    file = marked(eps, tmp_path / "m.safetensors", resolution="16x16")
    teacher = load_teacher("stable_diffusion", file, str(eps[2]))
    assert teacher.sample_shape == (4, 8, 8)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_of_eight_bits_are_read_and_named(eps, tmp_path, dtype):
    file = marked(eps, tmp_path / "m.safetensors", dtype=dtype)
    teacher = load_teacher("stable_diffusion", file, str(eps[2]))
    found = teacher.pipeline.unet.conv_out.weight
    whole = load_file(eps[1])["model.diffusion_model.out.2.weight"]
    torch.testing.assert_close(found, whole.to(dtype).float())


def test_weights_of_whole_numbers_are_refused(eps, tmp_path):
    file = marked(eps, tmp_path / "m.safetensors", dtype=torch.int8)
    with pytest.raises(ValueError, match=r"out\.2\.weight is of type I8"):
        load_teacher("stable_diffusion", file, str(eps[2]))


def test_files_of_other_contents_are_named(eps, tmp_path):
    averaged = tmp_path / "ema.safetensors"
    weights = {f"model_ema.{n.replace('.', '')}": v for n, v in load_file(eps[1]).items()}
    save_file(weights, averaged)
    with pytest.raises(ValueError, match="averaged weights alone"):
        load_teacher("stable_diffusion", averaged, str(eps[2]))
    inpainting = tmp_path / "inpainting.safetensors"
    weights = load_file(eps[1])
    weights["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(16, 9, 3, 3)
    save_file(weights, inpainting)
    with pytest.raises(ValueError, match="reads 9 channels: an inpainting network"):
        load_teacher("stable_diffusion", inpainting, str(eps[2]))
    with pytest.raises(ValueError, match="GGUF holds quantized weights"):
        load_teacher("flux", tmp_path / "flux1-dev-Q4_0.gguf")
