"""HiPA's filters beside numpy's, and its loss where one step is exact or lacks details."""

import numpy as np
import pytest
import torch
from torch import nn

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.solvers import time_grid
from edgedistill.networks.adapters import Adapter, adapt
from edgedistill.objectives.base import Batch, Optim, Setup
from edgedistill.objectives.trajectory.hipa import HiPA, edges, high_pass
from edgedistill.recipes.loading import load
from edgedistill.runs.run_dir import open_run
from edgedistill.students.folder import load_student


class Net(nn.Module):
    """One convolution, which ignores the time."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, t):
        return self.conv1(x)


def setup(net=None, adapter=True, shape=(3, 8, 8)):
    net = net or Net()
    if adapter:
        net = adapt(net.requires_grad_(False), Adapter(rank=2, layers=("conv1",)), 0)
    student = Denoiser(net, Trig(), Prediction.X0)
    return Setup(
        teacher=Denoiser(Net(), Trig(), Prediction.X0),
        student=student,
        spawn=lambda: student,
        times=time_grid(Trig(), 1),
        sampler="ddim",
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, *shape), {}),
    )


def pictures(count=4, height=8, width=8):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def batch(noise, wanted):
    generator = torch.Generator().manual_seed(0)
    return Batch(wanted, {}, generator, generator, path=torch.stack([noise, wanted], 1))


@pytest.mark.parametrize("cutoff", [0.0, 0.25, 1.0])
def test_a_constant_has_no_high_frequencies_and_a_checkerboard_has_nothing_else(cutoff):
    constant = torch.full((2, 3, 8, 8), 0.7)
    assert high_pass(constant, cutoff).abs().max() < 1e-6
    places = torch.arange(8)
    board = (-1.0) ** (places[:, None] + places).expand(2, 3, 8, 8)
    torch.testing.assert_close(high_pass(board, cutoff), board)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 9)])
def test_high_pass_is_numpys_spectrum_without_low_frequencies(height, width):
    x = pictures(height=height, width=width)
    spectrum = np.fft.fft2(x.numpy().astype(np.float64))
    for row in range(height):
        for column in range(width):
            down, across = np.fft.fftfreq(height)[row], np.fft.fftfreq(width)[column]
            if down**2 + across**2 <= (0.4 / 2) ** 2:
                spectrum[:, :, row, column] = 0
    want = np.fft.ifft2(spectrum).real
    np.testing.assert_allclose(high_pass(x, 0.4).numpy(), want, atol=1e-5)


def test_high_pass_of_itself_is_itself():
    once = high_pass(pictures(), 0.3)
    torch.testing.assert_close(high_pass(once, 0.3), once, rtol=1e-4, atol=1e-5)
    assert (once - pictures()).abs().max() > 0.1


def test_edges_are_the_slopes_of_a_ramp():
    rows, columns = torch.arange(8.0)[:, None], torch.arange(8.0)
    flat = torch.zeros(8, 8)
    ramp = torch.stack([flat + 2 * rows, flat + 3 * columns, flat + 5])
    found = edges(ramp[None])[0, :, 1:-1, 1:-1]
    for channel, slope in enumerate(
        [2.0, 0.0, 0.0, 3.0, 0.0, 0.0]
    ):  # down and across of each channel
        torch.testing.assert_close(found[channel], torch.full((6, 6), slope))
    assert edges(torch.ones(1, 3, 8, 8)).abs().max() < 1e-6


def test_no_loss_where_the_one_step_is_the_picture():
    objective = HiPA(HiPA.Config(), setup())
    noise = pictures()
    wanted = objective.student.net(noise, None).detach()
    assert objective.loss("student", batch(noise, wanted)).total < 1e-10
    assert objective.loss("student", batch(noise, wanted + pictures())).total > 0.1


def test_a_difference_of_low_frequency_counts_once_and_a_checkerboard_twice():
    objective = HiPA(HiPA.Config(edge_weight=0), setup())
    noise, places = pictures(), torch.arange(8)
    ours = objective.student.net(noise, None).detach()
    board = (-1.0) ** (places[:, None] + places).expand(4, 3, 8, 8)
    for change, total in ((torch.full_like(ours, 0.5), 0.25), (0.5 * board, 0.5)):
        losses = objective.loss("student", batch(noise, ours + change))
        assert losses.total.item() == pytest.approx(total, rel=1e-4)
        assert losses.logs["spatial"].item() == pytest.approx(0.25, rel=1e-4)


def test_weights_weigh():
    noise, wanted = pictures(), pictures().flip(0)
    model = setup()
    losses = HiPA(HiPA.Config(frequency_weight=2, edge_weight=3), model).loss(
        "student", batch(noise, wanted)
    )
    logs = {name: value.item() for name, value in losses.logs.items()}
    want = logs["spatial"] + 2 * logs["frequency"] + 3 * logs["edge"]
    assert losses.total.item() == pytest.approx(want)


def test_only_the_adapter_has_gradients():
    objective = HiPA(HiPA.Config(), setup())
    names = [n for n, p in objective.student.named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    objective.loss("student", batch(pictures(), pictures().flip(0))).total.backward()
    assert any(float(p.grad.abs().max()) > 0 for p in objective.student.parameters())


def test_what_hipa_refuses():
    with pytest.raises(ValueError, match="needs pictures or latents of height and width"):
        HiPA(HiPA.Config(), setup(shape=(2,)))
    with pytest.raises(ValueError, match=r"choose train\.roles=adapters"):
        HiPA(HiPA.Config(), setup(adapter=False))


def test_a_run_leaves_an_adapter_of_one_step(tiny_sd, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("red\nblue\n", encoding="utf-8")
    words = [f"teacher.path={tiny_sd}", "train.steps=2", "train.batch_size=2", "data.samples=2"]
    words += ["train.adapter.rank=2", "teacher.steps=2", f"data.prompts={prompts}"]
    run = open_run(load("emoji-hipa", words), str(tmp_path / "run"), False, tmp_path)
    place = run.train(lambda step, figures: None)
    assert (place / "lora" / "pytorch_lora_weights.safetensors").is_file()
    assert len(load_student(place).table.rows) == 1
