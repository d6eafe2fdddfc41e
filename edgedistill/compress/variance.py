"""Keep the variance of a transformer's hidden states after blocks are removed.

Novack et al. 2024, "Presto! Distilling Steps and Layers for Accelerating Music Generation" (arXiv
2410.05167): the states of a transformer grow with depth, so the block after a gap sees smaller
states than it was trained on, and its own output weighs too much. The paper multiplies the states
after a gap by the missing factor of their standard deviation. Every reader of a state normalises
it first; multiplying the states by c is therefore the same as dividing all later additions to them
by c, which needs no layer of its own.
"""

from __future__ import annotations

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import nn

from edgedistill.compress.criteria import Calls, hidden_states
from edgedistill.compress.pruned import Pruned
from edgedistill.compress.stack import stacks

__all__ = ["keep_variance"]

WRITERS: dict[type[nn.Module], tuple[str, ...]] = {
    BasicTransformerBlock: ("attn1.to_out.0", "ff.net.2"),
    WanTransformerBlock: ("attn1.to_out.0", "attn2.to_out.0", "ffn.net.2"),
}
"""Block class -> its layers whose outputs are added to its single stream of states."""


def _normalised(block: nn.Module) -> bool:
    """Whether everything in the block that reads the states normalises them."""
    if isinstance(block, WanTransformerBlock):
        return not isinstance(block.norm2, nn.Identity)
    return isinstance(block, BasicTransformerBlock) and block.norm_type == "ada_norm_zero"


@torch.no_grad()
def keep_variance(net: nn.Module, pruned: Pruned, calls: Calls) -> list[float]:
    """Divide the outputs that blocks of `smaller.net` add after each gap by its factor, in place.

    Args:
        net: The original network, a diffusers transformer.
        pruned: The pruned network.
        calls: Keyword inputs of `net`; use as many noise levels and conditions as you can afford.

    Returns:
        The factors of the gaps: the standard deviation of the states after the removed blocks
            divided by that before them. A gap at the end changes nothing and has none.

    Raises:
        ValueError: If a block reads the states without normalising them, or there are two streams.
    """
    factors, before = [], 1.0
    try:
        lists = stacks(pruned.net)
    except ValueError as error:
        raise ValueError(f"compress.variance: {error}") from None
    for block in (block for row in lists.values() for block in row):
        if not _normalised(block):
            raise ValueError(
                f"compress.variance: {type(block).__name__} reads or keeps hidden states that are "
                "not normalised; DiT's and Wan's blocks can be rescaled"
            )
    ((name, row),) = lists.items()
    expected = 0
    for new, block in enumerate(row):
        old = int(pruned.origin(f"{name}.{new}").removeprefix(f"{name}."))
        if old > expected:
            states = hidden_states(net, calls, (expected, old - 1))
            x, y = (torch.cat(side) for side in zip(*states, strict=True))
            factors.append((y.float().std() / x.float().std()).item())
            before *= factors[-1]
        expected = old + 1
        for path in WRITERS[type(block)]:
            layer = block.get_submodule(path)
            for parameter in layer.parameters():
                parameter.div_(before)
    return factors
