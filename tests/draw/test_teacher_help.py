"""A teacher's help, on Gaussians and constants."""

import pytest
import torch
from oracles import Gaussian
from torch import nn

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import VE, Cosine, Discrete, Karras, Rectified, Trig
from edgedistill.diffusion.solvers import solve, time_grid
from edgedistill.draw.generate import generate
from edgedistill.draw.teacher_help import TeacherAssistance, sample_with, time_of
from edgedistill.recipes.loading import load
from edgedistill.runs.run_dir import open_run

DATA = Gaussian([0.7, -0.4], 0.5, Trig())
TIMES = time_grid(Trig(), 3)


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x, t):
        return torch.full_like(x, self.value)


def constant(value):
    return Denoiser(Constant(value), Trig(), Prediction.X0)


def noise(draws=1, count=16):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(count, 2, generator=g, dtype=torch.float64) for _ in range(draws)]


SCHEDULES = [Trig(), Cosine(), Rectified(shift=3), VE(), Karras()]


@pytest.mark.parametrize(
    "schedule", [*SCHEDULES, Discrete(torch.linspace(0.999, 0.01, 100))], ids=lambda s: s.name
)
def test_times_are_found_again(schedule):
    for t in (1.0, 0.5, 0.03):
        told = float(schedule.net_time(torch.tensor(t, dtype=torch.float64)))
        assert time_of(schedule, told).item() == pytest.approx(t, abs=1e-9)


@pytest.mark.parametrize("sampler", ["ddim", "renoise"])
def test_no_help_is_the_table(sampler):
    table = few_step_table(Trig(), Prediction.X0, TIMES, sampler)
    given = noise(table.draws)
    ours = sample_with(constant(0.3), table, DATA.denoiser(), TeacherAssistance(), given, {})
    torch.testing.assert_close(ours, table.sample(constant(0.3).net, given, {}))


def test_the_first_step_is_the_teachers():
    table = few_step_table(Trig(), Prediction.X0, TIMES, "ddim")
    given, teacher = noise(), DATA.denoiser()
    seen = []
    student = constant(0.3)
    student.net.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    sample_with(student, table, teacher, TeacherAssistance(first=200), given, {})
    t, s = TIMES[:1].expand(16), TIMES[1:2].expand(16)
    assert len(seen) == 2
    torch.testing.assert_close(seen[0], DATA.flow(given[0], t, s), atol=5e-3, rtol=0)


def test_all_steps_the_teachers_own_are_its_solver():
    table = few_step_table(Trig(), Prediction.X0, TIMES, "ddim")
    given, teacher = noise(), DATA.denoiser()
    ours = sample_with(teacher, table, teacher, TeacherAssistance(first=1), given, {})
    torch.testing.assert_close(ours, solve(teacher, given[0], TIMES, {}))


@pytest.mark.parametrize("sampler", ["ddim", "renoise"])
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_x0_moves_by_a_share_towards_the_teachers(sampler, share):
    """Constant answers: a refined student is one whose answer lies between."""
    table = few_step_table(Trig(), Prediction.X0, TIMES, sampler)
    given, seen = noise(table.draws), []
    student = constant(0.3)
    student.net.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    last = sample_with(student, table, constant(-0.9), TeacherAssistance(share=share), given, {})
    between, wanted = constant(0.3 - 1.2 * share), []
    between.net.register_forward_pre_hook(lambda _, args: wanted.append(args[0]))
    table.sample(between.net, given, {})
    for ours, theirs in zip(seen, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
    # Nothing is refined at the end.
    torch.testing.assert_close(last, torch.full_like(last, 0.3))


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"a share of 1\.5"):
        TeacherAssistance(share=1.5)
    with pytest.raises(ValueError, match="-1 steps of the teacher"):
        TeacherAssistance(first=-1)


def test_generate_asks_the_teacher(two_modes, quick_fit, tmp_path):
    import numpy as np

    words = [f"teacher.path={two_modes}", "train.batch_size=16", "train.steps=1"]
    run = open_run(load("mixture-lcm", words), str(tmp_path / "run"), False, tmp_path)
    place, drawn = str(run.train(lambda step, figures: None)), {}
    for name, given in (
        ("none", TeacherAssistance()),
        ("first", TeacherAssistance(first=8)),
        ("share", TeacherAssistance(share=0.5)),
    ):
        out = tmp_path / f"{name}.npy"
        generate(place, None, seed=1, count=64, out=out, given=given)
        drawn[name] = np.load(out)
    assert np.isfinite(drawn["first"]).all()
    assert np.abs(drawn["first"] - drawn["none"]).max() > 1e-3
    assert np.abs(drawn["share"] - drawn["none"]).max() > 1e-3
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="a bundle has no teacher"):
        generate(
            str(bundle),
            None,
            seed=1,
            count=1,
            out=tmp_path / "b.npy",
            given=TeacherAssistance(first=1),
        )
