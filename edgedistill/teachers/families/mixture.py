"""Gaussian mixtures: a teacher with denoiser, score and density in closed form.

The modes may have labels. The teacher is then conditional: a class is the mixture of its modes,
the null class is the whole, and guidance has a truth to compare with (`Mixture.draw_guided`).
"""

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
from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.networks.planar import PlanarNet
from edgedistill.teachers.base import DataSource, ExportGraph, Teacher
from edgedistill.teachers.classes import NULL, Labels, class_tokenizer
from edgedistill.teachers.families.mixture_file import read_mixture
from edgedistill.teachers.loading import BROKEN, reason, whole_weights

__all__ = ["Mixture", "MixtureNet"]

FIT_STEPS, FIT_BATCH, FIT_LR = 1500, 512, 2e-3
PROPOSALS = 20_000
"""Smallest number of samples from which guided ones are accepted at once."""

NULL_SHARE = 0.2
"""Share of the null class in the fit of a labelled mixture."""


class MixtureNet(nn.Module):
    """The posterior mean E[x0 | x_t] under sum_k w_k N(mu_k, s_k^2 I), in closed form.

    Each mode is Gaussian in x_t with variance alpha^2 s^2 + sigma^2, so the posterior mean is the
    responsibility-weighted mean of linear estimates. A class has its own modes only.
    """

    weights: Tensor
    means: Tensor
    scales: Tensor
    labels: Tensor

    def __init__(
        self,
        weights: Tensor,
        means: Tensor,
        scales: Tensor,
        schedule: Schedule,
        labels: Tensor | None = None,
    ) -> None:
        super().__init__()
        none = torch.zeros(len(weights), dtype=torch.long)
        # Without labels, the weights of a mixture stay those of earlier releases.
        kept = labels is not None
        self.register_buffer("labels", labels if kept else none, persistent=kept)
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

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Return E[x0 | x_t = x], (N, D); with `label` (N,) under each sample's class."""
        alpha, variance, offset, log_density = self._modes(x.double(), t.double())
        if label is not None:
            null = self.labels.max() + 1
            other = (label[:, None] != self.labels) & (label[:, None] != null)
            log_density = log_density.masked_fill(other, -math.inf)
        responsibility = log_density.softmax(-1)[..., None]
        gain = alpha * (self.scales**2 / variance)[..., None]
        return (responsibility * (self.means + gain * offset)).sum(1).to(x.dtype)


