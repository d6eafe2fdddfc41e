"""Flow maps of a Gaussian, which are a closed form: the same quantile at every time."""

from dataclasses import replace

import diffusers
import pytest
import torch
from oracles import Gaussian
from torch import nn

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Cosine, Discrete, Linear, Trig
from edgedistill.diffusion.solvers import ddim_step, time_grid
from edgedistill.networks.adapters import Adapter, adapt
from edgedistill.networks.planar import PlanarNet
from edgedistill.networks.two_times import TwoTimes, steps_of
from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.objectives.trajectory.alpha_flow import AlphaFlow
from edgedistill.objectives.trajectory.flow_map import (
    RULES,
    FlowMap,
    MeanFlow,
    Path,
    over,
    tau_of,
    time_at,
)
from edgedistill.objectives.trajectory.imf import IMF
from edgedistill.objectives.trajectory.shortcut import Shortcut
from edgedistill.objectives.trajectory.traflow import TraFlow, trajectory
from edgedistill.recipes.loading import load
from edgedistill.runs.run_dir import open_run
from edgedistill.students.folder import load_student

DATA = Gaussian([0.7, -0.4], 0.5, Trig())


class Exact(nn.Module):
    """gain * the x0 with which DDIM's step lands where the flow does, + shift."""

    def __init__(self, data, gain=1.0, shift=0.0):
        super().__init__()
        self.data = data
        self.gain, self.shift = nn.Parameter(torch.tensor(gain)), nn.Parameter(torch.tensor(shift))

    def forward(self, x, t, s=None):
        data, t = self.data, t.double()
        s = s.double()
        mean = data.mean.to(x)
        alpha_t, deviation_t = data.deviation(t, x)
        alpha_s, deviation_s = data.deviation(s, x)
        landed = alpha_s * mean + deviation_s / deviation_t * (x - alpha_t * mean)
        ratio = over(data.schedule.sigma(s) / data.schedule.sigma(t), x)
        keep = alpha_s - ratio * alpha_t
        small = (over(t - s, x) < 1e-9).expand_as(x)
        x0 = torch.where(small, data.posterior(x, t), (landed - ratio * x) / keep.clamp(min=1e-12))
        return self.gain * x0 + self.shift


def method(data=DATA, gain=1.0, shift=0.0, kind=FlowMap, train_steps=1, **config):
    student = Denoiser(PlanarNet(width=16), data.schedule, Prediction.X0)
    setup = Setup(
        teacher=data.denoiser(),
        student=student,
        spawn=lambda: student,
        times=time_grid(data.schedule, 4),
        sampler="ddim",
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 2), {}),
        time_layer="embed_time.2",
        train_steps=train_steps,
    )
    made = kind(kind.Config(**config), setup)
    student.net = Exact(data, gain, shift)
    return made


def batch(count=256, seed=0, data=DATA, step=0):
    generator = torch.Generator().manual_seed(seed)
    x0 = data.draw(count, generator).double()
    return Batch(x0, {}, generator, torch.Generator().manual_seed(seed), step=step)


def loss_and_gradient(objective, data=DATA, step=0):
    losses = objective.loss("student", batch(data=data, step=step))
    gradient = torch.autograd.grad(losses.total, list(objective.student.parameters()))
    return losses.total.item(), torch.stack(gradient).norm().item()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("schedule", [Trig(), Cosine(), Linear()])
def test_the_exact_flow_map_has_no_loss_and_no_gradient(rule, schedule):
    data = Gaussian([0.7, -0.4], 0.5, schedule)
    inside = {"low": 0.02, "high": 0.98}
    loss, gradient = loss_and_gradient(method(data, rule=rule, times=inside), data)
    assert loss < 1e-9
    assert gradient < 1e-4
    off, off_gradient = loss_and_gradient(method(data, 0.8, 0.1, rule=rule, times=inside), data)
    assert off > 1e-3
    assert off_gradient > 1e-2


