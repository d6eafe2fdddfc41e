"""A student that learns to reuse deep states, on a real U-Net."""

from dataclasses import replace

import pytest
import torch
from evaluations import evaluated

from edgedistill.adoption import adopt
from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.solvers import time_grid
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.draw.generate import draw_samples
from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.objectives.compression.qat import QAT
from edgedistill.objectives.compression.step_cache import StepCache
from edgedistill.planning.costs import costs
from edgedistill.planning.memory import Launch
from edgedistill.recipes.loading import load
from edgedistill.reporting.page import write_report
from edgedistill.runs.run_dir import open_run
from edgedistill.students.folder import load_student
from edgedistill.teachers import TEACHERS, find_family
from edgedistill.teachers.families.unet2d import UNet2DNet
from edgedistill.tiny import make_tiny, unet2d

TIMES = time_grid(Trig(), 4)
TABLE = few_step_table(Trig(), Prediction.V, TIMES, "renoise")
REUSE = (1, 3)


def setup(reuse=REUSE, init=TABLE) -> Setup:
    torch.manual_seed(0)
    student = Denoiser(UNet2DNet(unet2d.pipeline().unet, 1.0), Trig(), Prediction.V)
    return Setup(
        teacher=student,
        student=student,
        spawn=lambda: student,
        times=TIMES,
        sampler="renoise",
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 3, 8, 8), {}),
        init=init,
        reuse=reuse,
    )


def method(**choices) -> StepCache:
    return StepCache(StepCache.Config(), setup(**choices))


def batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.zeros(4, 3, 8, 8), {}, generator, torch.Generator().manual_seed(seed))


@torch.no_grad()
def by_hand(objective: StepCache) -> list[torch.Tensor]:
    """The error of every row, by the student's own table up to that row."""
    drawn, rows = batch(), objective.table().rows
    noise = [drawn.noise() for _ in range(TABLE.draws)]
    errors = []
    for index, row in enumerate(rows):
        x = noise[0]
        if index:
            before = TorchStepTable(rows[:index], TABLE.init_scale)
            x = before.sample(objective.student.net, noise[: before.draws], {})
        # x0 = alpha x - sigma v is what a table gives that ends here.
        t = TIMES[index]
        alpha, sigma = Trig().alpha(t).item(), Trig().sigma(t).item()
        last = replace(row, a=alpha, b=-sigma, c=0.0)
        ending = TorchStepTable((*rows[:index], last), TABLE.init_scale)
        ours = ending.sample(objective.student.net, noise[: ending.draws], {})
        f = objective.frozen_net(row.scale * x, torch.full((4,), row.t))
        errors.append((ours - (alpha * x - sigma * f)).square().mean())
    return errors


def test_the_loss_is_the_error_of_x0_at_every_step_of_its_own_way():
    objective = method()
    with torch.no_grad():
        for parameter in objective.student.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    losses, errors = objective.loss("student", batch()), by_hand(objective)
    torch.testing.assert_close(losses.total, torch.stack(errors).mean())
    reused = torch.stack([errors[index] for index in REUSE]).mean().sqrt()
    torch.testing.assert_close(losses.logs["reused_error"], reused)
    assert min(errors) > 1e-4


def test_at_the_start_only_rows_that_reuse_err():
    errors = by_hand(method())
    assert [error.item() < 1e-10 for error in errors] == [True, False, True, False]


def test_the_deep_blocks_learn_through_the_state_and_the_frozen_student_does_not():
    objective = method()
    objective.loss("student", batch()).total.backward()
    unet = objective.student.net.unet
    # Full rows have no error yet, so this gradient came through the deep state.
    assert unet.mid_block.resnets[0].conv1.weight.grad.abs().max() > 1e-6
    assert unet.up_blocks[-1].resnets[0].conv1.weight.grad.abs().max() > 1e-6
    assert all(p.grad is None and not p.requires_grad for p in objective.frozen_net.parameters())


def test_training_lowers_the_error_of_the_steps_that_reuse():
    objective = method()
    optimizer = torch.optim.AdamW(objective.student.parameters(), lr=2e-3)
    before = objective.loss("student", batch(9)).logs["reused_error"]
    for step in range(12):
        optimizer.zero_grad()
        objective.loss("student", batch(step)).total.backward()
        optimizer.step()
    assert objective.loss("student", batch(9)).logs["reused_error"] < 0.9 * before


def test_what_it_cannot_train_is_said_in_one_line():
    with pytest.raises(ValueError, match=r"starts from a student: set student\.init=FOLDER"):
        method(init=None)
    with pytest.raises(ValueError, match=r"reuse=\[4\]: .*init has 4 steps; choose from 1 to 3$"):
        method(reuse=(4,))
    with pytest.raises(ValueError, match=r"reuse_layers=3: .* 2 layers; choose from 1 to 2, or"):
        StepCache(StepCache.Config(), replace(setup(), reuse_layers=3))
    for kind, config in ((StepCache, StepCache.Config()), (QAT, QAT.Config())):
        with pytest.raises(ValueError, match=r"starts from a student whose steps run all blocks"):
            kind(config, setup(init=TABLE.reusing([1])))


CACHED, INIT = "emoji-4step-cached", "student.init=x"


