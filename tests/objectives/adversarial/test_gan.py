"""Adversarial methods on a Gaussian, where the best discriminator and the exact maps are known."""

from dataclasses import replace

import diffusers
import pytest
import torch
from oracles import Affine, Gaussian
from torch import nn

from edgedistill import recipes
from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.distances import Ensemble
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Discrete, Trig
from edgedistill.diffusion.solvers import ddim_step, one_step_x0, time_grid
from edgedistill.diffusion.times import TimeSampling
from edgedistill.networks.planar import PlanarNet
from edgedistill.objectives import find
from edgedistill.objectives.adversarial.ddgan import DDGAN, posterior
from edgedistill.objectives.adversarial.flash import mode_masses, stage_shares
from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.runs.run_dir import open_run

SCHEDULE = Trig()
DATA = Gaussian([0.7, -0.4], 0.5, SCHEDULE)
OFF = Gaussian([-0.2, 0.1], 0.5, SCHEDULE)


def student_of(function, gain=1.0, shift=0.0):
    return Denoiser(Affine(function, gain, shift), SCHEDULE, Prediction.X0)


def method(name, student, *, steps=4, sampler="renoise", train_steps=400, **config):
    def spawn():
        torch.manual_seed(0)
        return Denoiser(PlanarNet(width=16), SCHEDULE, Prediction.V)

    setup = Setup(
        teacher=DATA.denoiser(),
        student=student,
        spawn=spawn,
        times=time_grid(SCHEDULE, steps),
        sampler=sampler,
        optim=Optim(),
        tap="blocks.1",
        example=(torch.zeros(2, 2), {}),
        train_steps=train_steps,
    )
    kind = find(name)
    torch.manual_seed(1)
    return kind(kind.Config(**config), setup)


def batch(count=4096, seed=0, step=0):
    generator, shared = (torch.Generator().manual_seed(seed) for _ in range(2))
    x0, eps = DATA.draw(count, generator), torch.randn(count, 2, generator=generator)
    times = time_grid(SCHEDULE, 4)
    path = torch.stack([DATA.flow(eps, times[:1], s.expand(1)) for s in times], 1)
    return Batch(x0, {}, generator, shared, step, path)


@pytest.mark.parametrize("name", ["add", "gdd", "ladd"])
def test_the_first_step_begins_with_noise_alone(name):
    """As sampling does; Stable Diffusion's schedule leaves 7 % of the data in its noisiest x_t."""
    schedule = Discrete(diffusers.DDIMScheduler(beta_schedule="scaled_linear").alphas_cumprod)
    student = Denoiser(Affine(lambda x, t: x), schedule, Prediction.X0)
    objective = method(name, student, **({"keep": ()} if name == "gdd" else {}))
    objective.times = time_grid(schedule, 4)
    given = batch(4000)
    given = replace(given, x0=given.x0 + 100)
    made = objective.round(given)
    first = made.t == objective.times[0]
    assert made.x_t[first].mean().abs() < 0.1
    assert made.x_t[~first].mean(1).min() > 10


class Ratio(nn.Module):
    """The best discriminator of the first place, where fake samples are noised from `fake`."""

    def __init__(self, fake):
        super().__init__()
        self.fake = fake

    def forward(self, shown, cond, group=None):
        x_t, t = shown[0]
        gap = DATA.log_density(x_t.double(), t) - self.fake.log_density(x_t.double(), t)
        return gap.float()[:, None]


def slope(losses, net):
    found = torch.autograd.grad(losses.total, [p for p in net.parameters() if p.requires_grad])
    return torch.cat([g.flatten() for g in found])


MARGINAL = {
    # Methods whose discriminator sees samples noised anew: how, so that the truth is known.
    "ladd": {"times": TimeSampling(low=0.3, high=0.31)},
    "ufogen": {"reconstruction": 0.0},
}


@pytest.mark.parametrize("name", MARGINAL)
def test_hinge_with_the_best_discriminator_descends_the_reverse_kl(name):
    """d KL / d mean = alpha^2 (mean_fake - mean_real) / variance of x_t."""
    student = student_of(OFF.consistency)
    objective = method(name, student, steps=1, loss="hinge", **MARGINAL[name])
    objective.discriminator = Ratio(OFF)
    given = batch(200_000)
    losses = objective.loss("student", given)
    found = torch.autograd.grad(losses.total, student.net.shift)[0]
    t = objective.round(batch(2)).fake[0][1][:1]
    alpha, deviation = OFF.deviation(t, torch.zeros(1, 2))
    expected = (alpha**2 / deviation**2 * (OFF.mean - DATA.mean)).sum()
    assert found.item() == pytest.approx(expected.item(), rel=0.02)


