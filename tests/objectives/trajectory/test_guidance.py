"""Guidance distillation of two Gaussians: where a condition moves the mean."""

import pytest
import torch
from oracles import Gaussian
from torch import nn

from edgedistill.diffusion.denoiser import Denoiser, Guided
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.solvers import time_grid
from edgedistill.networks.adapters import Adapter, Role, adapt
from edgedistill.networks.planar import PlanarNet
from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.objectives.trajectory.guidance import Guidance
from edgedistill.objectives.trajectory.guide_adapter import GuideAdapter
from edgedistill.objectives.trajectory.progressive import WEIGHTS
from edgedistill.recipes.loading import load
from edgedistill.runs.run_dir import open_run
from edgedistill.students.folder import load_student

PLAIN, MOVED = Gaussian([0.0, 0.0], 0.5, Trig()), Gaussian([0.7, -0.4], 0.5, Trig())


class Conditional(nn.Module):
    """x0 of the plain data, or of the moved where the condition is 1."""

    def forward(self, x, t, c):
        return torch.lerp(PLAIN.posterior(x, t), MOVED.posterior(x, t), c)


class TimeConditioned(nn.Module):
    """The guided x0 at the scale told, times a gain."""

    def __init__(self, low, high, gain=1.0):
        super().__init__()
        self.low, self.high, self.gain = low, high, nn.Parameter(torch.tensor(gain))

    def forward(self, x, t, c, s):
        scale = (self.low + (self.high - self.low) * s).reshape(-1, 1).to(x)
        plain, moved = (Conditional()(x, t, k * torch.ones_like(c)) for k in (0, 1))
        return self.gain * torch.lerp(plain, moved, scale)


class Linear(PlanarNet):
    """A planar network that takes the condition and does nothing with it."""

    def forward(self, x, t, c):
        return super().forward(x, t)


def setup(scale=3.0, student=None):
    teacher = Denoiser(Conditional(), Trig(), Prediction.X0)
    student = Denoiser(student or Linear(width=16), Trig(), Prediction.X0)
    null = {"c": torch.zeros(1, 1, dtype=torch.float64)}
    return Setup(
        teacher=Guided(teacher, null, scale),
        student=student,
        spawn=lambda: student,
        times=time_grid(Trig(), 8),
        sampler="ddim",
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 2), {"c": torch.ones(2, 1)}),
        time_layer="embed_time.2",
    )


def batch(count=512):
    generator = torch.Generator().manual_seed(0)
    x0 = MOVED.draw(count, generator).double()
    return Batch(x0, {"c": torch.ones(count, 1).double()}, generator, generator)


@pytest.mark.parametrize(("gain", "zero"), [(1.0, True), (0.8, False)])
def test_the_guided_teacher_has_no_loss_and_no_gradient(gain, zero):
    method = Guidance(Guidance.Config(low=1, high=6), setup())
    method.student.net = TimeConditioned(1, 6, gain)
    loss = method.loss("student", batch()).total
    (gradient,) = torch.autograd.grad(loss, [method.student.net.gain])
    assert (loss.item() < 1e-12) == zero
    assert (abs(gradient.item()) < 1e-6) == zero


def test_the_scale_that_is_kept_is_the_teachers():
    torch.manual_seed(0)
    method = Guidance(Guidance.Config(low=1, high=6), setup(scale=3.5))
    net = method.student.net
    assert net.steps[:, 1].tolist() == [0.5] * 8
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    folded = method.finished(method.student).net
    assert isinstance(folded, Linear)
    x, c = torch.randn(16, 2), torch.ones(16, 1)
    for time in net.steps[:, 0]:
        t = time.expand(16)
        told = net(x, t, s=torch.full((16,), 0.5), c=c)
        torch.testing.assert_close(folded(x, t, c=c), told, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("scale", "config", "message"),
    [
        (1.0, {}, "choose teacher.guidance above 1"),
        (9.0, {"high": 6}, "teacher.guidance=9: .* not among those trained, 1 to 6"),
    ],
)
def test_scales_that_cannot_be_kept(scale, config, message):
    with pytest.raises(ValueError, match=message):
        Guidance(Guidance.Config(**config), setup(scale))


def test_scales_in_the_wrong_order():
    with pytest.raises(ValueError, match="low=5 must be below high=2"):
        Guidance.Config(low=5, high=2)


# --- The guidance in an adapter


class Behind(Conditional):
    """The conditional teacher behind a layer that can be adapted, the identity so far."""

    def __init__(self):
        super().__init__()
        self.proj_out = nn.Linear(2, 2, dtype=torch.float64)
        nn.init.eye_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x, t, c):
        return self.proj_out(super().forward(x, t, c))


def adapted(scale=3.0, adapter=True):
    teacher = Denoiser(Behind(), Trig(), Prediction.X0).requires_grad_(False)
    net = adapt(teacher.net, Adapter(rank=2, layers=("proj_out",)), 0) if adapter else Behind()
    student = teacher.with_net(net)
    null = {"c": torch.zeros(1, 1, dtype=torch.float64)}
    guided = Guided(teacher, null, scale)
    example = (torch.zeros(2, 2), {"c": torch.ones(2, 1)})
    times = time_grid(Trig(), 8)
    setup = Setup(guided, student, lambda: student, times, "ddim", Optim(), "", example)
    return GuideAdapter(GuideAdapter.Config(), setup)


def adapter_batch(c=1.0, count=512):
    generator = torch.Generator().manual_seed(0)
    x0 = MOVED.draw(count, generator).double()
    return Batch(x0, {"c": torch.full((count, 1), c).double()}, generator, generator)


def test_no_loss_where_guidance_adds_nothing():
    assert adapted().loss("student", adapter_batch(c=0.0)).total < 1e-12


def test_it_begins_at_the_weighted_square_of_what_guidance_adds():
    """(w - 1) times the gap of the two posteriors, which is linear in nothing but time."""
    found = adapted(scale=3.0).loss("student", adapter_batch(count=4096)).total.item()
    t = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000 * 0.999 + 0.001
    x = torch.zeros(len(t), 2, dtype=torch.float64)
    gap = 2 * (MOVED.posterior(x, t) - PLAIN.posterior(x, t))
    weight = WEIGHTS["truncated-snr"](Trig().log_snr(t).exp())
    assert found == pytest.approx((weight * gap.square().mean(1)).mean().item(), rel=0.01)


def test_only_the_adapter_has_gradients():
    objective = adapted()
    (player,) = objective.players()
    assert isinstance(player.net.net, Role)
    names = [name for name, p in player.net.named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    objective.loss("student", adapter_batch()).total.backward()
    assert any(
        float(p.grad.abs().max()) > 0 for p in player.net.parameters() if p.grad is not None
    )


def test_what_an_adapter_is_refused():
    with pytest.raises(ValueError, match=r"choose teacher\.guidance above 1"):
        adapted(scale=1.0)
    with pytest.raises(ValueError, match=r"choose train\.roles=adapters"):
        adapted(adapter=False)


def test_a_run_leaves_an_adapter_for_the_teacher(tiny_sd, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("red\nblue\n", encoding="utf-8")
    words = [f"teacher.path={tiny_sd}", "train.steps=2", "train.batch_size=2"]
    words += ["train.adapter.rank=2", "teacher.steps=2", f"data.prompts={prompts}"]
    run = open_run(load("emoji-guide-adapter", words), str(tmp_path / "run"), False, tmp_path)
    place = run.train(lambda step, figures: None)
    assert (place / "lora" / "pytorch_lora_weights.safetensors").is_file()
    assert load_student(place).info.guidance.mode == "baked"
