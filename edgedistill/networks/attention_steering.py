"""Negative prompts for students that take no guidance: attention moves away from them.

Nguyen et al. 2024, "SNOOPI: Supercharged One-step Diffusion Distillation with Proper Guidance"
(arXiv 2412.02687), its Negative-Away Steer Attention: every cross-attention returns Z(prompt) -
scale Z(negative prompt), both of the same query. Guidance in the output would leave artefacts in
the pixels that a one-step student has no later step to repair. A bundle's attention is fixed, so
bundles do not support this.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgedistill.diffusion.denoiser import Condition

__all__ = ["NegativeAttention"]


class NegativeAttention(nn.Module):
    """A network whose cross-attention moves away from a negative prompt, at twice the cost.

    Both prompts go through the network side by side. Before each cross-attention the negative half
    takes the positive half's hidden states, so that both have the same query.

    Args:
        net: Network called as net(x, t, **cond), made of diffusers' transformer blocks.
        negative: The negative prompt's condition, of one row.
        scale: Strength of the steering, 0 or more.

    Raises:
        ValueError: If the network has no cross-attention (joint attention does not count).
    """

    def __init__(self, net: nn.Module, negative: Condition, scale: float) -> None:
        super().__init__()
        self.net, self.negative, self.scale = net, negative, scale
        self._on = False
        crossed = [m for m in net.modules() if getattr(m, "is_cross_attention", False)]
        if not crossed:
            raise ValueError("a negative prompt needs a student with cross-attention")
        for module in crossed:
            module.register_forward_pre_hook(self._one_query)
            module.register_forward_hook(self._steer)

    def _one_query(self, module: nn.Module, inputs: tuple[Any, ...]) -> Any:
        if not self._on:
            return inputs
        mine: Tensor = inputs[0].chunk(2)[0]
        return (torch.cat([mine, mine]), *inputs[1:])

    def _steer(self, module: Any, inputs: Any, output: Tensor) -> Tensor:
        if not self._on:
            return output
        toward, away = output.chunk(2)
        # The last projection's bias is added to any Z, so it is subtracted from the negative's.
        bias = module.to_out[0].bias
        moved = toward - self.scale * (away if bias is None else away - bias)
        return torch.cat([moved, moved])

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """Return the output for cond, (N, ...)."""
        both = {
            name: torch.cat([value, self.negative[name].to(value).expand_as(value)])
            for name, value in cond.items()
        }
        self._on = True
        try:
            out: Tensor = self.net(torch.cat([x, x]), torch.cat([t, t]), **both)
        finally:
            self._on = False
        return out[: len(x)]
