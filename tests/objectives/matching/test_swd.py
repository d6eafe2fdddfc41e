"""Steps that grow: the data at each size, and the student's own way through the sizes."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.solvers import time_grid
from edgedistill.objectives.added.on_samples import Beside
from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.objectives.matching.pdm import PDM
from edgedistill.objectives.matching.swd import SWD
from edgedistill.recipes.loading import load
from edgedistill.runs.run_dir import open_run
from edgedistill.students.folder import load_student
from edgedistill.teachers.families.stable_diffusion import StableDiffusion
from edgedistill.tiny import make_tiny


class Net(nn.Module):
    """A convolution of pictures of any size, which remembers what it saw."""

    def __init__(self, channels=3):
        super().__init__()
        torch.manual_seed(0)
        self.middle = nn.Conv2d(channels, 16, 3, padding=1)
        self.last = nn.Conv2d(16, channels, 3, padding=1)
        self.seen = []

    def forward(self, x, t):
        time = round(float(t.double().flatten()[0]), 3)
        self.seen.append((time, x.shape[-1], x.detach().clone()))
        return self.last(self.middle(x))


def denoiser(channels=3):
    return Denoiser(Net(channels), Trig(), Prediction.X0)


def setup(steps, **choices):
    given = {
        "teacher": denoiser(),
        "student": denoiser(),
        "spawn": denoiser,
        "times": time_grid(Trig(), steps),
        "sampler": "renoise",
        "optim": Optim(),
        "tap": "middle",
        "example": (torch.zeros(2, 3, 8, 8), {}),
        "train_steps": 10,
    }
    return Setup(**given | choices)


def swd(*sizes, small="latents", gan_weight=0.0, **config):
    made = SWD.Config(sizes=sizes, small=small, gan_weight=gan_weight, **config)
    return SWD(made, setup(len(sizes)))


def pictures(shared=0, seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randn(4, 3, 8, 8, generator=generator)
    return Batch(x0, {}, generator, torch.Generator().manual_seed(shared), **more)


@pytest.mark.parametrize("sampler", ["renoise", "ddim"])
@pytest.mark.parametrize("rollout", ["simulate", "data"])
@pytest.mark.parametrize("player", ["student", "fake_score"])
def test_with_every_size_1_it_is_pdm(player, rollout, sampler):
    config = {"rollout": rollout, "gan_weight": 0.1, "regression_weight": 0.5}
    given = setup(3, sampler=sampler)
    torch.manual_seed(1)
    plain = PDM(PDM.Config(**config), given)
    torch.manual_seed(1)
    ours = SWD(SWD.Config(sizes=(1, 1, 1), **config), replace(given, student=denoiser()))
    for shared in range(4):
        found, wanted = (o.loss(player, pictures(shared)) for o in (ours, plain))
        assert torch.equal(found.total, wanted.total)
        assert found.logs.keys() == wanted.logs.keys()
    assert ours.table() == replace(ours.table(), rows=ours.table().at_one_size().rows)


def test_each_step_is_trained_at_its_size_and_all_as_often():
    objective = swd(0.5, 0.5, 0.75, 1.0)
    sides = {1.0: 4, 0.75: 4, 0.5: 6, 0.25: 8}
    times = []
    for shared in range(200):
        objective.student.net.seen.clear()
        objective.loss("student", pictures(shared))
        (t, side, _), *_ = objective.student.net.seen
        assert side == sides[t]
        assert {seen for _, seen, _ in objective.student.net.seen} == {side}
        times.append(t)
    assert all(30 < times.count(t) < 70 for t in sides)


def test_scores_gan_and_patches_see_that_size_alone():
    objective = swd(0.5, 1.0, gan_weight=0.1, regression_weight=0.5, rollout="data")
    for player in ("student", "fake_score"):
        seen = set()
        for shared in range(8):
            nets = [objective.student.net, objective.teacher.net]
            nets.append(objective.fake_score.denoiser.net)
            for net in nets:
                net.seen.clear()
            objective.loss(player, pictures(shared))
            sides = {side for net in nets for _, side, _ in net.seen}
            assert len(sides) == 1
            seen |= sides
        assert seen == {4, 8}


def test_data_before_a_step_are_of_the_size_before_upscaled():
    objective = swd(0.5, 0.75, 1.0, rollout="data")
    given = pictures()
    at = objective.at(given, 1.0)
    small = F.interpolate(given.x0, (6, 6), mode="area")
    expected = F.interpolate(small, (8, 8), mode="bicubic", align_corners=False)
    torch.testing.assert_close(objective.rollout.clean(2, at), expected)
    at = objective.at(given, 0.75)
    torch.testing.assert_close(at.x0, small)
    small = F.interpolate(given.x0, (4, 4), mode="area")
    expected = F.interpolate(small, (6, 6), mode="bicubic", align_corners=False)
    torch.testing.assert_close(objective.rollout.clean(1, at), expected)
    still = swd(0.5, 0.5, 1.0, rollout="data")
    at = still.at(given, 0.5)
    assert torch.equal(still.rollout.clean(1, at), at.x0)


def test_backward_simulation_walks_the_growing_table():
    objective = swd(0.5, 0.75, 1.0, rollout="simulate")
    given = objective.at(pictures(), 1.0)
    found = objective.rollout.simulate(2, given)
    generator = torch.Generator().manual_seed(0)
    torch.randn(4, 3, 8, 8, generator=generator)
    noise = objective.table().draw((4, 3, 8, 8), generator)
    objective.student.net.seen.clear()
    with torch.no_grad():
        objective.table().sample(objective.student.net, noise, {})
    torch.testing.assert_close(found, objective.student.net.seen[2][2])


def test_roles_are_shown_at_the_full_size():
    for shared in range(4):
        found = swd(0.5, 0.5, 1.0).predictions(pictures(shared))
        assert {x.shape[-1] for x in found.values()} == {8}


def test_small_pictures_are_encoded(tiny_sd):
    teacher = StableDiffusion.load(str(tiny_sd))
    vae = teacher.autoencoder
    x0 = (torch.zeros(2, 4, 4, 4), {})
    config = SWD.Config(sizes=(0.5, 1), gan_weight=0)
    assert SWD.wants_originals(config) == ("small=pictures", "small=latents")
    student, fake = denoiser(4), denoiser(4)
    parts = {"autoencoder": vae, "scaling": teacher.scaling, "student": student}
    given = setup(2, example=x0, spawn=lambda: fake, **parts)
    objective = SWD(config, given)
    shown = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    full = replace(pictures(), x0=torch.zeros(3, 4, 4, 4), originals=shown)
    with torch.no_grad():
        small = F.avg_pool2d(shown, 2)
        expected = vae.encode(small).latent_dist.mode() * vae.config.scaling_factor
    torch.testing.assert_close(objective.at(full, 0.5).x0, expected)
    assert objective.at(full, 1.0).x0 is full.x0


def test_pictures_are_not_asked_for_without_need():
    assert SWD.wants_originals(SWD.Config(sizes=(0.5, 1), small="latents")) is None
    assert SWD.wants_originals(SWD.Config(sizes=(1, 1))) is None


@pytest.mark.parametrize(
    ("sizes", "choices", "line"),
    [
        ((0.5, 1), {"times": time_grid(Trig(), 3)}, r"sizes: 2 with student\.steps=3"),
        ((0.3, 1), {}, r"objective\.sizes: size 0\.3: 8 x 8 .* choose a multiple of 1/8"),
        ((0.5, 1), {"sampler": "ddim"}, r"student\.sampler=ddim: .* student\.sampler=renoise"),
        (
            (0.5, 1),
            {"example": (torch.zeros(2, 2), {})},
            r"objective\.sizes: size 0\.5: data of shape \(2,\) has no height and width",
        ),
    ],
)
def test_what_cannot_grow(sizes, choices, line):
    config = SWD.Config(sizes=sizes, small="latents", gan_weight=0)
    with pytest.raises(ValueError, match=line):
        SWD(config, setup(2, **choices))


def test_a_network_of_one_size_is_named():
    net = nn.Sequential()
    net.forward = lambda x, t: x.reshape(len(x), 3, 8, 8)
    student = Denoiser(net, Trig(), Prediction.X0)
    config = SWD.Config(sizes=(0.5, 1), small="latents", gan_weight=0)
    with pytest.raises(ValueError, match=r"size 0\.5: the teacher's network takes no x of 3 x 4"):
        SWD(config, setup(2, student=student))


def test_nothing_beside_it_walks_at_one_size():
    with pytest.raises(ValueError, match=r"^reward: the steps of method 'swd' grow"):
        Beside("reward", swd(0.5, 1.0), setup(2))
    assert Beside("reward", swd(1.0, 1.0), setup(2)).table() is not None


def test_without_an_autoencoder_latents_are_the_choice():
    with pytest.raises(ValueError, match=r"objective\.small=pictures: .* choose small=latents"):
        SWD(SWD.Config(sizes=(0.5, 1)), setup(2))


@pytest.mark.parametrize("sizes", [(), (0.5, 0.75), (1, 0.5), (0, 1)])
def test_sizes_that_are_none(sizes):
    with pytest.raises(ValidationError):
        SWD.Config(sizes=sizes)


def test_a_run_makes_a_student_that_grows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_tiny("stable_diffusion", tmp_path / "tiny")
    words = ["teacher.path=tiny", "train.steps=4", "train.batch_size=2"]
    run = open_run(load("emoji-swd", words), "grown", False)
    student = load_student(run.train(lambda step, figures: None))
    assert [row.size for row in student.table.rows] == [0.5, 0.5, 1, 1]
    noise = student.table.draw((2, 4, 4, 4), torch.Generator().manual_seed(0))
    assert student.sample(student.teacher.encode(["red", "blue"]), noise).shape == (2, 4, 4, 4)
    # Its steps would need another sampling than the method's own.
    words = [f"student.init={student.path}", "teacher.path=tiny"]
    with pytest.raises(ValueError, match=r"student\.init: method 'qat' trains no student whose"):
        open_run(load("emoji-4step-qat", words), "qat", False)


def test_without_the_pictures_latents_are_the_choice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_tiny("stable_diffusion", tmp_path / "tiny")
    (tmp_path / "tiny" / "originals.safetensors").unlink()
    words = ["teacher.path=tiny", "train.steps=1", "train.batch_size=2"]
    line = r"^objective\.small=pictures: .*with data\.pictures, or choose small=latents"
    with pytest.raises(ValueError, match=line):
        open_run(load("emoji-swd", words), "none", False)
    words.append("objective.small=latents")
    open_run(load("emoji-swd", words), "some", False)