@pytest.mark.parametrize("kind", [FlowMap, Shortcut])
def test_no_leg_begins_where_the_schedule_has_no_time(kind):
    schedule = Discrete(diffusers.DDIMScheduler(beta_schedule="scaled_linear").alphas_cumprod)
    objective = method(Gaussian([0.7, -0.4], 0.5, schedule), kind=kind, instant=0.5)
    assert objective.limit < 0.98
    tau, end = objective.drawn(batch(4096))
    told = schedule.net_time(time_at(schedule, tau))
    assert told.max().item() == pytest.approx(999, abs=0.5)
    assert (end <= tau).all()
    assert end.min().item() >= 0


def test_times_by_noise_are_those_of_the_straight_flow():
    times = {"kind": "log-normal", "std": 0.01}
    objective = method(Gaussian([0.7, -0.4], 0.5, Linear()), times=times)
    assert objective.taus(batch()).mean().item() == pytest.approx(0.5, abs=1e-2)  # sigma = alpha


def test_legs_of_a_shortcut_are_halves_of_halves_or_the_students_own():
    objective = method(Gaussian([0.7, -0.4], 0.5, Linear()), kind=Shortcut, instant=0.5, levels=3)
    tau, end = objective.drawn(batch(8192))
    assert (tau[:4096].mean() / objective.limit).item() == pytest.approx(0.5, abs=0.01)
    lengths = (tau - end)[4096:] / objective.limit
    stops = tau_of(Linear(), objective.setup.times) / objective.limit
    own = set((stops[:-1] - stops[1:]).tolist())
    shares = {
        length: (lengths - length).abs().lt(1e-9).double().mean() for length in (1, 0.5, 0.25)
    }
    for share in shares.values():
        assert share.item() == pytest.approx(1 / 4, abs=0.03)
    rest = [x for x in lengths.tolist() if min(abs(x - length) for length in shares) > 1e-9]
    assert max(min(abs(x - length) for length in own) for x in rest) < 1e-9


def test_half_steps_of_a_shortcut_are_its_averages():
    objective = method(kind=Shortcut, gain=0.5, ema=0.9)
    objective.target.net = Exact(DATA)
    legs = objective.legs(batch())
    whole = legs.theirs(legs.y, legs.tau, legs.end)
    moved = legs.length > 0.1
    found = RULES["progressive"](legs)
    assert moved.sum() > 20
    assert ((found - whole).abs() * moved).max() < 1e-4
    objective.updated("student")
    assert objective.target.net.gain.item() == pytest.approx(0.95)


@pytest.mark.parametrize("rule", ["eulerian", "lagrangian"])
def test_a_difference_comes_to_the_forward_derivative(rule):
    inside = {"low": 0.05, "high": 0.95}
    found = [
        RULES[rule](method(gain=0.8, rule=rule, times=inside, derivative=kind).legs(batch()))
        for kind in ("jvp", "difference")
    ]
    assert (found[0] - found[1]).abs().max() < 2e-3 * found[0].abs().max()


def test_velocities_of_data_have_the_teachers_mean_and_so_the_same_gradient():
    """With s = t everywhere both regress to v; the data's is noisier, not biased."""
    gradients = []
    for velocity in ("teacher", "data"):
        objective = method(gain=0.7, instant=0.999, velocity=velocity, times={"low": 0.2})
        losses = objective.loss("student", batch(200_000))
        gradients.append(
            torch.stack(torch.autograd.grad(losses.total, list(objective.student.parameters())))
        )
    assert torch.allclose(*gradients, rtol=0.05, atol=0.01)


def test_the_straight_flow_is_the_teachers():
    """Euler's step in (y, tau) is DDIM's in (x, t)."""
    t, s = torch.tensor([0.7, 0.4]).double(), torch.tensor([0.5, 0.1]).double()
    x_t = torch.randn(2, 2, generator=torch.Generator().manual_seed(0)).double()
    teacher, schedule = DATA.denoiser(), DATA.schedule
    sizes = [over(schedule.alpha(u) + schedule.sigma(u), x_t) for u in (t, s)]
    y, tau, end = x_t / sizes[0], tau_of(schedule, t), tau_of(schedule, s)
    landed = y - over(tau - end, y) * Path(teacher, {})(y, tau)
    want = ddim_step(schedule, x_t, teacher(x_t, t, {}), t, s)
    torch.testing.assert_close(landed * sizes[1], want)


