"""Derivatives of a real U-Net along a path."""

import pytest
import torch

from edgedistill.diffusion.tangents import DERIVATIVES
from edgedistill.networks.bf16 import to_bf16
from edgedistill.tiny import unet2d


def derivative(unet: torch.nn.Module, kind: str, size: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x, dx = (torch.randn(2, 3, 8, 8, generator=generator) for _ in range(2))
    t, dt, step = torch.tensor([600.0, 200.0]), torch.full((2,), 50.0), torch.full((2,), size)
    found: torch.Tensor = DERIVATIVES[kind](
        lambda y, s: unet(y, s).sample.float(), x, t, dx, dt, step
    )
    return found.detach()


@pytest.fixture
def unet() -> torch.nn.Module:
    torch.manual_seed(0)
    return unet2d.pipeline().unet.eval()


def test_forward_differentiation_is_the_limit_of_differences(unet):
    unet = unet.double()  # but for the embedded time, which diffusers computes in float32
    x, dx = torch.randn(2, 2, 3, 8, 8, dtype=torch.float64)
    t, dt, step = (torch.full((2,), value, dtype=torch.float64) for value in (3.0, 1.0, 1e-3))
    found, wanted = (
        DERIVATIVES[kind](lambda y, s: unet(y, s).sample, x, t, dx, dt, step)
        for kind in ("jvp", "difference")
    )
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rounded", [False, True])
def test_forward_differentiation_on_a_cpu_takes_no_part_in_autocast(unet, rounded):
    """Norms under autocast on a CPU have derivatives of another type than their values."""
    if rounded:
        to_bf16(unet)  # as frozen weights are kept in runs of low precision
    wanted = derivative(unet, "jvp", 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = derivative(unet, "jvp", 0.0)
    assert torch.equal(found, wanted)
