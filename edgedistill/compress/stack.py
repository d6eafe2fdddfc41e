"""Transformers made of equal blocks in a row, such as DiT, PixArt, Sana, SD3, Flux and Wan."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from diffusers import DiTTransformer2DModel, Transformer2DModel
from torch import nn

from edgedistill.compress.plan import Plan, config_of, is_under

__all__ = ["stack_plan", "stack_units", "stacks"]

STACKS = {
    "transformer_blocks": "num_layers",
    "single_transformer_blocks": "num_single_layers",
    "blocks": "num_layers",
}
"""Attribute that holds the blocks -> config key of their number."""
POSITIONS = "dual_attention_layers"
"""Config key in which SD3.5 lists the blocks that are built differently."""
LENDERS = (DiTTransformer2DModel, Transformer2DModel)
"""Classes whose output layer uses the first block's embedding of time and class, so this block
stays."""


def stacks(net: nn.Module) -> dict[str, nn.ModuleList]:
    """Return the lists of blocks, in the order in which they run.

    Raises:
        ValueError: If the config gives the length of none.
    """
    config = config_of(net)
    found = {
        name: blocks
        for name, blocks in net.named_children()
        if isinstance(blocks, nn.ModuleList) and config.get(STACKS.get(name, "")) == len(blocks)
    }
    if not found:
        choices = ", ".join(f"{name} with {key}" for name, key in STACKS.items())
        raise ValueError(f"{type(net).__name__} has no list of blocks: looked for {choices}")
    return {name: found[name] for name in STACKS if name in found}


def stack_units(net: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return `transformer_blocks.K` for every block whose place another block can take.

    Raises:
        ValueError: If the blocks differ by place in a way that the config does not describe.
    """
    placed = bool(config_of(net).get(POSITIONS))
    found: dict[str, tuple[str, ...]] = {}
    for name, blocks in stacks(net).items():
        shapes = [_shapes(block) for block in blocks]
        # SD3's last block leaves the text stream unchanged; no other block can take its place.
        special = len(shapes) > 1 and shapes[-1] != shapes[-2]
        inner = shapes[: len(shapes) - special]
        if not placed and any(shape != inner[0] for shape in inner):
            raise ValueError(f"{type(net).__name__}: {name} differ by place; none can go")
        first = int(isinstance(net, LENDERS))
        found |= {f"{name}.{k}": (f"{name}.{k}",) for k in range(first, len(inner))}
    return found


def _shapes(block: nn.Module) -> list[tuple[str, Any]]:
    return [(name, tensor.shape) for name, tensor in block.named_parameters()]


def stack_plan(net: nn.Module, removed: Collection[str]) -> Plan:
    """Plan the transformer without the blocks at the paths `removed`.

    Raises:
        ValueError: If a list would have no block left.
    """
    config, sources = config_of(net), dict[str, str]()
    for name, blocks in stacks(net).items():
        kept = [k for k in range(len(blocks)) if not is_under(f"{name}.{k}", removed)]
        if not kept:
            raise ValueError(f"nothing is left of {name}: all {len(blocks)} of its blocks go")
        config[STACKS[name]] = len(kept)
        sources |= {f"{name}.{new}": f"{name}.{k}" for new, k in enumerate(kept) if new != k}
        if name == "transformer_blocks" and config.get(POSITIONS):
            config[POSITIONS] = [new for new, k in enumerate(kept) if k in config[POSITIONS]]
    return Plan(config, sources)