def test_what_is_folded_does_at_each_step_what_was_told():
    torch.manual_seed(0)
    student = Denoiser(PlanarNet(width=64), Trig(), Prediction.V)
    times = time_grid(Trig(), 4)
    net = TwoTimes(student.net, "embed_time.2", steps_of(student, times))
    before = PlanarNet(width=64)
    before.load_state_dict(
        {
            k.replace(".linear.", "."): v
            for k, v in net.net.state_dict().items()
            if ".embed." not in k and "rates" not in k
        },
        strict=False,
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    folded = net.folded(torch.zeros(1, 2), {})
    assert [n for n, _ in folded.named_parameters()] == [n for n, _ in before.named_parameters()]
    x = torch.randn(64, 2)
    for time, s in net.steps:
        t = time.expand(64)
        told = net(x, t, s=s.expand(64))
        assert (net(x, t) - told).abs().max() == 0
        torch.testing.assert_close(folded(x, t), told, rtol=1e-4, atol=1e-5)
        other = net(x, t, s=(s + 0.2).expand(64))
        assert (other - told).abs().max() > 1e-3


def test_it_starts_as_the_network_inside_and_a_wrong_layer_is_named():
    inside = PlanarNet(width=16)
    nn.init.normal_(inside.head.weight)
    x, t = torch.randn(5, 2), torch.rand(5)
    want = inside(x, t)
    torch.testing.assert_close(
        TwoTimes(inside, "embed_time.2", torch.zeros(1, 2))(x, t, s=t), want
    )
    with pytest.raises(ValueError, match=r"no linear layer 'embed_tim'.*nearest: embed_time"):
        TwoTimes(PlanarNet(width=16), "embed_tim", torch.zeros(1, 2))
    shared = adapt(PlanarNet(width=16), Adapter(rank=2, layers=("up", "down")), 0)
    with pytest.raises(ValueError, match="a LoRA has no place"):
        TwoTimes(shared, "embed_time.2", torch.zeros(1, 2))
    with pytest.raises(ValueError, match="no one layer for the time"):
        TwoTimes(PlanarNet(width=16), "", torch.zeros(1, 2))


def test_a_student_that_adds_noise_anew_leads_to_the_end():
    student = Denoiser(PlanarNet(width=16), Trig(), Prediction.V)
    assert steps_of(student, time_grid(Trig(), 2)).tolist() == [[1.0, 0.5], [0.5, 0.0]]
    assert steps_of(student, time_grid(Trig(), 2), to_end=True).tolist() == [
        [1.0, 0.0],
        [0.5, 0.0],
    ]


def test_the_exact_map_walks_its_table():
    """The table of a flow map's student lands on the same quantile of the data."""
    objective = method()
    table = few_step_table(Trig(), Prediction.X0, time_grid(Trig(), 4), "ddim")
    noise = torch.randn(1000, 2, generator=torch.Generator().manual_seed(1))
    ends = {
        round(t, 6): s for t, s in zip([1, 0.75, 0.5, 0.25], [0.75, 0.5, 0.25, 0.0], strict=True)
    }
    net = lambda x, t: objective.student.net(x, t, torch.full_like(t, ends[round(t[0].item(), 6)]))  # noqa: E731
    found = table.sample(net, [noise], {})
    want = DATA.consistency(noise, torch.ones(1000))
    torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-3)


# --- alpha-Flow and iMF

INSIDE = {"low": 0.02, "high": 0.98}


def alpha_flow(gain=1.0, shift=0.0, **config):
    """Alpha-Flow of 1000 steps, with the teacher's velocities and no weight of errors."""
    config = {"velocity": "teacher", "power": 0.0, "times": INSIDE, **config}
    return method(DATA, gain, shift, AlphaFlow, 1000, **config)


def step_of(objective, alpha):
    """The step at which the sigmoid is nearest to alpha."""
    return min(range(1001), key=lambda step: abs(objective.alpha(step) - alpha))


