"""The one-step diffusion decoder: what its two halves learn, and what it is in a bundle."""

import pytest
import torch

from edgedistill.networks.diffusion_decoder import DiffusionDecoder
from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.objectives.compression.diffusion_decoder import OneStepDecoder
from edgedistill.teachers.families.stable_diffusion import StableDiffusion


@pytest.fixture
def teacher(tiny_sd):
    return StableDiffusion.load(str(tiny_sd))


def method(teacher, train_steps=10, **config):
    torch.manual_seed(0)
    setup = Setup(
        teacher=teacher.denoiser,
        student=teacher.denoiser,
        spawn=teacher.spawn,
        times=torch.tensor([1.0, 0.0]),
        sampler="renoise",
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 4, 4, 4), {}),
        autoencoder=teacher.autoencoder,
        scaling=teacher.scaling,
        train_steps=train_steps,
    )
    sizes = {"channels": (8, 0), "blocks": (1, 0), "perceptual": 0}
    return OneStepDecoder(OneStepDecoder.Config(**{**sizes, **config}), setup)


def batch(step=0):
    generator = torch.Generator().manual_seed(1)
    x0 = torch.randn(3, 4, 4, 4, generator=generator)
    return Batch(x0, {}, generator, generator, step)


def scatter(net):
    """Random weights everywhere: blocks start as the identity."""
    generator = torch.Generator().manual_seed(2)
    for parameter in net.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)


def straight(net, change=0.0):
    """Make the velocity depend on latents alone: its paths are straight lines."""
    for module in (*net.noisy, *net.timed):
        for parameter in module.parameters():
            parameter.data.fill_(change)


def test_the_first_half_matches_the_flow(teacher):
    one = method(teacher)
    torch.nn.init.zeros_(one.student.last.weight)
    torch.nn.init.zeros_(one.student.last.bias)
    truth = teacher.decode(batch().x0)
    # A network that answers 0 is wrong by eps - x0, of mean square 1 + x0^2.
    losses = [one.loss("student", batch()).total.item()]
    generator = torch.Generator().manual_seed(3)
    for _ in range(200):
        again = Batch(batch().x0, {}, generator, generator, 4)
        losses.append(one.loss("student", again).total.item())
    mean = sum(losses) / len(losses)
    assert mean == pytest.approx(1 + truth.square().mean().item(), rel=0.02)


def test_the_second_half_is_solved_where_paths_are_straight(teacher):
    one = method(teacher, solver_steps=5)
    scatter(one.student)
    straight(one.student)
    one.started(5)
    assert one.loss("student", batch(step=5)).total < 1e-10
    straight(one.student, change=0.1)
    one.started(5)
    assert one.loss("student", batch(step=5)).total > 1e-4


def test_the_second_half_regresses_several_steps_of_what_the_first_left(teacher):
    one = method(teacher, solver_steps=3)
    scatter(one.student)
    z = batch().x0
    with torch.no_grad():
        x = one.student.noise[..., :8, :8].expand(3, -1, -1, -1)
        for t in (1.0, 2 / 3, 1 / 3):
            x = x - one.student(x, torch.full((3,), t), z) / 3
        expected = (one.student.decode(z).sample - x).square().mean()
    one.started(5)
    torch.testing.assert_close(one.loss("student", batch(step=5)).total, expected)
    scatter(one.teacher)
    one.teacher.last.bias.data += 1
    kept = one.teacher.last.bias.clone()
    one.started(6)  # only where the half begins
    one.loss("student", batch(step=5))
    assert torch.equal(one.teacher.last.bias, kept)


def test_each_level_sees_the_noise_of_its_pixels():
    net = DiffusionDecoder(2, (8, 4, 0, 0), (0, 0, 0, 0), noise_size=8).eval()
    scatter(net)
    z, t = torch.zeros(1, 2, 3, 3), torch.ones(1)
    x = net.start(z)
    assert x.shape == (1, 3, 24, 24)
    assert torch.equal(x[..., :8, :8], x[..., 16:, 8:16])
    moved = x.clone()
    moved[..., 20:, 20:] += 1
    with torch.no_grad():
        change = (net(moved, t, z) - net(x, t, z))[0].abs().amax(0)
    assert change.shape == (24, 24)
    # The last convolution reaches one patch of 4 x 4 pixels beyond the corner of 8 x 8 at level 0.
    assert change[12:, 12:].min() > 0
    assert change[:12].max() == change[:, :12].max() == 0


def test_the_latest_weights_decode_the_same_from_disk(tmp_path, teacher):
    net = DiffusionDecoder(4, (8, 0), (1, 0))
    scatter(net)
    net.save_pretrained(tmp_path)
    x0 = batch().x0
    with torch.no_grad():
        expected = net.start(x0) - net(net.start(x0), torch.ones(3), x0)
        teacher.use_decoder(str(tmp_path))
        torch.testing.assert_close(teacher.decode(x0), expected)


def test_every_weight_learns(teacher):
    one = method(teacher, perceptual=0.1, jitter=0.1)
    scatter(one.student)
    for step in (0, 5):
        one.student.zero_grad()
        one.started(step)
        one.loss("student", batch(step)).total.backward()
        assert all(p.grad is not None and p.grad.any() for p in one.student.parameters())
    assert all(p.grad is None for p in teacher.autoencoder.parameters())
