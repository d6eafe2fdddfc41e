"""Quantization-aware training on a network small enough to know."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.solvers import time_grid
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.networks import fake_quant
from edgedistill.networks.fake_quant import FakeQuantize, FakeQuantScheme, Observe
from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.objectives.compression.qat import QAT

TIMES = time_grid(Trig(), 3)
TABLE = few_step_table(Trig(), Prediction.X0, TIMES, "renoise")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x, t):
        return self.layer(x) * (1 + t[:, None])


def setup(table=TABLE) -> Setup:
    torch.manual_seed(0)
    student = Denoiser(Net(), Trig(), Prediction.X0)
    return Setup(
        teacher=student,
        student=student,
        spawn=lambda: student,
        times=TIMES,
        sampler="renoise",
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 2), {}),
        init=table,
    )


def batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.zeros(64, 2), {}, generator, torch.Generator().manual_seed(seed))


def loss(monkeypatch, bits: int, seed: int = 0):
    monkeypatch.setitem(fake_quant.SCHEMES, "int8", FakeQuantScheme(bits, None))
    method = QAT(QAT.Config(), setup())
    return method, method.loss("student", batch(seed))


def test_the_loss_is_the_error_of_the_bits_and_vanishes_with_them(monkeypatch):
    assert loss(monkeypatch, 3)[1].total.item() > 1e-4
    assert loss(monkeypatch, 16)[1].total.item() < 1e-7


def test_the_student_gets_gradients_and_its_float_self_none(monkeypatch):
    method, losses = loss(monkeypatch, 3)
    losses.total.backward()
    assert method.student.net.layer.weight.grad.abs().max() > 0
    assert all(p.grad is None and not p.requires_grad for p in method.float_net.parameters())


def test_a_step_errs_with_all_the_steps_before_it(monkeypatch):
    method, losses = loss(monkeypatch, 3)
    drawn, rows = batch(0), TABLE.rows
    noise = [drawn.noise() for _ in range(TABLE.draws)]
    errors = []
    for count, row in enumerate(rows, 1):
        way = TorchStepTable(rows[:count], TABLE.init_scale)
        truth = way.sample(method.float_net, noise[: way.draws], {})
        with FakeQuantize([method.student.net.layer], method.scheme):
            found = way.sample(method.student.net, noise[: way.draws], {})
        errors.append((found - truth).square().mean() / row.b**2)
    torch.testing.assert_close(losses.total, torch.stack(errors).mean())
    torch.testing.assert_close(losses.logs["last_error"], errors[-1].sqrt())


def test_activations_are_held_to_the_ranges_of_the_whole_way():
    method = QAT(QAT.Config(), setup())
    observe = Observe([method.float_net.layer])
    noise = [batch(0).noise() for _ in range(TABLE.draws)]
    with observe:
        TABLE.sample(method.float_net, noise, {})
    low, high = observe.ranges[0][0]
    inputs = []
    method.float_net.layer.register_forward_pre_hook(lambda m, args: inputs.append(args[0]))
    TABLE.sample(method.float_net, noise, {})
    assert len(inputs) == 3
    assert low == torch.stack(inputs).min()
    assert high == torch.stack(inputs).max()
    with FakeQuantize([method.student.net.layer], FakeQuantScheme(16, 8), observe.ranges):
        found = method.student.net.layer(100 * torch.ones(1, 2))
    clipped = method.student.net.layer(high.expand(1, 2))
    torch.testing.assert_close(found, clipped.clamp(*observe.ranges[0][1]), atol=0.05, rtol=0)


def test_the_student_keeps_the_table_it_came_with():
    assert QAT(QAT.Config(), setup()).table() is TABLE


def test_there_must_be_a_student_to_start_from():
    with pytest.raises(ValueError, match=r"starts from a student: set student\.init=FOLDER"):
        QAT(QAT.Config(), replace(setup(), init=None))
