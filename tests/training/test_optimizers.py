"""AdamW with moments in 8 bits and Muon: steps by hand, a resumed run, what they hold."""

import shutil

import pytest
import torch
from torch import nn

from edgedistill.objectives.base import Optim
from edgedistill.training import checkpoint, optimizers
from edgedistill.training.muon import orthogonalize

OPTIM = Optim(lr=0.01, weight_decay=0.1)
MUON = Optim(name="muon", lr=0.01, weight_decay=0.1)


def layers():
    torch.manual_seed(0)
    return nn.ModuleDict({"wide": nn.Linear(64, 64), "narrow": nn.Linear(3, 3)})


def step(net, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    for param in net.parameters():
        param.grad = torch.randn(param.shape, generator=generator)
    optimizer.step()


def state_bytes(optimizer):
    values = [v for state in optimizer.state.values() for k, v in state.items() if k != "step"]
    return sum(part.nbytes for value in values for part in optimizers.split(value).values())


def test_float32_moments_are_counted_as_they_are():
    net = layers()
    optimizer = optimizers.make(net, OPTIM, "fp32")
    step(net, optimizer, 0)
    planned = sum(optimizers.moment_bytes(p, "fp32") for p in net.parameters())
    assert state_bytes(optimizer) == planned


def test_without_a_compiler_it_says_so():
    pytest.importorskip("torchao")
    from torch._inductor import config

    with (
        config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(ValueError, match=r"train.moments=8bit .* needs a C\+\+ compiler"),
    ):
        optimizers.make(layers(), OPTIM, "8bit")


def test_eight_bits_step_as_32_do_and_resume_bit_by_bit(tmp_path):
    pytest.importorskip("torchao")
    if shutil.which("g++") is None:
        pytest.skip("8 bits are compiled by g++")
    plain, net = layers(), layers()
    whole = optimizers.make(plain, OPTIM, "fp32")
    low = optimizers.make(net, OPTIM, "8bit")
    for optimizer in (whole, low):
        optimizers.set_lr(optimizer, 0.005)
    # The first step moves every weight by the rate against its gradient's sign, and decays it.
    before = [p.detach().clone() for p in net.parameters()]
    for model, optimizer in ((plain, whole), (net, low)):
        step(model, optimizer, 1)
    for old, p, q in zip(before, net.parameters(), plain.parameters(), strict=True):
        expected = old * (1 - 0.005 * 0.1) - 0.005 * p.grad.sign()
        torch.testing.assert_close(p, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(p, q, atol=1e-5, rtol=0)
    assert state_bytes(low) == sum(optimizers.moment_bytes(p, "8bit") for p in net.parameters())
    assert state_bytes(low) < 0.35 * state_bytes(whole)
    folder = checkpoint.save(tmp_path, {"student": net}, {"student": low}, {"step": 1})
    other = layers()
    again = optimizers.make(other, OPTIM, "8bit")
    checkpoint.load(folder, {"student": other}, {"student": again})
    for model, optimizer in ((plain, whole), (net, low), (other, again)):
        optimizers.set_lr(optimizer, 0.005)
        step(model, optimizer, 2)
    for p, q, r in zip(net.parameters(), other.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)
        # Codes of 8 bits round a moment by a few per cent of its block's largest.
        torch.testing.assert_close(p, r, atol=0.2 * 0.005, rtol=0)


class Mixed(nn.Module):
    """Two matrices of one shape, a kernel, and what is no matrix."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(12, 8), nn.Linear(12, 8)
        self.kernel = nn.Conv2d(4, 6, 3)
        self.table, self.row = nn.Embedding(5, 8), nn.Linear(8, 1)


@pytest.mark.parametrize("shape", [(3, 20, 60), (2, 60, 20), (1, 16, 16)])
def test_orthogonal_matrices_keep_their_singular_vectors(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalize(x)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    # In the basis of x's singular vectors the result is diagonal, and about 1 there; Jordan's
    # quintic brings values to between 0.68 and 1.2, and leaves the least a little below.
    inside = u.mT @ found @ v.mT
    values = inside.diagonal(dim1=-2, dim2=-1)
    assert values.min() > 0.3
    assert values.max() < 1.25
    torch.testing.assert_close(inside, torch.diag_embed(values), atol=1e-4, rtol=0)


def test_muon_moves_matrices_by_orthogonal_steps_and_the_rest_as_adamw_does():
    net, plain = Mixed(), Mixed()
    muon, adamw = optimizers.make(net, MUON, "fp32"), optimizers.make(plain, OPTIM, "fp32")
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    step(net, muon, 1)
    for name in ("one.weight", "two.weight", "kernel.weight"):
        moved, old = dict(net.named_parameters())[name], before[name]
        update = (moved - old * (1 - 0.01 * 0.1)).detach().flatten(1)
        # The first momentum points where the gradient does, and 0.2 is the size of its elements.
        gradient = orthogonalize(moved.grad.flatten(1)[None])[0]
        size = 0.2 * max(update.shape) ** 0.5
        torch.testing.assert_close(update, -0.01 * size * gradient, atol=1e-6, rtol=0)
        rms = update.square().mean().sqrt() / 0.01
        assert 0.15 < rms < 0.25
    step(plain, adamw, 1)
    for seed in (2, 3):
        step(net, muon, seed)
        step(plain, adamw, seed)
    for name, p in plain.named_parameters():
        if name not in ("one.weight", "two.weight", "kernel.weight"):
            torch.testing.assert_close(dict(net.named_parameters())[name], p)


def test_muon_resumes_bit_by_bit_and_holds_what_is_planned(tmp_path):
    net, other = Mixed(), Mixed()
    first, second = optimizers.make(net, MUON, "fp32"), optimizers.make(other, MUON, "fp32")
    step(net, first, 1)
    matrices = optimizers.matrices(net)
    planned = [
        optimizers.moment_bytes(p, "fp32", muon=id(p) in matrices) for p in net.parameters()
    ]
    assert state_bytes(first) == sum(planned)
    assert sum(planned) == 4 * (2 * 96 + 216) + 8 * (8 + 8 + 6 + 40 + 8 + 1)
    folder = checkpoint.save(tmp_path, {"student": net}, {"student": first}, {"step": 1})
    checkpoint.load(folder, {"student": other}, {"student": second})
    for model, optimizer in ((net, first), (other, second)):
        optimizers.set_lr(optimizer, 0.005)
        step(model, optimizer, 2)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_muon_has_no_moments_in_bytes():
    with pytest.raises(ValueError, match=r"train\.moments=8bit is AdamW's"):
        optimizers.make(layers(), MUON, "8bit")