@pytest.mark.parametrize("name", ["ladd", "ufogen", "add", "gdd"])
@pytest.mark.parametrize("loss", ["hinge", "non-saturating", "lsgan", "relativistic"])
def test_no_gradient_where_fake_and_real_are_alike_and_the_discriminator_knows(name, loss):
    exact = student_of(DATA.consistency)
    others = {"add": {"distillation": 0.0}, "gdd": {"keep": []}, "ufogen": {"reconstruction": 0}}
    objective = method(name, exact, loss=loss, **others.get(name, {}))
    objective.discriminator = Ratio(DATA)
    # Where it cannot tell, its logit is the same everywhere.
    assert slope(objective.loss("student", batch(512)), exact.net).abs().max() < 1e-6
    objective.discriminator = Ratio(OFF)
    assert slope(objective.loss("student", batch(512)), exact.net).abs().max() > 1e-2


ALIKE = {
    "ladd": {},
    "add": {"r1": 0},
    "gdd": {"keep": [], "r1": 0},
    "ufogen": {},
    "flash": {"judged": (0.3,)},
    "self-corrected": {"r1": 0, "sampler": "ddim"},
}
"""Methods whose fakes are distributed as the real ones where the student is exact."""


def blind(objective):
    """Heads that cannot tell anything yet; the features under them are what they are."""
    for layer in objective.discriminator.heads.modules():
        if isinstance(layer, nn.Linear) and layer.out_features == 1:
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, 0.5)
    return objective.discriminator.heads


@pytest.mark.parametrize("name", ALIKE)
def test_a_discriminator_gains_nothing_by_telling_exact_samples_from_data(name):
    """Its gradient at a constant is the difference of mean features: for any features at all."""
    norms = []
    for data in (DATA, OFF):
        objective = method(name, student_of(data.consistency), loss="lsgan", **ALIKE[name])
        heads = blind(objective)
        norms.append(slope(objective.loss("discriminator", batch(50_000)), heads).norm())
    assert norms[0] < 0.1 * norms[1]


def test_add_pulls_a_sample_to_what_the_teacher_makes_of_it_noised():
    """E|x0 - D(noised x0)|^2 for a student of one value, over its own x0."""
    value = torch.tensor([0.2, 0.3])
    student = student_of(lambda x, t: torch.zeros_like(x) + value.to(x))
    times = TimeSampling(low=0.5, high=0.5001)
    objective = method("add", student, distillation=2.0, times=times, steps=1)
    given = batch(100_000)
    loss = objective.others(objective.round(given), given)["distillation"]
    t = torch.tensor([0.5], dtype=torch.float64)
    alpha, deviation = DATA.deviation(t, torch.zeros(1, 2))
    gain = alpha * DATA.scale**2 / deviation**2
    sigma = SCHEDULE.sigma(t).float()
    bias = (1 - gain * alpha) * (value - DATA.mean)
    expected = 2 * alpha * (bias.square().mean() + (gain * sigma).square())
    assert loss.item() == pytest.approx(expected.item(), rel=0.01)
    # The teacher's x0 is no function of the student's.
    found = torch.autograd.grad(loss, student.net.shift)[0]
    assert found.item() == pytest.approx((2 * alpha * bias.sum()).item(), rel=0.02)


def test_the_kept_layers_of_gdd_are_the_teachers():
    student = Denoiser(PlanarNet(width=16), SCHEDULE, Prediction.V)
    objective = method("gdd", student, steps=1, keep=["down"])
    trained = {name for name, p in student.net.named_parameters() if p.requires_grad}
    kept = {name for name, _ in student.net.named_parameters()} - trained
    assert {name.split(".")[2] for name in kept} == {"down"}
    assert len(kept) == 4
    slope(objective.loss("student", batch(64)), student)
    with pytest.raises(ValueError, match=r"no layer|unknown layer"):
        method("gdd", student, keep=["conv9"])


def test_ufogen_denoises_in_the_error_of_eps():
    objective = method("ufogen", student_of(DATA.posterior), steps=2)
    made = objective.round(given := batch(64))
    alpha, sigma = SCHEDULE.at(made.t, like=made.x0)
    eps, ours = ((made.x_t - alpha * x) / sigma for x in (given.x0, made.x0))
    found = objective.others(made, given)["reconstruction"]
    torch.testing.assert_close(found, (eps - ours).square().mean(), rtol=1e-4, atol=1e-6)
    # Of all functions of x_t the posterior mean has the least.
    losses = []
    for gain in (0.8, 1.0, 1.2):
        objective = method("ufogen", student_of(DATA.posterior, gain))
        given = batch(20_000)
        losses.append(objective.others(objective.round(given), given)["reconstruction"])
    assert losses[1] < min(losses[0], losses[2])


