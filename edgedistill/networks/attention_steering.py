"""Negative prompts for students that take no guidance: what they attend to moves away.

Nguyen et al. 2024, "SNOOPI: Supercharged One-step Diffusion Distillation with Proper Guidance"
(arXiv 2412.02687), its negative-away steer attention: every cross-attention returns
Z(prompt) - scale Z(negative prompt), both of the same query. Guidance in the output would move
pixels where one step has no later ones to mend them. A bundle's attention is fixed, so it has no
part in this.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgedistill.diffusion.denoiser import Condition

__all__ = ["Away"]


class Away(nn.Module):
    """A network whose cross-attention moves away from a negative prompt; twice the work.

    Both prompts go through the network side by side. Before each cross-attention the negative half
    takes over the other's hidden states, so that both have one query.

    Args:
        net: Called as net(x, t, **cond), of diffusers' transformer blocks.
        negative: The negative prompt's condition, of one row.
        scale: How far, 0 or more.

    Raises:
        ValueError: If it has no cross-attention (joint attention is none).
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
        # What the last projection adds to any Z is not attended to.
        bias = module.to_out[0].bias
        moved = toward - self.scale * (away if bias is None else away - bias)
        return torch.cat([moved, moved])

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """The output for cond, (N, ...)."""
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
