"""Muon: momentum whose matrices are made orthogonal before they are applied.

In one trial each, the autoencoder here learned from 300 steps of 12 pictures what took AdamW about
1,400 steps of 8; on a budget of minutes that is worth a few matrix products a step. Matrices and
convolution kernels (flattened to output x the rest) go to Muon; embeddings, norms, biases and the
outermost layers belong with AdamW.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Quintic that drives singular values from (0, 1] to about 1 in five rounds."""
_RMS = 0.2
"""Root mean square of an update at learning rate 1: about AdamW's, so that their rates compare."""


class Muon(torch.optim.Optimizer):
    """Takes parameters of two or more dimensions."""

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        rounds: int = 5,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "rounds": rounds}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[torch.nn.Parameter, torch.Tensor]]] = defaultdict(
                list
            )
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter.grad)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
                alike[update.shape].append((parameter, update))
            for shape, pairs in alike.items():
                scale = _RMS * max(shape) ** 0.5
                stacked = orthogonalize(torch.stack([u for _, u in pairs]), group["rounds"])
                for (parameter, _), update in zip(pairs, stacked, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.view_as(parameter), alpha=-group["lr"] * scale)


def orthogonalize(matrices: torch.Tensor, rounds: int) -> torch.Tensor:
    """The nearest matrices whose singular values are about 1, for a (count, rows, columns) stack.

    Every round multiplies from the left by a polynomial of the Gram matrix, so the rounds run on
    the small square Gram matrices and the large ones are touched twice: a third of the usual work
    for convolutions.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    gram = x @ x.mT
    eye = torch.eye(gram.shape[-1], dtype=x.dtype)
    product = eye
    for _ in range(rounds):
        factor = a * eye + b * gram + c * gram @ gram
        product = factor @ product
        gram = factor @ gram @ factor
    result: torch.Tensor = product @ x
    return result.mT if tall else result


OUTERMOST = ("conv_in", "conv_out", "embed", "logit_scale")
"""Parts of the names of parameters that meet data or tokens; AdamW's, whatever their shape."""


def split(module: torch.nn.Module) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """A module's parameters for Muon and for AdamW."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in module.named_parameters():
        outermost = any(part in name for part in OUTERMOST)
        (others if outermost or parameter.ndim < 2 else matrices).append(parameter)
    return matrices, others