def test_a_posterior_step_has_the_marginal_of_the_next_time():
    t, s = torch.tensor([1.0, 0.7, 0.4]), torch.tensor([0.5, 0.2, 0.0])
    p, q, r = posterior(SCHEDULE, t, s)
    alpha, sigma = SCHEDULE.alpha(t.double()), SCHEDULE.sigma(t.double())
    torch.testing.assert_close(p * alpha + q, SCHEDULE.alpha(s.double()))
    torch.testing.assert_close((p * sigma).square() + r.square(), SCHEDULE.sigma(s.double()) ** 2)
    assert r[2] == 0


def test_ddgans_table_takes_the_steps_it_was_trained_with():
    student = student_of(DATA.consistency)
    objective = method("ddgan", student)
    table = objective.table()
    assert table.draws == 4  # the last step draws nothing
    noise = table.draw((5000, 2), torch.Generator().manual_seed(0))
    x, fresh = noise[0], [*noise[1:], torch.zeros_like(noise[0])]
    for t, s, eps in zip(objective.times[:-1], objective.times[1:], fresh, strict=True):
        p, q, r = (c.float() for c in posterior(SCHEDULE, t, s))
        x = p * x + q * student(x, t, {}) + r * eps
    torch.testing.assert_close(table.sample(student.net, noise, {}), x, rtol=1e-4, atol=1e-5)


def test_ddgans_real_step_is_a_draw_of_the_data_at_both_times():
    objective = method("ddgan", student_of(DATA.consistency), steps=2)
    (x_s, s), (x_t, t) = objective.round(batch(200_000)).real
    for x, at in ((x_s, s), (x_t, t)):
        chosen = x[at == at.min()]
        alpha, deviation = DATA.deviation(at.min().reshape(1), x[:1])
        assert chosen.mean(0) == pytest.approx((alpha * DATA.mean)[0], abs=0.02)
        assert chosen.std(0) == pytest.approx(deviation.expand(1, 2)[0], rel=0.02)


def test_a_landing_on_the_path_costs_nothing_and_cannot_be_told():
    class Landing(nn.Module):
        """The x0 with which DDIM's step lands on the path, at any of four steps."""

        def __init__(self, gain):
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(gain))

        def forward(self, x, t):
            t, wide = t.double(), x.double()
            s = t - 0.25
            (alpha_t, sigma_t), (alpha_s, sigma_s) = (SCHEDULE.at(u, like=wide) for u in (t, s))
            ratio = sigma_s / sigma_t
            x0 = (DATA.flow(wide, t, s) - ratio * wide) / (alpha_s - ratio * alpha_t)
            return self.gain * x0.to(x)

    found = []
    for gain in (1.0, 0.8):
        student = Denoiser(Landing(gain), SCHEDULE, Prediction.X0)
        objective = method(
            "diffusion2gan",
            student,
            sampler="ddim",
            distance=Ensemble(kind="l2"),
            loss="lsgan",
            r1=0,
        )
        landing = objective.others(objective.round(given := batch(512)), given)["landing"]
        heads = blind(objective)
        told = slope(objective.loss("discriminator", batch(512)), heads).norm()
        found.append((landing.item(), told.item()))
    assert found[0] == pytest.approx((0, 0), abs=1e-4)
    assert min(found[1]) > 1e-3


def halved(x, t):
    """The x0 of one step of a quarter that lands where two exact steps of an eighth do."""
    t = t.double()
    middle, s = t - 1 / 8, (t - 1 / 4).clamp(min=0)
    x_m = ddim_step(SCHEDULE, x, DATA.posterior(x, t), t, middle)
    x_s = ddim_step(SCHEDULE, x_m, DATA.posterior(x_m, middle), middle, s)
    return one_step_x0(SCHEDULE, x, x_s, t, s)


def lightning(student, **config):
    halving = {"stages": config.pop("stages", 2)}
    return method("lightning", student, sampler="ddim", halving=halving, **config)


def test_lightning_begins_as_progressive_distillation():
    student = student_of(DATA.posterior, 0.9)
    objective = lightning(student)
    ours = objective.loss("student", batch(512)).total
    assert torch.equal(ours, objective.halving.loss("student", batch(512)).total)
    judge, _ = objective.players()
    assert [judge.plays(step) for step in (0, 199, 200, 399)] == [False, False, True, True]
    with pytest.raises(ValueError, match=r"regressed=2: none of the 2 stages"):
        lightning(student, regressed=2)


