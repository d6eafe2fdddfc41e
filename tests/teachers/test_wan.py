"""What is particular to Wan: its scheduler, its prompts, its videos."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UniPCMultistepScheduler, WanPipeline
from PIL import Image
from tiny import save

from edgedistill.diffusion.schedules import Rectified
from edgedistill.draw.bench import measure
from edgedistill.draw.generate import generate
from edgedistill.networks.adapters import Adapter, adapt
from edgedistill.students.folder import load_student
from edgedistill.teachers import load_teacher
from edgedistill.teachers.families.wan import SIZE, Wan, sheet
from edgedistill.tiny import make_tiny
from edgedistill.tiny.wan import pipeline
from edgedistill_export.bundle import export_student
from edgedistill_runtime import Pipeline

SHAPE = (4, 2, 4, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny("wan", tmp_path_factory.mktemp("wan") / "teacher")


def test_the_border_reads_the_released_schedulers_steps(folder):
    schedule = load_teacher("wan", folder).denoiser.schedule
    assert isinstance(schedule, Rectified)
    scheduler = UniPCMultistepScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(20)
    # Its steps go from 1 to a thousandth, and the noisiest stands a little below 1.
    times = torch.linspace(1, 0.001, 21)[:-1]
    torch.testing.assert_close(
        schedule.sigma(times).float(), scheduler.sigmas[:-1], atol=2e-6, rtol=1e-6
    )


def test_another_scheduler_is_refused():
    with pytest.raises(ValueError, match=r"DDIMScheduler is .* with one of flow matching"):
        Wan("tiny", "tiny", pipeline(scheduler=DDIMScheduler()))


def test_two_transformers_are_refused():
    made = pipeline()
    made.register_to_config(boundary_ratio=0.875)
    with pytest.raises(ValueError, match=r"tiny: Wan 2\.2"):
        Wan("tiny", "tiny", made)


def test_the_size_is_the_pipelines_unless_the_config_says_another(folder, tmp_path):
    assert load_teacher("wan", folder).sample_shape == SHAPE
    place = tmp_path / "copy"
    WanPipeline.from_pretrained(folder).save_pretrained(place)
    file = place / "transformer" / "config.json"
    config = json.loads(file.read_text())
    assert config.pop("sample_size") == [2, 4, 4]
    file.write_text(json.dumps(config))
    assert load_teacher("wan", place).sample_shape == (4, *SIZE)


def test_prompts_are_read_as_the_pipeline_reads_them(folder):
    teacher, theirs = load_teacher("wan", folder), WanPipeline.from_pretrained(folder)
    for prompt in ("red", "  a \n red\t  one ", ""):
        expected, _ = theirs.encode_prompt(prompt, max_sequence_length=8)
        torch.testing.assert_close(teacher.encode([prompt])["encoder_hidden_states"], expected)


def test_a_sheet_has_every_frame():
    video = torch.arange(6.0).reshape(1, 1, 6, 1, 1).expand(2, 3, 6, 2, 4)
    found = sheet(video)
    assert found.shape == (2, 3, 2 * 2, 3 * 4)
    assert found[1, 2, ::2, ::4].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert sheet(video[:, :, :5]).shape == (2, 3, 2, 5 * 4)


def test_the_sheet_is_the_pipelines_video(folder):
    teacher, theirs = load_teacher("wan", folder), WanPipeline.from_pretrained(folder)
    x0 = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
    vae = theirs.vae.config
    mean, deviation = (
        torch.tensor(values).reshape(1, 4, 1, 1, 1)
        for values in (vae.latents_mean, vae.latents_std)
    )
    with torch.no_grad():
        video = theirs.vae.decode(x0 * deviation + mean, return_dict=False)[0]
    assert video.shape == (2, 3, 5, 32, 32)
    expected = torch.cat(list(video.unbind(2)), -1)
    torch.testing.assert_close(teacher.decode(x0), expected)


def test_adapters_share_the_base_and_reach_its_feed_forward(folder):
    net = load_teacher("wan", folder).net
    role = adapt(net, Adapter(rank=2), seed=0)
    x, t = torch.ones(2, *SHAPE), torch.full((2,), 500.0)
    cond = torch.ones(2, 8, 16)
    torch.testing.assert_close(role(x, t, cond), net(x, t, cond))
    paths = {path.removeprefix("transformer.blocks.0.") for path, _ in role.adapted()}
    assert {"attn1.to_q", "attn2.to_out.0", "ffn.net.0.proj", "ffn.net.2"} <= paths


def test_the_teacher_is_timed_by_stage(folder):
    stages = measure(str(folder), 2, 5.0, 1)["stages"]
    assert stages.keys() == {"text_encoder", "denoiser", "decoder", "other"}


def test_a_small_decoder_of_pictures_is_refused(folder):
    with pytest.raises(ValueError, match="wan teachers have no decoder to replace"):
        load_teacher("wan", folder).use_decoder("x/y")


def test_the_bundle_draws_the_students_videos(folder, tmp_path):
    teacher = load_teacher("wan", folder)
    place = save(
        tmp_path / "student", teacher, teacher.net, teacher.denoiser.prediction, 2, sampler="ddim"
    )
    assert load_student(place).teacher.denoiser.schedule.to_json()["shift"] == 3
    bundle = export_student(place, "ort")
    parity = Pipeline.load(bundle).manifest.parity
    assert min(figures.worst for figures in parity.graphs.values()) >= 60
    generate(str(place), "red", seed=1, count=1, out=tmp_path / "video.png")
    generate(str(bundle), "red", seed=1, count=1, out=tmp_path / "video.npy")
    frames = np.load(tmp_path / "video.npy")
    assert frames.shape == (1, 32, 5 * 32, 3)
    shown = np.asarray(Image.open(tmp_path / "video.png"))
    assert np.abs(shown.astype(int) - frames[0]).max() <= 1
