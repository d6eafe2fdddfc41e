"""Both directions on a Gaussian, whose flow between any two times is known."""

import pytest
import torch
from oracles import Affine, Gaussian

from edgedistill.diffusion.denoiser import Denoiser, Guided
from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.solvers import time_grid
from edgedistill.diffusion.times import above, below
from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.objectives.consistency.icd import ICD

DATA = Gaussian([0.7, -0.4], 0.5, Trig())
EDGES = time_grid(Trig(), 4)


def exact(ends, gain=1.0, shift=0.0):
    """The x0 whose DDIM step to the edge that `ends` names is the exact flow."""

    def x0(x, t):
        t, wide = t.double(), x.double()
        s = ends(EDGES, t)
        alpha_t, sigma_t = Trig().at(t, like=wide)
        alpha_s, sigma_s = Trig().at(s, like=wide)
        ratio = sigma_s / sigma_t
        return ((DATA.flow(wide, t, s) - ratio * wide) / (alpha_s - ratio * alpha_t)).to(x)

    return Denoiser(Affine(x0, gain, shift), Trig(), Prediction.X0)


def method(gain=1.0, shift=0.0, teacher=None, **config):
    setup = Setup(
        teacher=teacher or DATA.denoiser(),
        student=exact(below, gain, shift),
        spawn=lambda: exact(above, gain, shift),
        times=EDGES,
        sampler="ddim",
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 2), {}),
        train_steps=800,
    )
    smooth = {"distance": {"kind": "pseudo-huber", "c": 1.0}, "solver_steps": 1000}
    return ICD(ICD.Config(**{**smooth, **config}), setup)


def batch(count=4096, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x0 = DATA.draw(count, generator).double()
    return Batch(x0, {}, generator, torch.Generator().manual_seed(seed))


def net_of(objective, player):
    return {p.name: p.net for p in objective.players()}[player]


def gradient(objective, player):
    """(loss, norm of its gradient in the player's parameters)."""
    losses = objective.loss(player, batch())
    found = torch.autograd.grad(losses.total, list(net_of(objective, player).parameters()))
    return losses.total.item(), torch.stack(found).norm().item()


@pytest.mark.parametrize("player", ["student", "encoder"])
@pytest.mark.parametrize("preserve", [0.0, 1.5])
def test_the_exact_flow_has_no_loss_and_no_gradient_in_either_direction(player, preserve):
    loss, slope = gradient(method(preserve=preserve), player)
    off_loss, off_slope = gradient(method(0.7, 0.1, preserve=preserve), player)
    assert loss < 1e-6
    # The encoder's last trip begins a hair above 0, from where its x0 is told hundredfold.
    assert slope < (0.1 if preserve else 1e-4)
    assert off_loss > 100 * loss
    assert off_slope > 10 * slope


def test_preservation_trains_only_the_way_back():
    objective = method(0.8, 0.1)
    for player, other in (("student", "encoder"), ("encoder", "student")):
        torch.autograd.backward(objective.loss(player, batch()).total)
        assert all(p.grad is not None for p in net_of(objective, player).parameters())
        assert all(p.grad is None for p in net_of(objective, other).parameters())
        objective.student.zero_grad()
        objective.encoder.zero_grad()


def test_preservation_knows_a_wrong_partner():
    """Consistency alone cannot see that the two directions disagree."""
    objective = method()
    with torch.no_grad():
        objective.encoder.net.shift.fill_(0.3)
    assert objective.loss("student", batch()).logs["consistency"] < 1e-6
    assert objective.loss("student", batch()).logs["preservation"] > 1e-3


def test_the_encoder_finds_the_noise_of_what_the_student_drew():
    objective = method()
    net = objective.student.net.requires_grad_(False)
    objective.encoder.requires_grad_(False)
    table = few_step_table(Trig(), Prediction.X0, EDGES, "ddim")
    noise = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)).double()
    found = objective.encode(table.sample(net, [noise], {}), {})
    torch.testing.assert_close(found, noise, atol=1e-3, rtol=0)
    assert objective.stops.tolist() == [0.001, 0.25, 0.5, 0.75, 1.0]


def test_above_is_strict_and_ends_in_pure_noise():
    t = torch.tensor([0.0, 0.25, 0.3, 0.99, 1.0], dtype=torch.float64)
    assert above(EDGES, t).tolist() == [0.25, 0.5, 0.5, 1.0, 1.0]


def test_each_target_follows_its_own_network():
    objective = method(ema=0.9)
    with torch.no_grad():
        objective.encoder.net.gain.fill_(2.0)
    objective.updated("encoder")
    targets = objective.followers()
    assert targets["encoder_target"].net.gain.item() == pytest.approx(1.1)
    assert targets["target"].net.gain.item() == 1
    assert method().followers() == {}


def test_the_encoders_teacher_has_no_guidance():
    guided = Guided(DATA.denoiser(), {}, 3.0)
    with pytest.raises(ValueError, match=r"teacher.guidance=3: .*objective.preserve=0"):
        method(teacher=guided)
    objective = method(teacher=guided, preserve=0.0)
    assert gradient(objective, "encoder")[0] < 1e-6


def test_one_number_of_segments():
    with pytest.raises(ValueError, match="icd has one number of segments"):
        method(segments=(8, 4))
