"""Schedules, predictions, solvers and step tables against inverses, diffusers and closed forms."""

import diffusers
import pytest
import torch
from torch import nn

from edgedistill.diffusion.denoiser import Denoiser, Guided
from edgedistill.diffusion.few_step import SAMPLERS, few_step_table
from edgedistill.diffusion.prediction import Prediction, to_eps, to_x0
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.schedules import (
    VE,
    Cosine,
    Discrete,
    Karras,
    Linear,
    Rectified,
    Trig,
    schedule_from_json,
)
from edgedistill.diffusion.solvers import SPACINGS, solve, time_grid
from edgedistill.diffusion.step_table import TorchStepTable


def ddpm(kind: str = "squaredcos_cap_v2", zero_snr: bool = False) -> Discrete:
    scheduler = diffusers.DDIMScheduler(beta_schedule=kind, rescale_betas_zero_snr=zero_snr)
    return Discrete(scheduler.alphas_cumprod)


SCHEDULES: list[Schedule] = [
    Trig(),
    Cosine(),
    Linear(),
    VE(),
    Karras(),
    Rectified(),
    Rectified(shift=3.0),
    ddpm(),
    ddpm("scaled_linear"),
    ddpm("scaled_linear", zero_snr=True),
]
IDS = ["trig", "cosine", "linear", "ve", "karras", "rectified", "shifted", "squaredcos", "scaled"]
IDS += ["zero-snr"]
T = torch.linspace(0.0, 1.0, 52, dtype=torch.float64)[1:-1]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
def test_time_of_inverts_log_snr(schedule: Schedule) -> None:
    torch.testing.assert_close(schedule.time_of(schedule.log_snr(T)), T, atol=1e-6, rtol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
def test_derivatives_match_differences(schedule: Schedule) -> None:
    # Off the table's knots, where an interpolated schedule has no derivative.
    t, h = T + 0.37e-3, 1e-6
    for value, slope in ((schedule.alpha, schedule.d_alpha), (schedule.sigma, schedule.d_sigma)):
        difference = (value(t + h) - value(t - h)) / (2 * h)
        torch.testing.assert_close(slope(t), difference, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
def test_noise_grows_with_time_and_json_round_trips(schedule: Schedule) -> None:
    assert bool((schedule.log_snr(T).diff() < 0).all())
    again = schedule_from_json(schedule.to_json())
    torch.testing.assert_close(again.sigma(T), schedule.sigma(T), atol=0, rtol=0)


def test_discrete_hits_the_table() -> None:
    schedule = ddpm("scaled_linear")
    k = torch.arange(1000)
    t = (k + 1).double() / 1000
    torch.testing.assert_close(schedule.alpha(t) ** 2, schedule.alphas_cumprod)
    torch.testing.assert_close(schedule.net_time(t), k.double())
    assert schedule.alpha(torch.zeros(1)).item() == 1


@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
@pytest.mark.parametrize("kind", list(Prediction))
def test_every_prediction_inverts(schedule: Schedule, kind: Prediction) -> None:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(len(T), 3, dtype=torch.float64, generator=generator)
    eps = torch.randn(len(T), 3, dtype=torch.float64, generator=generator)
    alpha, sigma = schedule.at(T, like=x0)
    x_t, y = alpha * x0 + sigma * eps, kind.combine(x0, eps, alpha, sigma)
    clean, noise = to_x0(kind, alpha, sigma), to_eps(kind, alpha, sigma)
    torch.testing.assert_close(clean.x * x_t + clean.y * y, x0, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(noise.x * x_t + noise.y * y, eps, atol=1e-7, rtol=1e-6)


class Toy(nn.Module):
    """A smooth network of x and time, in plain double-free arithmetic."""

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        phase = (time / 300).reshape(-1, 1, 1, 1)
        return torch.sin(x + phase) * 0.6 + 0.2 * x


def follow(scheduler: diffusers.SchedulerMixin, noise: torch.Tensor, steps: int) -> torch.Tensor:
    scheduler.set_timesteps(steps)
    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        x = scheduler.step(Toy()(scaled, t.float().expand(len(x))), t, x).prev_sample
    return x


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("solver", ["ddim", "heun", "dpm++2m"])
@pytest.mark.parametrize("steps", [5, 20])
def test_solvers_agree_with_diffusers(prediction: str, solver: str, steps: int) -> None:
    common = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": prediction,
        "timestep_spacing": "trailing",
    }
    peers = {
        "ddim": lambda: diffusers.DDIMScheduler(
            **common, clip_sample=False, set_alpha_to_one=True
        ),
        "heun": lambda: diffusers.HeunDiscreteScheduler(**common),
        "dpm++2m": lambda: diffusers.DPMSolverMultistepScheduler(
            **common, final_sigmas_type="zero"
        ),
    }
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    schedule = ddpm_like(common)
    kind = {"epsilon": Prediction.EPS, "v_prediction": Prediction.V}[prediction]
    peer = peers[solver]()
    expected = follow(peer, noise, steps)
    # Heun's scheduler works in x / alpha: it starts at sigma_max and ours at unit variance.
    if solver == "heun":
        t = torch.ones(1)
        hat = schedule.sigma(t) / schedule.alpha(t)
        noise = noise * (schedule.alpha(t) * peer.init_noise_sigma).float()
        assert peer.init_noise_sigma == pytest.approx(hat.item(), rel=1e-4)
    ours = solve(Denoiser(Toy(), schedule, kind), noise, time_grid(schedule, steps), {}, solver)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def ddpm_like(config: dict[str, object]) -> Discrete:
    return Discrete(diffusers.DDIMScheduler(**config).alphas_cumprod)


def test_euler_agrees_with_diffusers() -> None:
    common = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "timestep_spacing": "trailing",
    }
    peer = diffusers.EulerDiscreteScheduler(**common)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = follow(peer, noise, 10)
    schedule = ddpm_like(common)
    start = noise * (schedule.alpha(torch.ones(1)) * peer.init_noise_sigma).float()
    denoiser = Denoiser(Toy(), schedule, Prediction.EPS)
    ours = solve(denoiser, start, time_grid(schedule, 10), {}, "euler")
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_flow_euler_agrees_with_diffusers() -> None:
    peer = diffusers.FlowMatchEulerDiscreteScheduler()
    peer.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    noise = x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    for t in peer.timesteps:
        x = peer.step(Toy()(x, t.expand(2)), t, x).prev_sample
    denoiser = Denoiser(Toy(), Rectified(), Prediction.FLOW)
    ours = solve(denoiser, noise, time_grid(Rectified(), 4), {}, "euler")
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpm++2m"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
def test_solvers_reach_the_exact_map_of_a_gaussian(solver: str, schedule: Schedule) -> None:
    """N(0, s^2): the ODE map is linear, x_0 = s x_1 / std(x_1)."""
    scale = 0.5

    class Exact(nn.Module):
        def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            t = (time.double() + 1) / 1000 if isinstance(schedule, Discrete) else time.double()
            if isinstance(schedule, Rectified):
                sigma = time.double() / 1000
                t = schedule.time_of(2 * (1 / sigma - 1).log())
            if isinstance(schedule, Karras):
                t = schedule.levels.time_of(-8 * time.double())
            alpha, sigma = schedule.at(t, like=x)
            x = x / schedule.input_scale(t).reshape(-1, 1).to(x)
            return alpha * scale**2 / (alpha**2 * scale**2 + sigma**2) * x

    noise = torch.linspace(-2, 2, 9).reshape(-1, 1).double()
    times = time_grid(schedule, 200)
    ours = solve(Denoiser(Exact(), schedule, Prediction.X0), noise, times, {}, solver)
    alpha, sigma = schedule.at(times[:1], like=noise)
    start = noise * max(1.0, sigma.item())
    exact = start * scale / (alpha**2 * scale**2 + sigma**2).sqrt()
    if isinstance(schedule, VE):  # t = 0 is sigma_min, not clean data
        exact = exact * (scale**2 + schedule.sigma_min**2) ** 0.5 / scale
    torch.testing.assert_close(ours, exact, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_spacings_match_diffusers(spacing: str) -> None:
    peer = diffusers.DDIMScheduler(timestep_spacing=spacing)
    for steps in (2, 4, 7, 25, 30, 80):
        peer.set_timesteps(steps)
        schedule = Discrete(peer.alphas_cumprod)
        ours = schedule.net_time(time_grid(schedule, steps, spacing)[:-1])
        assert ours.round().long().tolist() == peer.timesteps.tolist()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
@pytest.mark.parametrize("kind", [Prediction.X0, Prediction.V, Prediction.FLOW])
def test_deterministic_table_is_ddim(schedule: Schedule, kind: Prediction) -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x) * 0.5

    noise = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times = time_grid(schedule, 4)
    table = few_step_table(schedule, kind, times, "ddim")
    assert table.draws == 1
    expected = solve(Denoiser(Net(), schedule, kind), noise, times, {}, "ddim")
    ours = table.sample(Net(), [noise], {})
    if isinstance(schedule, VE | Karras):
        # The last row returns x0 itself, not x at sigma_min.
        torch.testing.assert_close(ours, expected, atol=0.02, rtol=0.02)
    else:
        torch.testing.assert_close(ours, expected, atol=1e-9, rtol=1e-6)


def test_renoise_table_is_the_lcm_scheduler() -> None:
    peer = diffusers.LCMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        original_inference_steps=4,
        clip_sample=False,
    )
    schedule = Discrete(peer.alphas_cumprod)

    def boundary(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scaled = schedule.net_time(t) * 10
        return 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25).sqrt()

    table = few_step_table(schedule, Prediction.V, time_grid(schedule, 4), "renoise", boundary)
    assert [row.t for row in table.rows] == pytest.approx([999, 749, 499, 249])
    noise = table.draw((2, 4, 8, 8), torch.Generator().manual_seed(3))
    ours = table.sample(Toy(), noise, {})
    peer.set_timesteps(4, original_inference_steps=4)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    for t in peer.timesteps:
        x = peer.step(Toy()(x, t.float().expand(2)), t, x, generator=generator).prev_sample
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=1e-4)