def test_alpha_falls_from_1_to_0_by_a_sigmoid_of_the_training():
    objective = alpha_flow()
    assert [objective.alpha(step) for step in (0, 200, 800, 1000)] == [1, 1, 0, 0]
    assert objective.alpha(500) == 0.5
    assert objective.alpha(600) == pytest.approx(1 / (1 + 2.718281828**2.5))
    found = [objective.alpha(step) for step in range(1001)]
    assert found == sorted(found, reverse=True)
    assert min(alpha for alpha in found if alpha) >= 0.005
    later = alpha_flow(start_share=0.5, end_share=0.6)
    assert [later.alpha(step) for step in (499, 550, 601)] == [1, pytest.approx(0.5), 0]
    with pytest.raises(ValueError, match=r"start_share=0\.6 must be below end_share=0\.5"):
        alpha_flow(start_share=0.6, end_share=0.5)


def test_alpha_1_is_flow_matching_and_a_half_is_the_shortcut_with_the_flows_first_half():
    objective = alpha_flow(gain=0.7, instant=0.25)
    legs = objective.legs(batch())
    whole = objective.wanted(legs, batch(step=0))
    assert torch.equal(whole, legs.v)
    middle = (legs.tau + legs.end) / 2
    half_way = legs.y - legs.length / 2 * legs.v
    want = (legs.v + legs.theirs(half_way, middle, legs.end)) / 2
    torch.testing.assert_close(objective.wanted(legs, batch(step=500)), want)


@pytest.mark.parametrize("gain", [1.0, 0.8])
def test_alpha_flows_gradient_goes_to_meanflows(gain):
    config = {"velocity": "teacher", "times": INSIDE, "rule": "eulerian", "instant": 0.5}
    limit = loss_gradient(method(gain=gain, **config), 0)
    objective = alpha_flow(gain, temperature=8.0, eta=0.0)
    gaps = []
    for alpha in (0.2, 0.05):
        found = loss_gradient(objective, step_of(objective, alpha))
        gaps.append((found - limit).norm().item())
    assert gaps[1] < 0.35 * gaps[0]
    assert gaps[1] < 0.1


def loss_gradient(objective, step):
    losses = objective.loss("student", batch(step=step))
    return torch.stack(torch.autograd.grad(losses.total, list(objective.student.parameters())))


