"""Multistep solvers as step tables: diffusers' own, and their order on a closed form."""

import diffusers
import pytest
import torch
from oracles import Gaussian
from torch import nn

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.multistep import MULTISTEP, estimate, multistep_table
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import VE, Cosine, Discrete, Rectified, Trig
from edgedistill.diffusion.solvers import TimeGrid, solve, time_grid
from edgedistill.diffusion.step_table import Step, TorchStepTable

TRAILING = {"beta_schedule": "scaled_linear", "timestep_spacing": "trailing"}
DIFFUSERS = {
    "dpm++2m": diffusers.DPMSolverMultistepScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
    "deis": diffusers.DEISMultistepScheduler,
}
NAMES = {
    Prediction.EPS: "epsilon",
    Prediction.X0: "sample",
    Prediction.V: "v_prediction",
}


class Net(nn.Module):
    """Not linear in x, and another function at every t in 0 .. 1000."""

    def forward(self, x, t):
        return torch.tanh(1.5 * x) * (0.6 + t.reshape(-1, 1).to(x) / 2000) - 0.2


def noise(count: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 2, dtype=torch.float64, generator=generator)


def path_of(scheduler, steps: int) -> torch.Tensor:
    scheduler.set_timesteps(steps)
    x = noise()
    for t in scheduler.timesteps:
        x = scheduler.step(Net()(x, t.double().expand(len(x))), t, x).prev_sample
    return x


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 20])
@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("name", DIFFUSERS)
def test_tables_are_diffusers_schedulers(name, kind, steps):
    scheduler = DIFFUSERS[name](**TRAILING, prediction_type=NAMES[kind])
    schedule = Discrete(scheduler.alphas_cumprod.double())
    theirs = path_of(scheduler, steps)
    times = time_grid(schedule, steps)
    if name == "deis":  # ends at the first trained timestep
        times[-1] = 1 / 1000
    grid = TimeGrid(times[:-1], times[1:])
    table = multistep_table(schedule, kind, grid, name)
    ours = table.sample(Net(), [noise()], {})
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    single = few_step_table(schedule, kind, time_grid(schedule, steps), "ddim")
    if steps > 2:
        assert (single.sample(Net(), [noise()], {}) - theirs).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["dpm++2m", "unipc"])
def test_tables_are_diffusers_schedulers_on_flows(name):
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    scheduler = DIFFUSERS[name](**flow)
    theirs = path_of(scheduler, 6)
    sigmas = scheduler.sigmas.double()
    grid = TimeGrid(sigmas[:-1], sigmas[1:], 1.0, scheduler.timesteps.double())
    table = multistep_table(Rectified(), Prediction.FLOW, grid, name)
    torch.testing.assert_close(table.sample(Net(), [noise()], {}), theirs, atol=1e-4, rtol=1e-4)


ORDERS = {"ddim": 1, "dpm++2m": 2, "unipc": 2, "deis": 2, "ab2": 2}


@pytest.mark.parametrize("schedule", [Trig(), Cosine(), Rectified(shift=3.0)])
@pytest.mark.parametrize("kind", Prediction)
@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_errors_shrink_with_the_solvers_order(schedule, kind, name, order):
    data = Gaussian([0.5, -0.5], 0.6, schedule)

    class Exact(nn.Module):
        def forward(self, x, t):
            alpha, sigma = schedule.at(t.double(), like=x)
            x0 = data.posterior(x, t.double())
            return kind.combine(x0, (x - alpha * x0) / sigma, alpha, sigma)

    start, end = torch.tensor([0.9]).double(), torch.tensor([0.1]).double()
    x = noise()
    truth = data.flow(x, start.expand(len(x)), end.expand(len(x)))
    errors = []
    for steps in (32, 64):
        times = torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64)
        grid = TimeGrid(times[:-1], times[1:], net_times=times[:-1])
        table = multistep_table(schedule, kind, grid, name)
        errors.append((table.sample(Exact(), [x], {}) - truth).abs().max().item())
    assert 2**order * 0.8 < errors[0] / errors[1] < 2**order * 1.6


