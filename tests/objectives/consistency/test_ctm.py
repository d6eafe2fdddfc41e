"""Consistency trajectories on a Gaussian, whose flow between any two times is known."""

from itertools import pairwise

import pytest
import torch
from oracles import Gaussian
from torch import nn

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Rectified, Trig
from edgedistill.diffusion.solvers import time_grid
from edgedistill.networks.planar import PlanarNet
from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.objectives.consistency.ctm import CTM, balance, edm_weight

DATA = Gaussian([0.7, -0.4], 0.5, Trig())


class Exact(nn.Module):
    """gain * the x0 with which DDIM's step lands where the flow does, + shift."""

    def __init__(self, gain=1.0, shift=0.0):
        super().__init__()
        self.gain = nn.Parameter(torch.full((1, 1), gain))
        self.shift = nn.Parameter(torch.full((1, 1), shift))

    def forward(self, x, t, s):
        t, s, wide = t.double(), s.double(), x.double()
        still = t == s
        begin = torch.where(still, 1.0, t)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (Trig().at(u, like=wide) for u in (begin, s))
        ratio = sigma_s / sigma_t
        keep = torch.where(still[:, None], 1.0, alpha_s - ratio * alpha_t)
        x0 = (DATA.flow(wide, begin, s) - ratio * wide) / keep
        x0 = torch.where(still[:, None], DATA.posterior(wide, t), x0)
        return self.gain * x0.to(x) + self.shift


def setup(net):
    return Setup(
        teacher=DATA.denoiser(),
        student=Denoiser(net, Trig(), Prediction.X0),
        spawn=lambda: Denoiser(PlanarNet(width=16), Trig(), Prediction.V),
        times=time_grid(Trig(), 4),
        sampler="ddim",
        optim=Optim(),
        tap="blocks.1",
        example=(torch.zeros(2, 2), {}),
        time_layer="embed_time.2",
    )


def method(gain=1.0, shift=0.0, **config):
    made = CTM(CTM.Config(**config), setup(PlanarNet(width=16)))
    made.student.net, made.target.net = Exact(gain, shift), Exact(gain, shift)
    made.target.requires_grad_(False)
    return made


def batch(count=2048, seed=0, step=0):
    generator = torch.Generator().manual_seed(seed)
    x0 = DATA.draw(count, generator).double()
    return Batch(x0, {}, generator, torch.Generator().manual_seed(seed), step)


def gradient(objective, loss):
    found = torch.autograd.grad(loss, list(objective.student.parameters()))
    return torch.cat(found).norm().item()


def test_the_exact_trajectories_have_no_loss_and_no_gradient():
    config = {"intervals": 500, "solver_steps": 3, "denoising": 0}
    objective, off = method(**config), method(0.7, 0.1, **config)
    loss, off_loss = (m.loss("student", batch()).total for m in (objective, off))
    assert loss < 1e-6
    assert off_loss > 1e4 * loss
    assert gradient(objective, loss) < 1e-4
    assert gradient(off, off_loss) > 1e-3


def test_the_mean_gradient_of_denoising_vanishes_at_the_posterior():
    slopes = []
    for gain in (1.0, 0.7):
        objective = method(gain)
        slopes.append(gradient(objective, objective._denoising(batch(200_000))))
    assert slopes[0] < 0.05 * slopes[1]


def test_teacher_steps_lead_from_t_to_u_and_jumps_on_to_s():
    objective = method(intervals=8, solver_steps=5)
    last, lengths, ends = len(objective.grid) - 1, set(), set()
    for seed in range(40):
        t, u, s = objective.places(batch(50, seed))
        lengths |= set((u - t).tolist())
        assert len(set((u - t).tolist())) == 1
        assert bool(((t >= 0) & (u <= s) & (s <= last)).all())
        ends |= set(s.tolist())
    assert lengths == {1, 2, 3, 4, 5}
    assert ends == set(range(1, last + 1))


def test_a_jump_to_where_it_is_stays():
    objective = method(0.7, 0.3)
    x, t = torch.randn(4, 2).double(), torch.tensor([0.0, 0.2, 0.7, 1.0]).double()
    x.requires_grad_()
    stayed = objective.jump(objective.student, x, t, t, {})
    assert torch.equal(stayed, x)
    assert torch.equal(torch.autograd.grad(stayed.sum(), x)[0], torch.ones_like(x))


def test_balanced_losses_have_gradients_of_one_length():
    net = nn.Linear(3, 1, bias=False)
    w = net.weight
    factor = balance(3 * w.sum(), 0.5 * w.sum(), net)
    assert factor.item() == pytest.approx(6, rel=1e-3)
    assert balance(w.sum() * 1e3, w.sum() * 0, net).item() == pytest.approx(1e4)


def test_the_weight_is_one_over_edms_output_scale_squared():
    t = torch.tensor([0.5], dtype=torch.float64)
    assert edm_weight(Rectified(), t, 0.5).item() == pytest.approx((1 + 0.25) / 0.25)


def test_the_discriminator_is_a_head_on_frozen_features():
    objective = CTM(
        CTM.Config(adversarial=1.0, adversarial_start=10, discriminator=Optim(lr=1e-2)),
        setup(PlanarNet(width=16)),
    )
    head, student = objective.players()
    assert (head.name, head.start) == ("discriminator", 10)
    x0 = batch(64).x0.float()
    early = Batch(x0, {}, torch.Generator().manual_seed(0), torch.Generator().manual_seed(0))
    late = Batch(x0, {}, torch.Generator().manual_seed(0), torch.Generator().manual_seed(0), 10)
    assert "gan" not in objective.loss("student", early).logs
    assert "gan" in objective.loss("student", late).logs
    optim = torch.optim.Adam(head.net.parameters(), 1e-2)
    losses = []
    for seed in range(60):
        drawn = Batch(
            x0, {}, torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed), 10
        )
        loss = objective.loss("discriminator", drawn).total
        losses.append(loss.item())
        optim.zero_grad()
        torch.autograd.backward(loss)
        optim.step()
    assert losses[-1] < losses[0] - 0.05
    assert all(p.grad is None for p in student.net.parameters())


def test_what_is_kept_does_at_each_step_what_was_told():
    objective = CTM(CTM.Config(), setup(PlanarNet(width=16)))
    told = objective.student.net
    torch.nn.init.normal_(
        told.time_layer.embed[-1].weight, generator=torch.Generator().manual_seed(0)
    )
    torch.nn.init.normal_(told.net.head.weight, generator=torch.Generator().manual_seed(1))
    kept = objective.finished(objective.student).net
    assert isinstance(kept, PlanarNet)
    x = torch.randn(5, 2)
    for t, s in pairwise(objective.setup.times):
        time, end = t.float().expand(5), s.float().expand(5)
        torch.testing.assert_close(kept(x, time), told(x, time, end), atol=1e-3, rtol=1e-3)