def test_the_exact_flow_map_has_no_loss_at_the_end_of_alpha_flow_and_less_and_less_before():
    objective = alpha_flow()
    errors = [
        objective.loss("student", batch(step=step_of(objective, alpha))).total.item()
        for alpha in (1, 0.4, 0.1, 0)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.01 * errors[0]
    assert errors[3] < 1e-9
    loss, gradient = loss_and_gradient(alpha_flow(0.8, 0.1), step=1000)
    assert loss > 1e-3
    assert gradient > 1e-2


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_weights_of_alpha_flow(power):
    """1 / alpha, or the paper's alpha / (e + c); 1 or 1 / (e + c) of instants and at the end."""
    objective = alpha_flow(gain=0.7, power=power, constant=0.01)
    legs, error = objective.legs(batch()), torch.linspace(0, 1, 256)
    plain = (error + 0.01) ** -power
    for step in (0, 550, 1000):
        alpha = objective.alpha(step) or 1
        long = plain * (alpha if power else 1 / alpha)
        want = torch.where(legs.tau > legs.end, long, plain)
        torch.testing.assert_close(objective.weight(error, legs, batch(step=step)), want)


@pytest.mark.parametrize("schedule", [Trig(), Cosine(), Linear()])
def test_the_exact_flow_map_has_no_loss_and_no_gradient_in_imf(schedule):
    data = Gaussian([0.7, -0.4], 0.5, schedule)
    config = {"velocity": "teacher", "times": INSIDE, "power": 0.0}
    loss, gradient = loss_and_gradient(method(data, kind=IMF, **config), data)
    assert loss < 1e-9
    assert gradient < 1e-4
    off, off_gradient = loss_and_gradient(method(data, 0.8, 0.1, IMF, **config), data)
    assert off > 1e-3
    assert off_gradient > 1e-2


def test_imfs_derivative_does_not_depend_on_the_draw_of_noise_where_meanflows_does():
    for kind, depends in ((IMF, False), (MeanFlow, True)):
        objective = method(gain=0.8, kind=kind, times=INSIDE)
        legs = objective.legs(batch())
        other = replace(legs, v=legs.v + torch.randn_like(legs.v))
        gaps = [objective.wanted(found, batch()) - found.v for found in (legs, other)]
        assert ((gaps[0] - gaps[1]).abs().max() > 1e-2).item() == depends


def test_imf_is_meanflow_where_the_students_own_velocity_is_the_teachers():
    """Of the exact map u(y, t, t) is v, whatever it is elsewhere."""
    config = {"velocity": "teacher", "times": INSIDE}
    ours, theirs = (method(kind=kind, **config) for kind in (IMF, MeanFlow))
    legs = ours.legs(batch())
    torch.testing.assert_close(
        ours.wanted(legs, batch()), theirs.wanted(legs, batch()), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["alpha-flow", "imf"])
def test_a_short_run_of_each(name, two_modes, quick_fit, tmp_path):
    words = [f"teacher.path={two_modes}", "train.batch_size=16", "train.steps=3"]
    run = open_run(load(f"mixture-{name}", words), str(tmp_path / "run"), False, tmp_path)
    assert len(load_student(run.train(lambda step, figures: None)).table.rows) == 4


# --- TraFlow


TERMS = ("output", "velocity", "consistency")


def traflow(gain=1.0, **config):
    student = Denoiser(PlanarNet(width=16), DATA.schedule, Prediction.X0)
    setup = Setup(
        teacher=DATA.denoiser(),
        student=student,
        spawn=lambda: student,
        times=time_grid(DATA.schedule, 4),
        sampler="ddim",
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 2), {}),
        time_layer="embed_time.2",
    )
    made = TraFlow(TraFlow.Config(**config), setup)
    student.net = Exact(DATA, gain)
    return made


def test_the_solver_follows_the_flow():
    tau = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    y = torch.randn(9, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    path = trajectory(Path(DATA.denoiser(), {}), y, tau, 64)
    t = time_at(DATA.schedule, tau)
    grown = DATA.schedule.alpha(t) + DATA.schedule.sigma(t)
    for place in (20, 63):
        landed, end = path[place]
        s = time_at(DATA.schedule, end)
        exact = DATA.flow(over(grown, y) * y, t, s)
        exact = exact / over(DATA.schedule.alpha(s) + DATA.schedule.sigma(s), y)
        torch.testing.assert_close(landed, exact, atol=2e-3, rtol=0)


class Posterior(nn.Module):
    """The denoiser itself, which leads nowhere in one step."""

    def forward(self, x, t, s=None):
        return DATA.posterior(x, t)


@pytest.mark.parametrize("term", TERMS)
def test_traflows_exact_map_has_no_loss_and_no_gradient(term):
    objective = traflow(solver_steps=32, **{name: float(name == term) for name in TERMS})
    losses = objective.loss("student", batch(64))
    gradient = torch.autograd.grad(losses.total, list(objective.student.parameters()))
    assert losses.total < 1e-5
    assert torch.stack(gradient).norm() < 2e-3
    objective.student.net = Posterior()
    assert objective.loss("student", batch(64)).total > 1e-3


def test_weights_weigh():
    parts = [
        traflow(0.8, **{n: float(n == t) for n in TERMS}).loss("student", batch(64)).total.item()
        for t in TERMS
    ]
    whole = traflow(0.8, output=2, velocity=3, consistency=4).loss("student", batch(64)).total
    assert parts[0] > 1e-3
    assert whole.item() == pytest.approx(2 * parts[0] + 3 * parts[1] + 4 * parts[2], rel=1e-6)


def test_a_short_run_of_traflow(two_modes, quick_fit, tmp_path):
    words = [f"teacher.path={two_modes}", "train.batch_size=16", "train.steps=2"]
    recipe = load("mixture-traflow", words)
    run = open_run(recipe, str(tmp_path / "run"), False, tmp_path)
    assert len(load_student(run.train(lambda step, figures: None)).table.rows) == 4
