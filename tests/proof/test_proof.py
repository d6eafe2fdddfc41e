"""A teacher is compared with its own pipeline before anything is trained on it."""

import json
import shutil

import diffusers
import pytest
import torch

from edgedistill.diffusion.denoiser import Bound
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Discrete
from edgedistill.proof.drawing import TOLERANCE, differences, prove
from edgedistill.teachers import load_teacher
from edgedistill.tiny import TINY, make_tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("proof")
    return {family: make_tiny(family, place / family) for family in ("stable_diffusion", "unet2d")}


@pytest.mark.parametrize("family", sorted(TINY))
def test_every_family_is_drawn_as_its_pipeline_draws_it(family, tmp_path):
    found = differences(load_teacher(family, make_tiny(family, tmp_path / "teacher")))
    assert "sample" in found
    assert max(found.values()) < TOLERANCE / 10


WRONG = {
    "schedule": lambda d: setattr(d, "schedule", Discrete(d.schedule.alphas_cumprod**1.05)),
    "prediction": lambda d: setattr(d, "prediction", Prediction.X0),
    "bound": lambda d: setattr(d, "bound", Bound(0.1)),
    "scale": lambda d: d.net.register_forward_hook(lambda net, given, out: 1.01 * out),
}


@pytest.mark.parametrize("wrong", sorted(WRONG))
def test_whatever_is_drawn_otherwise_is_refused(folders, wrong, tmp_path, monkeypatch):
    teacher = load_teacher("stable_diffusion", folders["stable_diffusion"])
    WRONG[wrong](teacher.denoiser)
    monkeypatch.setattr("edgedistill.teachers.pipeline.check_grid", lambda *given: None)
    with pytest.raises(ValueError, match=r"not drawn as its own diffusers pipeline.*sample by"):
        prove(teacher, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_teacher_is_compared_once(folders, tmp_path, monkeypatch):
    first = prove(load_teacher("unet2d", folders["unet2d"]), tmp_path)
    assert "drawn as diffusers draws it" in first
    monkeypatch.setattr("edgedistill.proof.drawing.differences", None)  # not called again
    assert prove(load_teacher("unet2d", folders["unet2d"]), tmp_path) == first


def test_another_teacher_in_its_place_is_compared_again(folders, tmp_path):
    copy = shutil.copytree(folders["unet2d"], tmp_path / "copy")
    prove(load_teacher("unet2d", copy), tmp_path / "cache")
    file = copy / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "beta_end": 0.03}))
    prove(load_teacher("unet2d", copy), tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_closed_form_has_no_pipeline():
    assert prove(load_teacher("mixture", "ring")) == ""


@pytest.mark.parametrize("classes", [None, 10])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("betas", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("clip", [True, False])
def test_pixel_teachers_are_drawn_as_diffusers_draws_them(
    classes, prediction, betas, clip, tmp_path
):
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8),
        layers_per_block=1, norm_num_groups=4, num_class_embeds=classes,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    scheduler = diffusers.DDPMScheduler(
        beta_schedule=betas, prediction_type=prediction, clip_sample=clip
    )
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "teacher")
    teacher = load_teacher("unet2d", tmp_path / "teacher")
    assert max(differences(teacher).values()) < TOLERANCE
    assert teacher.grid(25).starts[0] == 961 / 1000