def test_lightnings_student_plays_each_step_while_it_is_alone():
    objective = lightning(student_of(DATA.posterior), stages=4, regressed=2, turns=3)
    _, student = objective.players()
    assert all(student.plays(step) for step in range(200))
    assert sum(student.plays(step) for step in range(200, 400)) in (66, 67)


def test_lightnings_discriminator_sees_x_t_at_first():
    objective = lightning(student_of(halved), stages=4)
    assert [objective.lonely(step) for step in (100, 149, 150, 199, 200)] == [0, 0, 1, 1, 0]
    made = objective.round(batch(8, step=120))
    assert all(torch.equal(shown[1][0], made.x_t) for shown in (made.fake, made.real))
    assert bool((made.fake[0][1] < made.t).all())
    alone = objective.round(batch(8, step=180))
    assert all(shown[0] is shown[1] for shown in (alone.fake, alone.real))


def test_a_step_like_two_of_the_teachers_cannot_be_told():
    found = []
    for gain in (1.0, 0.8):
        objective = lightning(student_of(halved, gain), stages=1, regressed=0, loss="lsgan")
        heads = blind(objective)
        for step in (0, 399):
            given = batch(512, step=step)
            found.append(slope(objective.loss("discriminator", given), heads).norm().item())
    assert max(found[:2]) < 1e-5
    assert min(found[2:]) > 1e-3


def test_the_modes_of_flash_are_the_students_times():
    masses = mode_masses(32, 4, (0.4, 0.3, 0.2, 0.1), 0.5)
    assert masses.sum().item() == pytest.approx(1)
    peaks = masses[::8]
    torch.testing.assert_close(peaks / peaks.sum(), torch.tensor([4, 3, 2, 1]).double() / 10)
    assert (masses[4::8] < 1e-5).all()
    objective = method("flash", student_of(DATA.consistency), teacher_steps=32)
    torch.testing.assert_close(objective.grid[:-1][::8], objective.times[:-1])


def test_flashs_regression_and_matching_vanish_at_what_they_ask_for():
    exact = {"teacher_steps": 400, "adversarial": (0, 0, 0, 0), "spread": 0.01}
    for gain, low, high in ((1.0, 0.0, 1e-3), (0.8, 1e-2, 1.0)):
        objective = method("flash", student_of(DATA.consistency, gain), **exact)
        losses = objective.loss("student", batch(512))
        assert low <= losses.logs["distillation"] < high
    # As its own fake score the teacher itself is where it should be.
    objective = method("flash", student_of(DATA.posterior), **exact)
    losses = objective.loss("student", batch(512, step=399))
    assert set(losses.logs) == {"mean_drift", "std_ratio", "distillation", "matching"}
    assert losses.logs["matching"] < 1e-8


def test_flash_changes_its_weights_from_stage_to_stage():
    objective = method("flash", student_of(DATA.consistency), gan_weight=2.0)
    assert [objective.weight(step) for step in (0, 100, 200, 399)] == [0, 0.2, 0.4, 0.6]
    with pytest.raises(ValueError, match=r"no shares of student.steps=2"):
        method("flash", student_of(DATA.consistency), steps=2, shares=[[0, 0, 1, 1]] * 4)
    with pytest.raises(ValueError, match="shares name 4 stages"):
        method("flash", student_of(DATA.consistency), matching=(1.0,))


def test_flash_s_shares_are_the_paper_s_of_four_times_and_alike_for_others():
    paper = [(0, 0, 0.5, 0.5), (0.1, 0.3, 0.3, 0.3), (0.25,) * 4, (0.4, 0.2, 0.2, 0.2)]
    for ours, theirs in zip(stage_shares(4), paper, strict=True):
        assert ours == pytest.approx(theirs)
    for ours, alike in zip(stage_shares(2), (0, 0.2, 0.5, 0.8), strict=True):
        assert ours == pytest.approx((alike, 1 - alike))
    assert stage_shares(1) == ((1.0,),) * 4
    for steps in (3, 5, 8):
        assert [sum(stage) for stage in stage_shares(steps)] == pytest.approx([1] * 4)
    for steps in (1, 2):
        assert len(method("flash", student_of(DATA.consistency), steps=steps).masses) == 4