@pytest.mark.parametrize(
    ("recipe", "words", "said"),
    [
        (CACHED, ["student.reuse=[]"], r"student\.reuse=\[\]: .* steps 1 to 3, each once"),
        (CACHED, ["student.reuse=[0]"], r"reuse=\[0\]: .* step 0 has none before it"),
        (CACHED, ["student.reuse=[4]"], r"reuse=\[4\]: .* steps 1 to 3, each once"),
        (CACHED, ["student.reuse=[2,2]"], r"reuse=\[2, 2\]: .* steps 1 to 3, each once"),
        (CACHED, ["student.reuse=4"], r"reuse=\[4\]: with student\.steps=4, .* 1 to 3, each once"),
        (CACHED, ["student.reuse=3", "student.steps=2"], r"reuse=\[3\]: .* needs step 1;"),
        (CACHED, ["student.reuse=true"], r"student\.reuse=True: a list expected"),
        (CACHED, ["student.steps=1"], "no step before to reuse; choose student.steps=2 or more"),
        (CACHED, ["compress.preset=bk-sdm-small"], "make the student smaller in a run before"),
        (CACHED, ["compress.attention_stride=2"], "make the student smaller in a run before"),
        (
            CACHED,
            ["teacher.family=dit", "teacher.path=x"],
            "family dit have no deep blocks to reuse; those of stable_diffusion, sdxl and unet2d",
        ),
        (
            CACHED,
            ["teacher.family=flux", "teacher.path=x", "student.reuse=9"],
            "family flux have no deep blocks",
        ),
        (CACHED, ["student.reuse_layers=0"], "greater than 0"),
        (
            "emoji-4step",
            ["student.reuse_layers=1"],
            r"reuse_layers=1: method 'lcm' runs all blocks in every step; choose obj",
        ),
        (
            "emoji-4step",
            ["student.reuse=[3]"],
            r"method 'lcm' runs all blocks in every step; choose objective\.name=step-cache",
        ),
    ],
)
def test_wrong_recipes_are_refused_when_they_are_read(recipe, words, said):
    with pytest.raises(ValueError, match=said) as error:
        load(recipe, words)
    assert "\n" not in str(error.value)


def test_a_single_step_is_a_list_of_one():
    assert load(CACHED, ["student.reuse=2"]) == load(CACHED, ["student.reuse=[2]"])


def test_the_families_that_can_reuse_are_named():
    able = [name for name in TEACHERS if find_family(name).reuses]
    with pytest.raises(ValueError, match=r"those of (.*) have$") as error:
        load(CACHED, ["teacher.family=dit", "teacher.path=x"])
    assert all(name in str(error.value).rpartition("those of")[2] for name in able)
    assert len(able) == 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's student, whose last step reuses, and the student that it started from."""
    folder = tmp_path_factory.mktemp("cached")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_tiny("stable_diffusion", folder / "tiny")
        words = ["teacher.path=tiny", "train.steps=2", "train.batch_size=2", "data.samples=4"]
        first = open_run(load("emoji-4step", words), "first", False).train(lambda *_: None)
        more = [*words, f"student.init={first.absolute()}", "evaluate.samples=4"]
        made = open_run(load(CACHED, more), "cached", False).train(lambda *_: None)
    return (folder / made).absolute(), (folder / first).absolute()


def test_a_run_writes_a_student_that_reuses(trained):
    made, first = (load_student(folder) for folder in trained)
    assert made.info.schema_version == 4
    assert made.table == first.table.reusing([3])
    assert "runs all blocks in every step" in (made.path / "README.md").read_text()
    noise = made.table.draw((2, 4, 4, 4), torch.Generator().manual_seed(0))
    cond = made.teacher.encode(["red", "blue"])
    reused = made.sample(cond, noise)
    whole = first.table.sample(made.net, noise, cond)
    assert torch.isfinite(reused).all()
    assert not torch.allclose(reused, whole, atol=1e-5)


def test_who_drops_the_reuse_says_so(trained, monkeypatch, tmp_path, said, capsys):
    made, first = trained
    monkeypatch.chdir(made.parents[1])
    words = ["teacher.path=tiny", "train.steps=1", "train.batch_size=2"]
    line = (
        f"student.init={made}: its steps reuse deep blocks, and those of this run do not; only "
        "its weights are taken"
    )
    for name, start, count in (("emoji-lcm", made, 1), ("emoji-lcm", first, 0)):
        said.clear()
        run = open_run(load(name, [*words, f"student.init={start}"]), None, False, tmp_path)
        assert said.count(line) == count
        assert not run.table.reuses
    adopt(str(made), "ddim", steps=4, out=tmp_path / "adopted")
    told = capsys.readouterr().err
    assert f"{made}: its steps reuse deep blocks, and those of ddim do not; only its" in told
    assert not load_student(tmp_path / "adopted").table.reuses
    adopt(str(first), "ddim", steps=4, out=tmp_path / "plain")
    assert "its steps" not in capsys.readouterr().err


def test_it_draws_and_is_evaluated_and_reported(trained, monkeypatch, tmp_path):
    made = trained[0]
    monkeypatch.chdir(made.parents[1])
    assert draw_samples(str(made), "red", seed=0, count=2).shape == (2, 8, 8, 3)
    figures = evaluated(made, samples=4, features="pixels")
    assert figures["student"]["calls"] == 4
    assert write_report(made.parent, tmp_path / "page.html").is_file()


def test_a_plan_counts_the_outer_blocks_alone_where_they_run_alone(trained, monkeypatch):
    made, first = trained
    monkeypatch.chdir(made.parents[1])
    words = ["teacher.path=tiny", f"student.init={first}"]
    one, three = (
        costs(load(CACHED, [*words, f"student.reuse={reuse}"]), Launch()).flops
        for reuse in ([3], [1, 2, 3])
    )
    call = one["student_call"]
    outer = one["student_sample"] - one["decoder"] - 3 * call
    assert 0 < outer < 0.8 * call
    assert three["student_sample"] - three["decoder"] == call + 3 * outer
    words += ["student.reuse=[3]", "student.reuse_layers=1"]
    last = costs(load(CACHED, words), Launch()).flops
    assert 0 < last["student_sample"] - last["decoder"] - 3 * call < 0.7 * outer
