"""Muon: momentum whose matrices are made orthogonal before they are applied.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon), at AdamW's scale as in Liu et al. 2025
(arXiv 2502.16982, Eq. 4), so that one learning rate serves both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

__all__ = ["Muon", "is_matrix", "orthogonalize"]

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Quintic that drives singular values from (0, 1] to about 1 in five rounds."""
_RMS = 0.2
"""Root mean square of an update at learning rate 1: about AdamW's."""


def is_matrix(parameter: Tensor) -> bool:
    """Whether it is a matrix: weights of layers, a convolution's kernel as output x the rest."""
    return parameter.ndim > 1 and 1 < len(parameter) < parameter.numel()


class Muon(torch.optim.Optimizer):
    """Matrices by Muon, all else (biases, norms, embeddings) by AdamW.

    Args:
        matrices: Parameters of two or more dimensions.
        others: Parameters of any shape.
        lr: Root mean square of an update over 0.2, of matrices; AdamW's learning rate.
        momentum: Of matrices, Nesterov's.
        betas: AdamW's.
        eps: AdamW's.
        weight_decay: Of both, decoupled.
        rounds: Of the iteration that makes a matrix orthogonal.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter] = (),
        *,
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        rounds: int = 5,
    ) -> None:
        groups: list[dict[str, Any]] = [
            {"params": list(matrices), "momentum": momentum, "rounds": rounds},
            {"params": list(others), "betas": betas, "eps": eps},
        ]
        kept = [group for group in groups if group["params"]]
        super().__init__(kept, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient; there is no closure."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            if "rounds" in group:
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                self._matrices(params, group)
            else:
                self._others(params, group)

    def _matrices(self, params: list[nn.Parameter], group: dict[str, Any]) -> None:
        alike: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
        for parameter in params:
            gradient, state = parameter.grad, self.state[parameter]
            assert gradient is not None
            if not state:
                state["momentum"] = torch.zeros_like(gradient)
            state["momentum"].lerp_(gradient, 1 - group["momentum"])
            update = gradient.lerp(state["momentum"], group["momentum"]).flatten(1)
            alike[update.shape].append((parameter, update))
        for shape, pairs in alike.items():
            scale = _RMS * max(shape) ** 0.5
            stacked = orthogonalize(torch.stack([u for _, u in pairs]), group["rounds"])
            for (parameter, _), update in zip(pairs, stacked, strict=True):
                parameter.add_(update.view_as(parameter), alpha=-group["lr"] * scale)

    def _others(self, params: list[nn.Parameter], group: dict[str, Any]) -> None:
        for parameter in params:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        states, (beta1, beta2) = [self.state[p] for p in params], group["betas"]
        adamw(
            list(params),
            [p.grad for p in params if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=False,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalize(matrices: Tensor, rounds: int = 5) -> Tensor:
    """The nearest matrices whose singular values are about 1, for a (count, rows, columns) stack.

    Every round multiplies from the left by a polynomial of the Gram matrix, so the rounds run on
    the small square Gram matrices and the large ones are touched twice: a third of the usual work
    for convolutions.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).float()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    gram = x @ x.mT
    eye = torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device)
    product = eye
    for _ in range(rounds):
        factor = a * eye + b * gram + c * gram @ gram
        product = factor @ product
        gram = factor @ gram @ factor
    found: Tensor = (product @ x).to(matrices.dtype)
    return found.mT if tall else found