@pytest.mark.parametrize("kind", Prediction)
def test_the_solver_of_teachers_and_the_table_take_the_same_steps(kind):
    schedule = Rectified(shift=3.0)
    times = time_grid(schedule, 5)
    denoiser = Denoiser(Net(), schedule, kind)
    if kind is Prediction.EPS:
        times = times * 0.95
    expected = solve(denoiser, noise(), times, {}, "dpm++2m")
    table = multistep_table(schedule, kind, times, "dpm++2m")
    torch.testing.assert_close(table.sample(Net(), [noise()], {}), expected)


@pytest.mark.parametrize("wanted", Prediction)
@pytest.mark.parametrize("kind", Prediction)
def test_estimates_are_exact(kind, wanted):
    alpha, sigma = torch.tensor(0.6).double(), torch.tensor(0.8).double()
    x0, eps = noise(2)
    x_t = alpha * x0 + sigma * eps
    found = estimate(kind, wanted, alpha, sigma)
    value = found.x * x_t + found.y * kind.combine(x0, eps, alpha, sigma)
    torch.testing.assert_close(value, wanted.combine(x0, eps, alpha, sigma))


def test_a_solver_that_cannot_start_says_so():
    with pytest.raises(ValueError, match="deis: no x0 follows from noise"):
        multistep_table(Trig(), Prediction.V, time_grid(Trig(), 4), "deis")
    with pytest.raises(ValueError, match=r"unknown solver 'dpm2m'.*did you mean 'dpm"):
        multistep_table(Trig(), Prediction.V, time_grid(Trig(), 4), "dpm2m")
    for name in set(MULTISTEP) - {"deis"}:
        for schedule in (Trig(), VE(), Rectified()):
            multistep_table(schedule, Prediction.V, time_grid(schedule, 4), name)


# --- Rows that use earlier ones ----------------------------------------------------------------


def test_a_row_adds_what_earlier_rows_started_from_and_gave():
    rows = (
        Step(3.0, 1.0, 2.0, 1.0, 0.0),
        Step(2.0, 1.0, 1.0, 0.0, 0.5, past=((10.0, 100.0),)),
        Step(1.0, 1.0, 0.0, 1.0, 0.0, past=((0.0, 1.0), (1.0, -1.0))),
    )
    table = TorchStepTable(rows, 1.0)

    class Time(nn.Module):
        def forward(self, x, t):
            return x * 0 + t.reshape(-1, 1)

    found = table.sample(Time(), [torch.ones(1, 1), torch.full((1, 1), 4.0)], {})
    # x = 1, f = 3 -> 2 + 3 = 5; f = 2 -> 5 + 10 * 1 + 100 * 3 + 0.5 * 4 = 317;
    # f = 1 -> 1 + 2 + (1 - 3) = 1
    assert found.item() == 1
    assert table.reach == 2
    assert TorchStepTable.from_json(table.to_json()) == table


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ((Step(1, 1, 1, 1, 0, past=((1, 1),)),), "row 0 uses 1 earlier rows"),
        ((Step(1, 1, 1, 1, 0),) * 9 + (Step(1, 1, 1, 1, 0, past=((1, 1),) * 9),), "at most 8"),
        (
            (Step(1, 1, 1, 1, 1, size=0.5), Step(1, 1, 1, 1, 0, past=((1, 1),))),
            "an earlier row of another size",
        ),
    ],
)
def test_what_is_wrong_with_earlier_rows(rows, line):
    with pytest.raises(ValueError, match=line):
        TorchStepTable(rows)
    data = {"init_scale": 1.0, "rows": [vars(row) for row in rows]}
    with pytest.raises(ValueError, match=f"step_table: .*{line}"):
        TorchStepTable.from_json(data)


@pytest.mark.parametrize("past", [[[1.0]], [1.0], [["a", 1]], [[1, float("nan")]], None, "ab"])
def test_a_past_that_is_no_list_of_pairs_is_refused(past):
    row = {"t": 1.0, "scale": 1.0, "a": 1.0, "b": 1.0, "c": 0.0}
    data = {"init_scale": 1.0, "rows": [row, {**row, "past": past}]}
    with pytest.raises(ValueError, match="step_table"):
        TorchStepTable.from_json(data)