class Mixture(Teacher):
    """A mixture from a JSON file {"weights": [K], "means": [K][D], "scales": [K]}, on `Trig`.

    Attributes:
        labels: Class of each mode, (K,) integers from 0, from the file's "labels"; None if it has
            none. A class is asked for by its number as text, and "" is the null class.
    """

    family = "mixture"
    tap = "blocks.1"
    time_layer = "embed_time.2"
    prompts: tuple[str, ...] = ()

    def __init__(
        self,
        path: str,
        weights: Tensor,
        means: Tensor,
        scales: Tensor,
        labels: Tensor | None = None,
    ) -> None:
        self.name, self.path = Path(path).stem, path
        self.weights = weights.double() / weights.double().sum()
        self.means, self.scales, self.labels = means.double(), scales.double(), labels
        if labels is not None:
            self.prompts = tuple(str(label) for label in range(self.classes))
            self.tokenizers = {"classes": "class_ids"}
        net = MixtureNet(weights, means, scales, Trig(), labels)
        self.denoiser = Denoiser(net, Trig(), Prediction.X0).requires_grad_(False)
        self.sample_shape = (means.shape[1],)
        self.net = self.denoiser.net

    @classmethod
    def load(cls, path: str, config: str | None = None) -> Mixture:
        if config is not None:
            raise ValueError(f"teacher.config={config}: a mixture has no configurations apart")
        folder = Path(path)
        file = folder / "mixture.json" if folder.is_dir() else assets.find("mixtures", path)
        mixture = cls(path, *read_mixture(file))
        if folder.is_dir():
            info = read_json(folder / "student.json")
            mixture.name = str((info.get("teacher") or {}).get("name") or folder.name)
            mixture.net = _read_net(folder / "net")
        return mixture

    @property
    def classes(self) -> int:
        """The number of classes, the null class not counted; 0 without labels."""
        return 0 if self.labels is None else int(self.labels.max()) + 1

    def to(self, device: torch.device) -> Mixture:
        self.denoiser.to(device)
        return self

    def spawn(self, generator: torch.Generator | None = None) -> Denoiser:
        extent = self.means.abs().max().item() + 3 * self.scales.max().item()
        with torch.random.fork_rng(devices=[]):
            # The constructor draws weights from the global generator.
            torch.manual_seed(generator.initial_seed() if generator else 0)
            net = PlanarNet(
                dim=self.sample_shape[0], extent=max(extent, 1.0), classes=self.classes
            )
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
        x0, cond = self.draw_with_labels(FIT_BATCH, generator)
        if cond:
            null = torch.rand(FIT_BATCH, generator=generator) < NULL_SHARE
            cond = {"label": cond["label"].masked_fill(null, self.classes).to(device)}
        x0 = x0.to(device)
        t = (1 - 1e-3) * torch.rand(FIT_BATCH, generator=generator).to(device) + 1e-3
        eps = torch.randn(x0.shape, generator=generator).to(device)
        x_t = student.noised(x0, t, eps)
        clean = self.denoiser(x_t, t, cond)
        alpha, sigma = student.schedule.at(t, like=x_t)
        target = student.prediction.combine(clean, (x_t - alpha * clean) / sigma, alpha, sigma)
        return (student.output(x_t, t, cond) - target).square().mean()

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw true samples (count, D), float32."""
        return self.draw_with_labels(count, generator)[0]

    def draw_with_labels(
        self, count: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw samples as `draw` does, and {"label": (count,)} of their classes if it has any."""
        mode = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        x0 = self._of_modes(mode, generator)
        return x0, {} if self.labels is None else {"label": self.labels[mode]}

    def _of_modes(self, mode: Tensor, generator: torch.Generator) -> Tensor:
        eps = torch.randn(len(mode), *self.sample_shape, generator=generator, dtype=torch.float64)
        return (self.means[mode] + self.scales[mode, None] * eps).float()

    def draw_guided(self, label: Tensor, scale: float, generator: torch.Generator) -> Tensor:
        """Draw samples of the density that guidance names: p(c | x)^scale p(x), normalised.

        From a scale of 1 on it is p(x | c) times p(c | x)^(scale - 1) and a constant: samples of
        the class are accepted with that probability, over the largest that is found among them.
        Below 1, samples of the whole are, with the probability p(c | x)^scale.

        Args:
            label: Classes c, (N,).
            scale: Guidance scale, at least 0.
            generator: Randomness.

        Returns:
            Samples (N, D), float32.
        """
        found = torch.zeros(len(label), *self.sample_shape)
        for number in torch.unique(label).tolist():
            asked = label == number
            found[asked] = self._guided_class(number, int(asked.sum()), scale, generator)
        return found

    def _guided_class(
        self, number: int, count: int, scale: float, generator: torch.Generator
    ) -> Tensor:
        assert self.labels is not None
        inside = scale >= 1
        share = self.weights * (self.labels == number) if inside else self.weights
        power = scale - 1 if inside else scale
        pieces: list[Tensor] = []
        most, size = -math.inf, max(count, PROPOSALS)
        while sum(map(len, pieces)) < count:
            mode = torch.multinomial(share, size, replacement=True, generator=generator)
            x = self._of_modes(mode, generator)
            log_odds = power * self._log_class(x, number)
            most = max(most, log_odds.max().item())
            drawn = torch.rand(size, generator=generator, dtype=torch.float64)
            pieces.append(x[drawn.log() <= log_odds - most])
        return torch.cat(pieces)[:count]

    def _log_class(self, x: Tensor, number: int) -> Tensor:
        """Return log p(c | x), (N,), of the class with this number."""
        gaps = x.double()[:, None] - self.means
        log_modes = self.weights.log() - 0.5 * gaps.square().sum(-1) / self.scales**2
        log_modes = log_modes - x.shape[1] * self.scales.log()
        assert self.labels is not None
        own = log_modes[:, self.labels == number]
        return own.logsumexp(-1) - log_modes.logsumexp(-1)

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        if self.labels is None:
            return {}
        return {"label": torch.tensor([self._number(prompt) for prompt in prompts])}

    def _number(self, prompt: str) -> int:
        if prompt in self.prompts:
            return self.prompts.index(prompt)
        if prompt:
            last = self.classes - 1
            raise ValueError(f"unknown class {prompt!r}; a number from 0 to {last} expected")
        return self.classes

    def null(self) -> dict[str, Tensor]:
        return self.encode([""])

    def tokenizer(self, name: str) -> Any:
        return class_tokenizer([*self.prompts, NULL])

    def length(self, tokenizer: str) -> int:
        return 1

    def tokenize(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        if self.labels is None:
            return super().tokenize(prompts)
        return {"class_ids": self.encode(prompts)["label"][:, None]}

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
            **({} if self.labels is None else {"labels": self.labels.tolist()}),
        }
        (folder / "mixture.json").write_text(json.dumps(numbers, indent=1) + "\n")

    def graphs(self) -> dict[str, ExportGraph]:
        inputs = {"x": torch.zeros(2, *self.sample_shape), "t": torch.full((2,), 0.5)}
        if self.labels is None:
            return {"denoiser": ExportGraph(self.net, inputs, ("f",))}
        encoder = Labels(range(self.classes + 1))
        ids = {"class_ids": torch.zeros(2, 1, dtype=torch.long)}
        inputs["label"] = torch.zeros(2, dtype=torch.long)
        return {
            "text_encoder": ExportGraph(encoder, ids, ("label",)),
            "denoiser": ExportGraph(self.net, inputs, ("f",)),
        }

    def describe(self) -> dict[str, Any]:
        return {"shape": list(self.sample_shape), "scaling_factor": 1.0, "shift_factor": 0.0}


@dataclass(frozen=True)
class _Draws:
    mixture: Mixture

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return self.mixture.draw_with_labels(count, generator)

    def prompts(self, count: int, generator: torch.Generator) -> list[str]:
        cond = self.mixture.draw_with_labels(count, generator)[1]
        return [str(label) for label in cond.get("label", torch.zeros(0)).tolist()]

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
