"""Every kind's step table against the diffusers scheduler of its model card."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
)

from edgedistill.adoption.kinds import KINDS, find_kind
from edgedistill.adoption.schedulers import (
    distance,
    make_scheduler,
    make_table,
    plain,
    prediction_of,
    shift_of,
)
from edgedistill.adoption.tables import tcd
from edgedistill.diffusion.few_step import landed_table, renoise
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Discrete, Rectified

SD = DDIMScheduler(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)
SD3 = FlowMatchEulerDiscreteScheduler(shift=3.0)
FLUX = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
SHAPE = (4, 64, 64)
MU = 0.5 + (1024 - 256) * (1.15 - 0.5) / (4096 - 256)
"""Of the 1024 tokens of 64 x 64 latents, by FLUX's rule."""


def lcm(steps, timesteps=None):
    scheduler = LCMScheduler.from_config(SD.config)
    scheduler.set_timesteps(
        **({"timesteps": timesteps} if timesteps else {"num_inference_steps": steps})
    )
    return scheduler, {}


def euler(kind):
    def make(steps):
        settings = (
            {"prediction_type": "sample"} if kind is EulerDiscreteScheduler and steps == 1 else {}
        )
        scheduler = kind.from_config(SD.config, timestep_spacing="trailing", **settings)
        scheduler.set_timesteps(steps)
        return scheduler, {}

    return make


def sd_turbo(steps):
    scheduler = EulerDiscreteScheduler.from_config(SD.config, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    return scheduler, {}


def hyper(steps):
    scheduler = DDIMScheduler.from_config(SD.config, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    return scheduler, {}


def tcd_with(eta):
    def make(steps):
        scheduler = TCDScheduler.from_config(SD.config)
        scheduler.set_timesteps(steps)
        return scheduler, {"eta": eta}

    return make


def sd3(shift):
    def make(steps):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(steps)
        return scheduler, {}

    return make


def flux(**config):
    def make(steps):
        scheduler = FlowMatchEulerDiscreteScheduler(**config)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=MU)
        return scheduler, {}

    return make


DMD2 = {4: [999, 749, 499, 249], 1: [399]}
CARDS = {
    "lcm": lcm,
    "lcm-lora": lcm,
    "turbo": euler(EulerAncestralDiscreteScheduler),
    "sd-turbo": sd_turbo,
    "lightning": euler(EulerDiscreteScheduler),
    "lightning-lora": euler(EulerDiscreteScheduler),
    "hyper-sd": hyper,
    "hyper-sd-unified": tcd_with(1.0),
    "hyper-sd-1step": lambda steps: lcm(steps, [800]),
    "dmd2": lambda steps: lcm(steps, DMD2[steps]),
    "dmd2-lora": lambda steps: lcm(steps, DMD2[steps]),
    "pcm": tcd_with(0.0),
    "tcd": tcd_with(0.3),
    "sd3-turbo": sd3(3.0),
    "sd3-turbo-lora": sd3(5.0),
    "schnell": flux(shift=1.0),
    "flux-turbo-lora": flux(shift=3.0, use_dynamic_shifting=True),
    "hyper-sd-flux": flux(shift=3.0, use_dynamic_shifting=True),
}
"""Scheduler, set to its steps, and arguments of its step, as model cards and pipelines have it."""

TIMESTEPS = {
    "lcm": {4: [999, 759, 499, 259], 8: [999, 879, 759, 639, 499, 379, 259, 139], 2: [999, 499]},
    "turbo": {4: [999, 749, 499, 249], 1: [999]},
    "lightning": {8: [999, 874, 749, 624, 499, 374, 249, 124], 2: [999, 499]},
    "dmd2": DMD2,
    "hyper-sd-1step": {1: [800]},
    "tcd": {4: [999, 759, 499, 259]},
    "schnell": {4: [1000, 750, 500, 250], 1: [1000]},
    "sd3-turbo": {4: [1000, 858, 602, 9]},
}


def base(name):
    kind = KINDS[name]
    if not kind.flow:
        return SD
    return FLUX if "flux" in kind.families else SD3


def table_of(name, steps):
    kind = KINDS[name]
    scheduler = make_scheduler(kind, base(name), steps)
    schedule = Rectified() if kind.flow else Discrete(SD.alphas_cumprod)
    return make_table(kind, scheduler, schedule, steps, SHAPE)


def network(x, t):
    """Nonlinear, and different at every timestep."""
    return (1.3 * x).sin() * (t / 700).cos() + 0.1 * (t / 90).sin()


def probe(x, t):
    return network(x, t[:, None])


def walk(scheduler, extra, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 50, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(seen, t.float()), t, x, generator=generator, **extra)[0]
    return x


def test_every_kind_has_a_card():
    assert CARDS.keys() == KINDS.keys()


@pytest.mark.parametrize(
    ("name", "steps"), [(name, steps) for name, kind in KINDS.items() for steps in kind.steps]
)
def test_the_table_is_the_recommended_scheduler(name, steps):
    table = table_of(name, steps)
    expected = walk(*CARDS[name](steps), seed=steps)
    noise = table.draw((3, 50), torch.Generator().manual_seed(steps))
    ours = table.sample(probe, noise, {})
    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "steps"), [(name, steps) for name, rows in TIMESTEPS.items() for steps in rows]
)
def test_timesteps_are_those_of_the_cards(name, steps):
    assert [round(row.t) for row in table_of(name, steps).rows] == TIMESTEPS[name][steps]