def test_one_x0_along_path_and_line_has_no_loss():
    exact = {"truncation": 0, "reach": 0.01, "sampler": "ddim"}
    found = {}
    for gain in (1.0, 0.7):
        objective = method("self-corrected", student_of(DATA.consistency, gain), **exact)
        given = batch(4096)
        found[gain] = objective.others(objective.round(given), given)
    for name in ("consistency", "backward"):
        assert found[1.0][name] < 1e-4
    assert found[1.0]["straight"] > 1e-3  # a Gaussian's own paths are curved
    still = student_of(lambda x, t: torch.zeros_like(x) + DATA.mean)
    objective = method("self-corrected", still, **exact)
    given = batch(64)
    assert objective.others(objective.round(given), given)["straight"] == 0


def test_near_the_data_the_target_is_the_data():
    objective = method(
        "self-corrected", student_of(DATA.consistency), truncation=0.99, sampler="ddim", reach=1e-6
    )
    given = batch(64)
    t = torch.full((64,), 0.5, dtype=torch.float64)
    x0 = student_of(DATA.consistency)
    noise = torch.Generator().manual_seed(5)
    terms = objective._consistency(t, replace(given, generator=noise))
    again = torch.Generator().manual_seed(5)
    torch.rand(2, 64, generator=again, dtype=torch.float64)
    x_t = x0.noised(given.x0, t, torch.randn(given.x0.shape, generator=again))
    apart = ((x0(x_t, t, {}) - given.x0).square() + 1e-6).sqrt().mean() - 1e-3
    assert terms["consistency"].item() == pytest.approx(apart.item(), rel=1e-3)
    assert terms["backward"] < 1e-5


@pytest.mark.parametrize("r1_step", [0.0, 1e-3])
@pytest.mark.parametrize("name", ["r1", "r2"])
def test_a_penalty_is_added_at_its_weight(name, r1_step):
    def losses(**weights):
        objective = method("ladd", student_of(OFF.consistency), r1_step=r1_step, **weights)
        return objective.loss("discriminator", batch(64))

    plain, held = losses(), losses(**{f"{name}_weight": 0.5})
    assert not {"r1", "r2"} & plain.logs.keys()
    assert held.logs.keys() - plain.logs.keys() == {name}
    assert held.logs[name] > 1e-4
    torch.testing.assert_close(held.total, plain.total + 0.5 * held.logs[name])
    both = losses(r1_weight=0.5, r2_weight=0.25)
    apart = 0.5 * both.logs["r1"] + 0.25 * both.logs["r2"]
    torch.testing.assert_close(both.total, plain.total + apart)


def test_heads_of_a_step_judge_that_step_alone():
    objective = method("ladd", student_of(OFF.consistency), heads_per_step=True)
    shared = method("ladd", student_of(OFF.consistency))
    heads = objective.discriminator.heads
    assert len(heads) == (len(objective.times) - 1) * len(shared.discriminator.heads)
    given = batch(64)
    made = objective.round(given)
    group = objective.group(made.t)
    torch.testing.assert_close(objective.times[group], made.t)
    before = objective.discriminator(made.fake, {}, group)
    with torch.no_grad():
        for parameter in heads[1].parameters():  # of the first tap, for the second step
            parameter.add_(1)
    after = objective.discriminator(made.fake, {}, group)
    moved = (after != before).any(1)
    assert torch.equal(moved, group == 1)
    assert 0 < moved.sum() < 64


PICTURES = {
    "add": "renoise",
    "gdd": "renoise",
    "diffusion2gan": "ddim",
    "lightning": "ddim",
    "pcm-gan": "ddim",
}


@pytest.mark.parametrize("name", PICTURES)
def test_two_steps_on_pictures_move_the_student_and_leave_the_teacher(name, tmp_path):
    extra = ", halving: {stages: 1}, regressed: 0" if name == "lightning" else ""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"base: emoji-lcm\nobjective: {{name: {name}{extra}}}\n", encoding="utf-8")
    short = ["teacher.tiny=true", "teacher.steps=4", "data.samples=2", "train.steps=2"]
    words = [*short, f"student.sampler={PICTURES[name]}", "train.batch_size=2"]
    run = open_run(recipes.load(str(recipe), words), str(tmp_path / "run"), False)

    def weights(net):
        return {key: value.clone() for key, value in net.state_dict().items()}

    teacher, student = weights(run.teacher.net), weights(run.student.net)
    run.train(lambda step, figures: None)
    assert all(torch.equal(teacher[k], v) for k, v in run.teacher.net.state_dict().items())
    still = {k for k, v in run.student.net.state_dict().items() if torch.equal(student[k], v)}
    kept = (
        {k for k in student if k.split(".")[-2] in ("conv1", "conv2")} if name == "gdd" else set()
    )
    assert still == kept


def test_ddgan_penalises_as_much_as_the_paper_which_does_so_every_15th_time():
    assert 15 * DDGAN.Config().r1_weight == pytest.approx(0.02)