def test_guidance_is_linear_and_one_is_none() -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor, time: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            return x * 0 + c.reshape(-1, 1)

    denoiser = Denoiser(Net(), Trig(), Prediction.X0)
    x, t, cond = torch.zeros(2, 1), torch.tensor(0.5), {"c": torch.tensor([3.0, 5.0])}
    null = {"c": torch.tensor([1.0])}
    assert Guided(denoiser, null, 2.5)(x, t, cond).flatten().tolist() == [6.0, 11.0]
    assert Guided(denoiser, null, 1.0)(x, t, cond).flatten().tolist() == [3.0, 5.0]


def test_step_table_json_round_trips_and_refuses_nonsense() -> None:
    table = few_step_table(Trig(), Prediction.V, time_grid(Trig(), 3))
    assert TorchStepTable.from_json(table.to_json()) == table
    for broken in (
        {},
        {"init_scale": 1.0, "rows": []},
        {"init_scale": 1.0, "rows": [{"t": 1}]},
        {"init_scale": float("nan"), "rows": table.to_json()["rows"]},
    ):
        with pytest.raises(ValueError, match="step_table"):
            TorchStepTable.from_json(broken)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: time_grid(Trig(), 4, "tailing"), "tailing"),
        (lambda: few_step_table(Trig(), Prediction.V, time_grid(Trig(), 2), "euler"), "euler"),
        (lambda: Prediction.parse("epsilon"), "epsilon"),
        (lambda: schedule_from_json({"name": "trigg"}), "trigg"),
        (lambda: time_grid(Trig(), 0), "0"),
    ],
)
def test_bad_names_are_named_with_the_choices(call, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        call()


def test_tables_list_what_the_readme_says() -> None:
    assert set(SPACINGS) == {"trailing", "leading", "linspace"}
    assert set(SAMPLERS) == {"renoise", "ddim"}