@pytest.mark.parametrize(
    ("name", "steps", "draws"),
    [
        ("lcm", 4, 4),
        ("turbo", 4, 4),
        ("turbo", 1, 1),
        ("lightning", 4, 1),
        ("pcm", 4, 1),
        ("tcd", 4, 4),
        ("hyper-sd", 4, 1),
        ("hyper-sd-unified", 2, 2),
        ("schnell", 4, 1),
    ],
)
def test_only_stochastic_kinds_draw_noise_on_the_way(name, steps, draws):
    assert table_of(name, steps).draws == draws


def test_one_step_of_lightning_is_the_networks_output():
    (row,) = table_of("lightning", 1).rows
    assert prediction_of(KINDS["lightning"], 1) is Prediction.X0
    assert prediction_of(KINDS["lightning"], 2) is Prediction.EPS
    assert (row.a, row.b, row.c) == pytest.approx((0, 1, 0), abs=1e-12)


def test_euler_starts_from_sigma_and_others_from_one():
    sigma = (1 - SD.alphas_cumprod[-1].double()).sqrt().item()
    assert table_of("lightning", 4).init_scale == pytest.approx(sigma)
    assert table_of("dmd2", 4).init_scale == 1


def test_gamma_one_lands_on_the_first_trained_time_and_gamma_zero_is_ddim():
    schedule = Discrete(SD.alphas_cumprod)
    t, s = torch.tensor(1.0).double(), torch.tensor(0.5).double()
    full = tcd(1.0)(schedule, t, s, False)
    first = torch.tensor(1e-3).double()
    up = schedule.alpha(s) / schedule.alpha(first)
    assert full.x0 == pytest.approx(schedule.alpha(s).item())
    assert full.eps == pytest.approx((up * schedule.sigma(first)).item())
    none = tcd(0.0)(schedule, t, s, False)
    assert (none.x0, none.eps) == (schedule.alpha(s), schedule.sigma(s))
    assert none.noise == 0


@pytest.mark.parametrize("name", ["dmd2", "hyper-sd-1step"])
def test_listed_timesteps_come_in_the_config_of_the_scheduler_that_is_saved(name):
    for steps in KINDS[name].steps:
        table = table_of(name, steps)
        saved = plain(KINDS[name], make_scheduler(KINDS[name], SD, steps), table)
        saved = type(saved).from_config(dict(saved.config))
        saved.set_timesteps(steps)
        expected = walk(saved, {}, seed=1)
        ours = table.sample(probe, table.draw((3, 50), torch.Generator().manual_seed(1)), {})
        assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_distance_sees_a_wrong_table():
    kind = KINDS["lcm"]
    scheduler = make_scheduler(kind, SD, 4)
    assert distance(kind, scheduler, table_of("lcm", 4), SHAPE) < 1e-5
    unbounded = landed_table(
        Discrete(SD.alphas_cumprod),
        Prediction.EPS,
        kind.grid(Discrete(SD.alphas_cumprod), 4, 1.0) - 1e-3,
        renoise,
    )
    assert distance(kind, scheduler, unbounded, SHAPE) > 1e-3


def test_the_boundary_of_lcm_shows_at_small_timesteps():
    (row,) = landed_table(
        Discrete(SD.alphas_cumprod),
        Prediction.X0,
        torch.tensor([2e-3]).double(),
        renoise,
        boundary=lambda t: (torch.tensor(0.25), torch.tensor(0.75)),
    ).rows
    assert (row.a, row.b) == pytest.approx((0.25, 0.75))


def test_flux_shifts_with_the_picture_and_schnell_does_not():
    assert shift_of(FLUX.config, SHAPE) == pytest.approx(np.exp(MU))
    assert shift_of(FLUX.config, (16, 128, 128)) == pytest.approx(np.exp(1.15))
    assert shift_of(SD3.config, SHAPE) == 3.0


def test_eps_at_a_time_without_signal_is_refused():
    schedule = Discrete(torch.tensor([0.9, 0.5, 0.0]))
    with pytest.raises(ValueError, match="zero terminal SNR"):
        landed_table(schedule, Prediction.EPS, torch.tensor([1.0]), renoise)


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown kind 'lightnin' \(did you mean 'lightning'"):
        find_kind("lightnin")


@pytest.mark.parametrize("name", ["sd3-turbo", "flux-turbo-lora"])
def test_a_shifted_flow_gives_the_same_table(name):
    kind = KINDS[name]
    scheduler = make_scheduler(kind, base(name), kind.steps[0])
    shifted = make_table(kind, scheduler, Rectified(shift=3.0), kind.steps[0], SHAPE)
    for ours, theirs in zip(shifted.rows, table_of(name, kind.steps[0]).rows, strict=True):
        assert (ours.t, ours.a, ours.b) == pytest.approx((theirs.t, theirs.a, theirs.b))
