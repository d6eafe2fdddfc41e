"""Best step times, against every other choice."""

from itertools import combinations

import pytest
import torch
from oracles import Gaussian

from edgedistill.diffusion.denoiser import Denoiser, Guided
from edgedistill.diffusion.distances import Distance
from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.solvers import solve, time_grid
from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.objectives.solvers.oss import OSS, best_times
from edgedistill.recipes.loading import load
from edgedistill.runs.run_dir import open_run
from edgedistill.students.folder import load_student

DATA = Gaussian([0.7, -0.4], 0.1, Trig())
GRID = time_grid(Trig(), 10)


def setup_of(student: Denoiser, steps: int, **other) -> Setup:
    given = {
        "teacher": DATA.denoiser(),
        "student": student,
        "spawn": lambda: student,
        "times": time_grid(Trig(), steps),
        "sampler": "ddim",
        "optim": Optim(),
        "tap": "",
        "example": (torch.zeros(2, 2), {}),
    }
    return Setup(**{**given, **other})


def batch(count: int = 256) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.zeros(count, 2, dtype=torch.float64), {}, generator, generator)


def error(times: torch.Tensor) -> float:
    """How far the end of DDIM at `times` is from its end at all of `GRID`."""
    noise = batch().noise()
    ends = [solve(DATA.denoiser(), noise, grid, {}) for grid in (times, GRID)]
    return (ends[0] - ends[1]).square().mean().item()


def test_two_steps_are_the_best_of_all():
    objective = OSS(OSS.Config(search_steps=10), setup_of(DATA.denoiser(), 2))
    objective.search(batch())
    choices = {place: error(GRID[[0, place, 10]]) for place in range(1, 10)}
    best = min(choices, key=choices.get)
    torch.testing.assert_close(objective.times, GRID[[0, best, 10]])
    assert choices[best] < 0.8 * choices[5]


def test_more_steps_are_among_the_best_and_beat_equal_ones():
    objective = OSS(OSS.Config(search_steps=10), setup_of(DATA.denoiser(), 4))
    objective.search(batch())
    ways = combinations(range(1, 10), 3)
    errors = sorted(error(GRID[[0, *way, 10]]) for way in ways)
    ours = error(objective.times)
    assert ours <= errors[len(errors) // 10]
    equal = error(time_grid(Trig(), 4))
    assert ours < equal
    rows = few_step_table(Trig(), objective.student.prediction, objective.times, "ddim")
    assert objective.table() == rows


def test_as_many_steps_as_times_are_all_of_them():
    noise = batch().noise()
    path = torch.stack([noise] + [torch.zeros_like(noise)] * 10, 1)
    found = best_times(DATA.denoiser(), path, GRID, 10, {}, Distance())
    assert found == list(range(11))
    assert best_times(DATA.denoiser(), path, GRID, 1, {}, Distance()) == [0, 10]


def test_a_run_trains_nothing_and_resumes_to_the_same_table(two_modes, quick_fit, tmp_path):
    words = [f"teacher.path={two_modes}", "train.batch_size=64", "objective.search_steps=11"]
    tables = []
    for resume in (False, True):
        run = open_run(load("mixture-oss", words), str(tmp_path / "run"), resume, tmp_path)
        before = [value.clone() for value in run.student.parameters()]
        if resume:
            run.restore()
        place = run.train(lambda step, figures: None)
        pairs = zip(before, run.student.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        tables.append(load_student(place).table)
    assert tables[0] == tables[1]
    elevenths = {round(row.t * 11, 6) for row in tables[0].rows}
    assert len(elevenths) == 4
    assert elevenths <= set(map(float, range(1, 12)))


def test_over_trained_timesteps_diffusers_walks_the_times_when_told(tiny_sd, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("red\nblue\n", encoding="utf-8")
    words = [f"teacher.path={tiny_sd}", f"data.prompts={prompts}", "train.batch_size=2"]
    words += ["teacher.steps=2", "objective.search_steps=9", "student.steps=3"]
    run = open_run(load("emoji-oss", words), str(tmp_path / "run"), False, tmp_path)
    # Times that no spacing has.
    run.objective.search = lambda batch: setattr(
        run.objective, "times", torch.tensor([1.0, 0.9, 0.35, 0.0], dtype=torch.float64)
    )
    place = run.train(lambda step, figures: None)
    timesteps = [round(row.t) for row in load_student(place).table.rows]
    assert f"timesteps={timesteps}" in (place / "README.md").read_text()


def test_a_network_with_guidance_in_it_follows_the_guided_teacher():
    student = DATA.denoiser()
    guided = Guided(student, {}, 3.0)
    table = few_step_table(Trig(), student.prediction, GRID, "ddim")
    made = OSS(OSS.Config(), setup_of(student, 4, teacher=guided, init=table))
    assert made.teacher is guided


def test_what_is_refused():
    student = DATA.denoiser()
    with pytest.raises(ValueError, match="sampler=renoise: the steps of oss draw no noise"):
        OSS(OSS.Config(), setup_of(student, 4, sampler="renoise"))
    with pytest.raises(ValueError, match=r"search_steps=3: fewer times than student\.steps=4"):
        OSS(OSS.Config(search_steps=3), setup_of(student, 4))
    guided = Guided(student, {}, 3.0)
    with pytest.raises(ValueError, match=r"teacher\.guidance=3: oss trains no network"):
        OSS(OSS.Config(), setup_of(student, 4, teacher=guided))
