"""Gaussian mixtures: a teacher with denoiser, score and density in closed form."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgedistill import assets
from edgedistill.common.files import read_json
from edgedistill.common.finite import check_finite
from edgedistill.common.pickles import check_pickles
from edgedistill.common.progress import bar
from edgedistill.common.text import parse_json, read_text
from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.networks.planar import PlanarNet
from edgedistill.teachers.base import DataSource, ExportGraph, Teacher
from edgedistill.teachers.loading import BROKEN, reason, whole_weights

__all__ = ["Mixture", "MixtureNet"]

FIT_STEPS, FIT_BATCH, FIT_LR = 1500, 512, 2e-3
LARGEST, SMALLEST = 1e6, 1e-12
"""Bounds of a mixture's numbers, far beyond what networks and figures are made for."""


class MixtureNet(nn.Module):
    """The posterior mean E[x0 | x_t] under sum_k w_k N(mu_k, s_k^2 I), in closed form.

    Each mode is Gaussian in x_t with variance alpha^2 s^2 + sigma^2, so the posterior mean is the
    responsibility-weighted mean of linear estimates.
    """

    weights: Tensor
    means: Tensor
    scales: Tensor

    def __init__(self, weights: Tensor, means: Tensor, scales: Tensor, schedule: Schedule) -> None:
        super().__init__()
        self.register_buffer("weights", weights.double() / weights.double().sum())
        self.register_buffer("means", means.double())
        self.register_buffer("scales", scales.double())
        self.schedule = schedule

    def _modes(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        alpha, sigma = self.schedule.at(t, like=x[:, :, None])
        variance = alpha[..., 0] ** 2 * self.scales**2 + sigma[..., 0] ** 2
        offset = x[:, None, :] - alpha * self.means
        exponent = -0.5 * offset.square().sum(-1) / variance
        log_density = self.weights.log() + exponent - 0.5 * x.shape[1] * variance.log()
        return alpha, variance, offset, log_density

    def log_density(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return log p_t(x_t), (N,), for x_t (N, D) and t (N,)."""
        x = x_t.double()
        modes = self._modes(x, t.double())[3]
        return modes.logsumexp(-1) - 0.5 * x.shape[1] * math.log(2 * math.pi)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return E[x0 | x_t = x], (N, D)."""
        alpha, variance, offset, log_density = self._modes(x.double(), t.double())
        responsibility = log_density.softmax(-1)[..., None]
        gain = alpha * (self.scales**2 / variance)[..., None]
        return (responsibility * (self.means + gain * offset)).sum(1).to(x.dtype)


class Mixture(Teacher):
    """A mixture from a JSON file {"weights": [K], "means": [K][D], "scales": [K]}, on `Trig`."""

    family = "mixture"
    tap = "blocks.1"
    time_layer = "embed_time.2"
    prompts = ()

    def __init__(self, path: str, weights: Tensor, means: Tensor, scales: Tensor) -> None:
        self.name, self.path = Path(path).stem, path
        self.weights = weights.double() / weights.double().sum()
        self.means, self.scales = means.double(), scales.double()
        net = MixtureNet(weights, means, scales, Trig())
        self.denoiser = Denoiser(net, Trig(), Prediction.X0).requires_grad_(False)
        self.sample_shape = (means.shape[1],)
        self.net = self.denoiser.net

    @classmethod
    def load(cls, path: str, config: str | None = None) -> Mixture:
        if config is not None:
            raise ValueError(f"teacher.config={config}: a mixture has no configurations apart")
        folder = Path(path)
        file = folder / "mixture.json" if folder.is_dir() else assets.find("mixtures", path)
        mixture = cls(path, *_read(file))
        if folder.is_dir():
            info = read_json(folder / "student.json")
            mixture.name = str((info.get("teacher") or {}).get("name") or folder.name)
            mixture.net = _read_net(folder / "net")
        return mixture

    def to(self, device: torch.device) -> Mixture:
        self.denoiser.to(device)
        return self

    def spawn(self, generator: torch.Generator | None = None) -> Denoiser:
        extent = self.means.abs().max().item() + 3 * self.scales.max().item()
        with torch.random.fork_rng(devices=[]):
            # The constructor draws weights from the global generator.
            torch.manual_seed(generator.initial_seed() if generator else 0)
            net = PlanarNet(dim=self.sample_shape[0], extent=max(extent, 1.0))
        student = self.denoiser.with_net(net)
        student.prediction = Prediction.V
        device = next(self.denoiser.buffers()).device
        student.to(device)
        if generator is not None:
            self._fit(student, generator, device)
        return student

    def _fit(self, student: Denoiser, generator: torch.Generator, device: torch.device) -> None:
        """Fit the network to the closed form, so that a student starts as the teacher."""
        optim = torch.optim.Adam(student.parameters(), FIT_LR, betas=(0.9, 0.99), fused=True)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optim, FIT_STEPS)
        with bar("planar fit", FIT_STEPS, brief=True) as meter:
            for step in range(FIT_STEPS):
                loss = self._error(student, generator, device)
                optim.zero_grad()
                torch.autograd.backward(loss)
                optim.step()
                decay.step()
                meter.update(step + 1)

    def _error(
        self, student: Denoiser, generator: torch.Generator, device: torch.device
    ) -> Tensor:
        """Return the student's mean squared error on a batch at random times."""
        x0 = self.draw(FIT_BATCH, generator).to(device)
        t = (1 - 1e-3) * torch.rand(FIT_BATCH, generator=generator).to(device) + 1e-3
        eps = torch.randn(x0.shape, generator=generator).to(device)
        x_t = student.noised(x0, t, eps)
        clean = self.denoiser(x_t, t, {})
        alpha, sigma = student.schedule.at(t, like=x_t)
        target = student.prediction.combine(clean, (x_t - alpha * clean) / sigma, alpha, sigma)
        return (student.output(x_t, t, {}) - target).square().mean()

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw true samples (count, D), float32."""
        mode = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        eps = torch.randn(count, *self.sample_shape, generator=generator, dtype=torch.float64)
        return (self.means[mode] + self.scales[mode, None] * eps).float()

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {}

    def decode(self, x0: Tensor) -> Tensor:
        return x0

    def source(self) -> DataSource:
        return _Draws(self)

    def save(self, folder: Path, net: nn.Module, table: TorchStepTable) -> None:
        assert isinstance(net, PlanarNet)
        net.save_pretrained(folder / "net")
        numbers = {
            "weights": self.weights.tolist(),
            "means": self.means.tolist(),
            "scales": self.scales.tolist(),
        }
        (folder / "mixture.json").write_text(json.dumps(numbers, indent=1) + "\n")

    def graphs(self) -> dict[str, ExportGraph]:
        inputs = {"x": torch.zeros(2, *self.sample_shape), "t": torch.full((2,), 0.5)}
        return {"denoiser": ExportGraph(self.net, inputs, ("f",))}

    def describe(self) -> dict[str, Any]:
        return {"shape": list(self.sample_shape), "scaling_factor": 1.0, "shift_factor": 0.0}


@dataclass(frozen=True)
class _Draws:
    mixture: Mixture

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return self.mixture.draw(count, generator), {}

    def prompts(self, count: int, generator: torch.Generator) -> list[str]:
        return []

    def originals(self, count: int, generator: torch.Generator) -> None:
        """Return None, since the samples were never encoded."""


def _read_net(folder: Path) -> PlanarNet:
    check_pickles(folder)
    try:
        with whole_weights(str(folder)):
            net: PlanarNet = PlanarNet.from_pretrained(
                folder, local_files_only=True, use_safetensors=True
            )
    except BROKEN as error:
        raise ValueError(f"{folder}: {reason(error, folder)}") from error
    check_finite(str(folder), net.state_dict())
    net.eval().requires_grad_(False)
    return net


def _read(file: Path) -> tuple[Tensor, Tensor, Tensor]:
    try:
        data = parse_json(read_text(file), f"{file}:", strict=True)
    except OSError as error:
        raise ValueError(f"{file}: not a mixture file: {error.strerror or error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{file}: not a mixture file: an object with weights, means and scales")
    weights, means, scales = (_numbers(file, data, key) for key in ("weights", "means", "scales"))
    if (
        weights.ndim != 1
        or scales.shape != weights.shape
        or means.shape[:1] != weights.shape
        or means.ndim != 2
        or not means.shape[1]
        or not len(weights)
    ):
        shapes = f"{tuple(weights.shape)}, {tuple(means.shape)}, {tuple(scales.shape)}"
        raise ValueError(f"{file}: weights [K], means [K][D], scales [K] expected, got {shapes}")
    largest = {"weights": weights, "means": means.abs(), "scales": scales}
    for key, values in largest.items():
        if bool((values > LARGEST).any()):
            raise ValueError(f"{file}: {key} must be at most {LARGEST:g}")
    if bool((weights <= 0).any()) or bool((scales <= 0).any()):
        raise ValueError(f"{file}: weights and scales must be positive")
    if float(weights.min() / weights.sum()) < SMALLEST or float(scales.min()) < SMALLEST:
        raise ValueError(f"{file}: scales and shares of the weights must be at least {SMALLEST:g}")
    return weights, means, scales


def _numbers(file: Path, data: dict[str, Any], key: str) -> Tensor:
    if key not in data:
        raise ValueError(f"{file}: no key {key!r}; needs weights, means and scales")
    try:
        values = torch.tensor(data[key], dtype=torch.float64)
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise ValueError(f"{file}: not a mixture file: {key}: {error}") from None
    if not bool(values.isfinite().all()):
        raise ValueError(f"{file}: a number of {key} is not finite")
    return values
